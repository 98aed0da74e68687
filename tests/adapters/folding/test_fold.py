"""`fold`: laws over a catalogue of surroundings of reduced layers, sampled encoders, and errors."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import Parts, Tanh, chain
from torchmor.adapters import ODELayer, ReducedODELayer, fold
from torchmor.adapters.layers.ode_layer import OdeFunction
from torchmor.adapters.models.conversion import chain_to_module
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.adapters.tracing.classifier import trace, trace_map
from torchmor.engine.errors import (
    CalibrationError,
    NonFiniteError,
    ShapeError,
    SizeError,
    UnknownLayerError,
    UnsupportedOperationError,
)
from torchmor.engine.held_out import held_out_mask

pytestmark = pytest.mark.slow

TIMES = (0.0, 0.3, 0.7, 1.0)
MANY = tuple(i / 8 for i in range(40))


class Driven(nn.Module):
    """z' = tanh(A z) + B u."""

    def __init__(self, r, p):
        super().__init__()
        self.linear, self.read = nn.Linear(r, r), nn.Linear(p, r)

    def forward(self, t, y, u):
        return torch.tanh(self.linear(y)) + self.read(u)


def ode(*shape, r=3, p=0, method="rk4", **settings) -> ReducedODELayer:
    """A reduced layer for states of a shape, with random operators; r None keeps the state."""
    size = r or shape[0]
    f = (Driven(size, p) if p else Tanh(size)).double()
    y, u = torch.zeros(2, size).double(), torch.zeros(2, p).double() if p else None
    module = chain_to_module(trace(OdeFunction(f), y, u))
    use = "required" if p else "none"
    layer = ReducedODELayer(SolveSettings(method=method, **settings), shape, module, r, use)
    if r:
        for linear in (layer.encode, layer.decode):
            nn.init.normal_(linear.weight, std=0.3)
            nn.init.normal_(linear.bias)
    return layer


def norm(channels):
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 2.0)
    nn.init.normal_(layer.weight)
    return layer


@dataclass(frozen=True)
class Entry:
    """A network, its arguments, and what is expected of each projection and lifting, in order.

    An expected result is "exact" or "kept", with a part of what is said about it.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    parts: tuple[tuple[str, str], ...]
    inputs: tuple[int, ...] | None = None

    def arguments(self, batch: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        shapes = [self.shape] if self.inputs is None else [self.shape, self.inputs]
        return tuple(torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


def padded(self, x):
    """Functional code: shapes, padding, slices, permutations, products and sums with constants."""
    assert len(x) >= 0
    y = F.pad(x, (1, 2)).reshape(x.shape[0], 3, 4)[:, :, 1:].permute(0, 2, 1)
    y = torch.einsum("btc,cd->btd", y, self.matrix) * self.scale - 0.5
    y = self.ode(torch.cat([y.flatten(1), y.flatten(1)[:, :2]], dim=1))
    return {"scores": y @ self.head.T / 2 + 1, "input": (x, len(x) * 0 + 3)}


def functional():
    network = Parts(padded, ode=ode(8))
    for name, shape in (("matrix", (3, 2)), ("scale", (3, 2)), ("head", (3, 8))):
        network.register_buffer(name, torch.randn(shape))
    return network


def skip(self, x):
    y = self.stem(x)
    return self.head(y + self.ode(y))


def twice(self, x):
    return self.head(self.ode(self.mid(self.ode(self.stem(x)))))


def recurrent(self, u):
    return self.head(self.ode(u.new_zeros(len(u), 20) + self.start, u))


def several(self, x, v):
    return self.head(torch.cat([self.ode(self.stem(x) + self.other(v)), v], dim=1))


def trajectory(after, classes=2, times=TIMES):
    def make():
        layer = ode(12, t=times, output="trajectory")
        return Parts(after, stem=nn.Linear(5, 12), ode=layer, head=nn.Linear(12, classes))

    return make


def conv_head():
    return chain(conv=nn.Conv2d(2, 3, 3, stride=2, padding=1), act=nn.ReLU(), flat=nn.Flatten(), out=nn.Linear(27, 2))


def exact(*what):
    return tuple(("exact", part) for part in what)


def through(self, x):
    return self.head(self.ode(self.stem(x)))


SURROUNDINGS = {
    "linear": Entry(
        lambda: chain(stem=nn.Linear(5, 20), ode=ode(20), head=nn.Linear(20, 4)),
        (5,),
        exact("with linear: 5 -> 3", "with linear: 3 -> 4"),
    ),
    "convolution": Entry(
        lambda: chain(
            stem=nn.Conv2d(1, 2, 3, 2, 1, padding_mode="circular"),
            ode=ode(2, 4, 4),
            flat=nn.Flatten(),
            head=nn.Linear(32, 2),
        ),
        (1, 8, 8),
        exact("conv2d: 64 -> 3", "with linear: 3 -> 2"),
    ),
    "batch normalisation": Entry(
        lambda: chain(
            stem=nn.Conv2d(1, 3, 3, padding=1),
            norm=norm(3),
            ode=ode(3, 6, 6),
            after=norm(3),
            pool=nn.AdaptiveAvgPool2d(2),
        ),
        (1, 6, 6),
        exact("with conv2d, batch_norm: 36 -> 3", "with batch_norm, adaptive_avg_pool2d: 3 -> 12"),
    ),
    "pooling, and a nonlinear head": Entry(
        lambda: chain(
            stem=nn.Conv2d(2, 4, 1),
            pool=nn.AvgPool2d(2),
            ode=ode(4, 3, 3),
            up=nn.AvgPool2d(3),
            flat=nn.Flatten(),
            act=nn.Tanh(),
        ),
        (2, 6, 6),
        exact("with conv2d, avg_pool2d: 72 -> 3", "with avg_pool2d: 3 -> 4"),
    ),
    "strided convolution after it": Entry(
        lambda: chain(stem=nn.Conv2d(1, 2, 3, padding=1), ode=ode(2, 6, 6), head=conv_head()),
        (1, 6, 6),
        exact("with conv2d: 36 -> 3", "with conv2d: 3 -> 27"),
    ),
    "activation before it": Entry(
        lambda: chain(stem=nn.Linear(5, 20), act=nn.ReLU(inplace=True), ode=ode(20), head=nn.Linear(20, 4)),
        (5,),
        (("kept", "'relu' stands before it, which is not affine"), ("exact", "with linear: 3 -> 4")),
    ),
    "activation, then affine": Entry(
        lambda: chain(
            stem=nn.Linear(5, 8), act=nn.ReLU(), drop=nn.Dropout(), mid=nn.Linear(8, 20), ode=ode(20), act2=nn.ELU()
        ),
        (5,),
        (("exact", "with linear: 8 -> 3"), ("kept", "'elu' stands after it, which is not affine")),
    ),
    "bottlenecks": Entry(  # the cheapest merges are not the longest
        lambda: chain(
            a=nn.Linear(60, 2),
            b=nn.Linear(2, 20),
            ode=ode(20, r=5),
            c=nn.Linear(20, 2),
            d=nn.Linear(2, 60),
        ),
        (60,),
        exact("with linear: 2 -> 5", "with linear: 5 -> 2"),
    ),
    "cheap neighbours": Entry(
        lambda: chain(pool=nn.AvgPool1d(20), ode=ode(4, 5), up=nn.Upsample(scale_factor=20)),
        (4, 100),
        (
            ("kept", "one matrix with avg_pool1d: 400 -> 3 would cost 1,200 multiply-adds and 24 bytes instead of 60 "),
            ("kept", "one matrix with upsample_nearest1d: 3 -> 400 would cost 1,200 multiply-adds and 3,200 bytes"),
        ),
    ),
    "skip link": Entry(
        lambda: Parts(skip, stem=nn.Linear(5, 20), ode=ode(20), head=nn.Linear(20, 2)),
        (5,),
        exact("with linear: 5 -> 3", "with linear, add: 5 + 3 -> 2"),
    ),
    "skip link behind an activation": Entry(
        lambda: Parts(
            skip,
            stem=chain(a=nn.Linear(5, 20), b=nn.Sigmoid()),
            ode=ode(20),
            head=chain(a=nn.Linear(20, 2), b=nn.Tanh()),
        ),
        (5,),
        (("kept", "'sigmoid' stands before it"), ("exact", "with add, linear: 20 + 3 -> 2")),
    ),
    "layer alone": Entry(
        lambda: ode(20), (20,), (("kept", "the state is the network's input"), ("kept", "its result is the network's"))
    ),
    "state kept": Entry(
        lambda: chain(stem=nn.Linear(5, 6), ode=ode(6, r=None), head=nn.Linear(6, 2)),
        (5,),
        (("kept", "there are none: the state is not reduced"),),
    ),
    "functional code": Entry(functional, (9,), exact("9 -> 3", "3 -> 3")),
    "two arguments": Entry(
        lambda: Parts(several, stem=nn.Linear(5, 20), other=nn.Linear(4, 20), ode=ode(20), head=nn.Linear(24, 2)),
        (5,),
        exact("with linear, add: 5 + 4 -> 3", "with cat, linear: 4 + 3 -> 2"),
        (4,),
    ),
    "two layers": Entry(
        lambda: chain(
            stem=nn.Linear(5, 20),
            body=chain(ode=ode(20), mid=nn.Linear(20, 12)),
            end=ode(12, r=2),
            out=nn.Linear(12, 2),
        ),
        (5,),
        exact("5 -> 3", "with linear: 3 -> 2", "with linear: 3 -> 2", "2 -> 2"),
    ),
    "called twice": Entry(
        lambda: Parts(twice, stem=nn.Linear(5, 20), mid=nn.Linear(20, 20), ode=ode(20), head=nn.Linear(20, 2)),
        (5,),
        exact("5 -> 3", "3 -> 3", "3 -> 3", "3 -> 2"),
    ),
    "recurrent": Entry(
        lambda: Parts(
            recurrent,
            ode=ode(20, p=2, method="euler", t=(0.0, 1.0), input_times=TIMES, options={"step_size": 0.25}),
            start=nn.Parameter(torch.randn(20)),
            head=nn.Linear(20, 2),
        ),
        (4, 2),
        exact("constant -> 3", "with linear: 3 -> 2"),
    ),
    "adaptive": Entry(
        lambda: chain(stem=nn.Linear(5, 20), ode=ode(20, method="dopri5", rtol=1e-4), head=nn.Linear(20, 4)),
        (5,),
        exact("with linear: 5 -> 3", "with linear: 3 -> 4"),
    ),
    "head at each time": Entry(
        trajectory(lambda self, x: through(self, x).permute(1, 2, 0)),
        (5,),
        exact("with linear: 5 -> 3", "with linear: 12 -> 8"),
    ),
    "as many outputs as times": Entry(
        trajectory(lambda self, x: self.head(self.ode(self.stem(x))[-2]), len(TIMES)),
        (5,),
        exact("with linear: 5 -> 3", "with linear: 12 -> 4"),
    ),
    "mean over times": Entry(
        trajectory(lambda self, x: self.head(self.ode(self.stem(x))).mean(0)),
        (5,),
        exact("with linear: 5 -> 3", "with linear, mean: 12 -> 2"),
    ),
    "something else at each time": Entry(
        trajectory(lambda self, x: self.head(self.ode(self.stem(x)) * torch.arange(40)[:, None, None]), times=MANY),
        (5,),
        (("exact", "5 -> 3"), ("kept", "it does not do the same at each time of the trajectory")),
    ),
    "something else at few times": Entry(
        trajectory(lambda self, x: through(self, x) * torch.arange(4)[:, None, None]),
        (5,),
        exact("5 -> 3", "with linear, mul: 12 -> 8"),
    ),
    "samples mixed": Entry(
        lambda: Parts(
            lambda self, x: self.head(self.ode(self.stem(x) - self.stem(x).mean(0))),
            stem=nn.Linear(5, 20),
            ode=ode(20),
            head=nn.Linear(20, 2),
        ),
        (5,),
        (("kept", "'sub' stands before it, which is not affine"), ("exact", "3 -> 2")),
    ),
    "normalisation": Entry(
        lambda: chain(norm=nn.LayerNorm(20), ode=ode(20), after=nn.Softmax(1)),
        (20,),
        (("kept", "'layer_norm' stands before it"), ("kept", "'softmax' stands after it")),
    ),
    "another dtype": Entry(
        lambda: Parts(lambda self, x: self.ode(x.float().double() * 2.0).float(), ode=ode(20)),
        (20,),
        (("exact", "with mul: 20 -> 3"), ("kept", "'_to_copy' stands after it")),
    ),
}
surroundings = pytest.mark.parametrize("name", SURROUNDINGS)


@cache
def made(name):
    """Network and folded network of an entry; folded with an example of two samples."""
    entry = SURROUNDINGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = entry.make().double().eval()
    return network, fold(network, *entry.arguments(2))


def leaves(output):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def assert_same(output, expected, tolerance=1e-10):
    assert torch.utils._pytree.tree_structure(output) == torch.utils._pytree.tree_structure(expected)
    for a, b in zip(leaves(output), leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert a.numel() == 0 or (a - b).detach().abs().max() <= tolerance * max(1.0, float(b.detach().abs().max()))


# -- laws over the surroundings --------------------------------------------------------------------------------------


@surroundings
def test_same_function(name):
    """The copy is the same function of its arguments, for any batch."""
    network, folded = made(name)
    for batch in (0, 1, 7):
        arguments = SURROUNDINGS[name].arguments(batch, seed=3)
        output, expected = folded(*arguments), network(*arguments)
        if name == "samples mixed" and batch == 0:  # the mean of no samples is not a number
            continue
        assert_same(output, expected)


@surroundings
def test_what_is_folded(name):
    _, folded = made(name)
    found = [(part.result, part.what) for part in folded.explain().parts]
    expected = SURROUNDINGS[name].parts
    assert [result for result, _ in found] == [result for result, _ in expected], folded.explain()
    for (_, what), (_, words) in zip(found, expected, strict=True):
        assert words in what


@surroundings
def test_costs_no_more(name):
    """The copy costs no more, in multiply–adds and in both."""
    explanation = made(name)[1].explain()
    (before, after), (written, less) = explanation.operations, explanation.written
    assert after <= before and after + 4 * less <= before + 4 * written
    for part in explanation.parts:
        assert part.result == "kept" or part.before >= part.after


@pytest.mark.parametrize(
    "name",
    ["convolution", "bottlenecks", "skip link", "functional code", "called twice", "recurrent", "mean over times"],
)
def test_folding_again_changes_nothing(name):
    """What was promised is what the copy costs, and there is nothing left to fold."""
    _, folded = made(name)
    arguments = SURROUNDINGS[name].arguments(5)
    again = fold(folded, *arguments)
    assert_same(again(*arguments), folded(*arguments), 0.0)
    assert again.explain().operations == (folded.explain().operations[1],) * 2


@pytest.mark.parametrize("name", ["batch normalisation", "activation, then affine", "called twice"])
def test_the_network_is_not_changed(name):
    entry = SURROUNDINGS[name]
    network = copy.deepcopy(made(name)[0]).train()
    before = {key: (id(value), value.clone()) for key, value in network.state_dict(keep_vars=True).items()}
    modules = {key: (id(module), module.training) for key, module in network.named_modules()}
    random = torch.get_rng_state()
    folded = fold(network, *entry.arguments(2))
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(
        id(after[key]) == identity and torch.equal(after[key], value) for key, (identity, value) in before.items()
    )
    assert modules == {key: (id(module), module.training) for key, module in network.named_modules()}
    assert torch.equal(random, torch.get_rng_state())
    addresses = {value.data_ptr() for value in after.values() if value.numel()}
    assert not addresses & {value.data_ptr() for value in folded.state_dict().values()}


def test_eval_mode():
    """The copy computes what the network does in eval mode, whatever the modes of both."""
    entry = SURROUNDINGS["activation, then affine"]
    network = copy.deepcopy(made("activation, then affine")[0])
    folded = fold(network.train(), *entry.arguments(2))
    expected = network.eval()(*entry.arguments(7))
    assert_same(folded(*entry.arguments(7)), expected)
    assert_same(folded.train()(*entry.arguments(7)), expected)


def test_network_dtype():
    entry = SURROUNDINGS["convolution"]
    network = copy.deepcopy(made("convolution")[0]).float()
    folded = fold(network, *(argument.float() for argument in entry.arguments(2)))
    assert {value.dtype for value in folded.state_dict().values()} == {torch.float32}
    arguments = [argument.float() for argument in entry.arguments(7)]
    assert_same(folded(*arguments), network(*arguments), 1e-5)


def test_weights_that_are_no_longer_needed_are_gone():
    _, folded = made("convolution")
    shapes = {name: tuple(value.shape) for name, value in folded.state_dict().items() if "reduced_solve" not in name}
    assert sorted(shapes.values()) == [(2,), (2, 3), (3,), (3, 64)]


def test_only_the_times_that_are_read():
    """A map of the last but one state does not multiply the others."""
    _, folded = made("as many outputs as times")
    assert folded.read_times_0.tolist() == [2]
    assert folded.explain().parts[1].after == 3 * 4


def test_nested_arguments():
    network = Parts(lambda self, pair: [self.ode(pair[0] @ pair[1].T)], ode=ode(20)).double()
    pair = torch.randn(4, 5).double(), torch.randn(20, 5).double()
    folded = fold(network, list(pair))
    assert folded.explain().parts[0].result == "kept"  # a product of two arguments
    assert_same(folded(list(pair)), network(list(pair)))


def test_whole_layer_is_traced_where_its_input_is_a_function():
    def forward(self, x):
        return self.head(self.ode(self.stem(x), lambda t: x[:, :2] * t))

    layer = ode(20, p=2)
    network = Parts(forward, stem=nn.Linear(5, 20), ode=layer, head=nn.Linear(20, 2)).double()
    x = torch.randn(7, 5).double()
    folded = fold(network, x[:2])
    assert [(part.result, part.part) for part in folded.explain().parts] == [("kept", "both")]
    assert "its input u is a function" in str(folded.explain())
    assert_same(folded(x), network(x))
    layer.method = "dopri5"
    with pytest.raises(UnsupportedOperationError, match=r"^expected samples of the input u.*method dopri5, got a func"):
        fold(network, x)


def test_explanation():
    explanation = made("activation before it")[1].explain()
    assert str(explanation) == repr(explanation)
    lines = str(explanation).splitlines()
    assert lines[0] == "Folded network, in eval mode: the same function"
    assert [line.split()[:3] for line in lines[3:5]] == [["ode", "projection", "kept"], ["ode", "lifting", "exact"]]
    assert "140 -> 12" in lines[4]
    assert lines[3].endswith("'relu' stands before it, which is not affine; sampled_encoder would approximate")
    before, after = explanation.operations
    assert before - after == 140 - 12
    assert lines[6].startswith(f"whole network: {before} -> {after} multiply-adds, ")
    assert lines[7].startswith("relative difference of the network's output on 2 samples of the example: ")
    assert explanation.exact and max(explanation.errors.values()) < 1e-12


# -- a module like any other -----------------------------------------------------------------------------------------


def test_copies_and_states():
    network, folded = made("skip link")
    arguments = SURROUNDINGS["skip link"].arguments(7)
    copied = copy.deepcopy(folded)
    assert copied.explain() == folded.explain()
    assert_same(copied(*arguments), network(*arguments))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.allclose(copied(*arguments), network(*arguments))
    copied.load_state_dict(folded.state_dict())
    assert_same(copied(*arguments), folded(*arguments), 0.0)


@pytest.mark.parametrize("name", ["convolution", "recurrent", "head at each time", "as many outputs as times"])
def test_export_and_compile_with_a_dynamic_batch(name):
    network, folded = made(name)
    entry, dynamic = SURROUNDINGS[name], ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        exported = torch.export.export(folded, entry.arguments(4), dynamic_shapes=dynamic).module()
        compiled = torch.compile(folded, fullgraph=True, dynamic=True, backend="eager")
        for batch in (2, 7):
            expected = network(*entry.arguments(batch))
            assert_same(exported(*entry.arguments(batch)), expected)
            assert_same(compiled(*entry.arguments(batch)), expected)


# -- sampled encoders ------------------------------------------------------------------------------------------------


def behind(*activation, n=60, r=4) -> nn.Module:
    """A reduced layer behind a linear layer and something that is not affine."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        stem = chain(first=nn.Linear(30, n), **{f"a{i}": layer for i, layer in enumerate(activation)})
        return chain(stem=stem, ode=ode(n, r=r), head=nn.Linear(n, 2)).double().eval()


def samples(count=400, seed=5):
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return few @ torch.randn(3, 30, generator=generator, dtype=torch.float64)


def projections(network, x):
    with torch.no_grad():
        return network.ode.encode(network.stem(x))


def test_sampled_encoder():
    """The error that is told is that of z(0) on samples it was not fitted to, and it is an approximation."""
    network, x = behind(nn.Tanh()), samples()
    folded = fold(network, x, sampled_encoder=12)
    projection, lifting = folded.explain().parts
    assert (projection.result, lifting.result) == ("approximate", "exact")
    assert projection.what == "with linear, tanh: 30 -> 4, fitted on 12 sampled entries of y(0)"
    assert not folded.explain().exact
    assert str(folded.explain()).startswith("Folded network, in eval mode: an approximation, by a sampled encoder\n")

    held_out = torch.from_numpy(held_out_mask(len(x)))
    expected, value = projections(network, x), folded.sampled_encoder_0(x).detach()
    error = (value - expected)[held_out].norm() / expected[held_out].norm()
    on_fitted = (value - expected)[~held_out].norm() / expected[~held_out].norm()
    told = folded.explain().errors
    assert told["z(0) of layer 'ode' on 80 held-out samples"] == pytest.approx(float(error), rel=1e-9)
    assert abs(float(error - on_fitted)) > 1e-6 and error < 0.2
    output, small = folded(x)[held_out].detach(), network(x)[held_out].detach()
    assert told["the network's output on 80 held-out samples"] == pytest.approx(
        float((output - small).norm() / small.norm()), rel=1e-9
    )


def test_sampled_encoder_evaluates_only_what_it_needs():
    """Twelve entries of the first layer, of which twelve tanh, and one matrix; multiply–adds are those."""
    folded = fold(behind(nn.Tanh()), samples(), sampled_encoder=12)
    encoder = folded.sampled_encoder_0
    assert [tuple(p.shape) for p in encoder.parameters()] == [(12, 30), (12,), (4, 12), (4,)]
    assert encoder.entries is None
    assert folded.explain().parts[0].after == 12 * 30 + 4 * 12
    assert folded.explain().parts[0].before == 60 * 30 + 4 * 60
    assert "stem" not in dict(folded.named_children())
    for batch in (0, 1, 7):
        assert folded(samples()[:batch]).shape == (batch, 2)


def test_held_out_samples_do_not_change_the_encoder():
    network, x = behind(nn.Tanh()), samples()
    others = x.clone()
    others[held_out_mask(len(x))] *= 3
    first, second = (fold(network, data, sampled_encoder=8) for data in (x, others))
    assert_same(first.sampled_encoder_0(x), second.sampled_encoder_0(x), 0.0)
    assert first.explain().errors != second.explain().errors


def test_more_entries_are_more_accurate():
    errors = [min(fold(behind(nn.Tanh()), samples(), sampled_encoder=s).explain().errors.values()) for s in (2, 8, 30)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_sampled_encoder_behind_what_no_chain_can_express():
    """It reads the entries where a chain ends: here those of the state itself."""
    folded = fold(behind(nn.Tanh(), nn.Softmax(1), n=400, r=8), samples(), sampled_encoder=12)
    encoder = folded.sampled_encoder_0
    assert [tuple(p.shape) for p in encoder.parameters()] == [(8, 12), (8,)]
    assert encoder.entries.shape == (12,) and encoder.entries.unique().numel() == 12
    assert folded.explain().parts[0].what.startswith("with reshaping: 400 -> 8, fitted on 12")


def convolution_behind(side):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        stem = chain(conv=nn.Conv2d(1, 4, 4, 4), act=nn.ReLU(), norm=norm(4), flat=nn.Flatten())
        size = 4 * (side // 4) ** 2
        return chain(stem=stem, ode=ode(size), head=nn.Linear(size, 2)).double().eval(), torch.randn(
            60, 1, side, side
        ).double()


def test_sampled_encoder_of_a_convolution_reads_the_pixels_it_needs():
    network, x = convolution_behind(40)
    folded = fold(network, x, sampled_encoder=10)
    entries = folded.sampled_encoder_0.entries.tolist()
    assert len(entries) % 16 == 0 and 0 < len(entries) <= 10 * 16
    changed = x.flatten(1).clone()
    changed[:, [i for i in range(1600) if i not in entries]] = 7.0
    assert_same(folded(changed.reshape(x.shape)), folded(x), 0.0)
    for entry in entries[:: len(entries) // 3]:
        changed = x.flatten(1).clone()
        changed[:, entry] += torch.randn(len(x)).double() * 9
        assert not torch.equal(folded(changed.reshape(x.shape)), folded(x)), entry


def test_sampled_encoder_reads_all_pixels_where_picking_some_costs_more():
    network, x = convolution_behind(20)
    folded = fold(network, x, sampled_encoder=3)
    assert folded.sampled_encoder_0.entries is None
    assert 0 < int((folded.sampled_encoder_0.chain.stages[0].weight != 0).any(0).sum()) <= 3 * 16
    held_out = held_out_mask(len(x))
    expected, value = projections(network, x[held_out]), folded.sampled_encoder_0(x[held_out].flatten(1)).detach()
    told = folded.explain().errors["z(0) of layer 'ode' on 12 held-out samples"]
    assert told == pytest.approx(float((value - expected).norm() / expected.norm()), rel=1e-9)


def test_exact_folds_are_preferred():
    network, arguments = made("convolution")[0], SURROUNDINGS["convolution"].arguments(40)
    explanation = fold(network, *arguments, sampled_encoder=3).explain()
    assert [part.result for part in explanation.parts] == ["exact", "exact"]


def test_sampled_encoder_that_costs_more_is_refused():
    network = chain(act=nn.Tanh(), ode=ode(6, r=1)).double().eval()
    folded = fold(network, torch.randn(40, 6).double(), sampled_encoder=6)
    (projection, _), x = folded.explain().parts, torch.randn(5, 6).double()
    assert projection.result == "kept"
    assert projection.what.startswith("an encoder of 6 sampled entries would cost ")
    assert_same(folded(x), network(x))


# -- what it stands on -----------------------------------------------------------------------------------------------


def test_trace_map():
    """``chain(x.T) == f(x).T``, whatever the shape of the value."""
    x, linear = torch.randn(5, 2, 3).double(), nn.Linear(6, 8).double()
    chained = trace_map(lambda x: torch.tanh(linear(x.flatten(1))).reshape(-1, 4, 2)[:, 1:], x)
    expected = torch.tanh(linear(x.flatten(1)))[:, 2:].detach()
    assert (chained.state_size, chained.output.size, len(chained.stages)) == (6, 6, 1)
    assert abs(chained(x.flatten(1).numpy().T) - expected.numpy().T).max() < 1e-14


# -- errors ----------------------------------------------------------------------------------------------------------


def test_too_few_samples():
    network = behind(nn.Tanh())
    with pytest.raises(CalibrationError) as error:
        fold(network, samples(20), sampled_encoder=12)
    assert str(error.value) == (
        "expected at least 31 example samples to fit an encoder on 12 sampled entries of the state, 2 for each beside "
        "a held-out fifth, got 20: call fold with more, like those that the network will see, or with a smaller "
        "sampled_encoder"
    )
    fold(network, samples(31), sampled_encoder=12)


def test_impossible_number_of_entries():
    with pytest.raises(SizeError, match=r"^expected sampled_encoder to be a number of entries ≥ 1, or None, got 0$"):
        fold(behind(nn.Tanh()), samples(), sampled_encoder=0)


def test_states_that_are_not_finite():
    x = samples()
    x[3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^expected finite states y\(0\) of the example, got NaN or infinity"):
        fold(behind(nn.Tanh()), x, sampled_encoder=4)


def test_no_reduced_layer():
    with pytest.raises(UnknownLayerError, match=r"^expected a network with a ReducedODELayer, got a Linear without"):
        fold(nn.Linear(2, 2), torch.randn(2, 2))


@pytest.mark.parametrize(("example", "got"), [((), "no Tensor"), ((torch.zeros(0, 5),), r"a Tensor of shape \(0, 5\)")])
def test_no_samples(example, got):
    with pytest.raises(
        CalibrationError, match=rf"at least one sample along dimension 0, got {got}: call fold\(small, x"
    ):
        fold(made("linear")[0], *example)


def test_network_that_branches_on_values():
    def forward(self, x):
        return self.ode(x if x.sum() > 0 else -x)

    with pytest.raises(UnsupportedOperationError, match=r"^expected a network that torch\.export can trace with a dyn"):
        fold(Parts(forward, ode=ode(20)).double(), torch.randn(2, 20).double())


def test_layers_that_are_not_reduced():
    network = chain(first=ODELayer(Tanh(20)), second=ode(20)).double()
    with pytest.raises(
        UnsupportedOperationError, match=r"its part 'first', an? ODELayer, still calls a solver of torchdiffeq"
    ):
        fold(network, torch.randn(2, 20).double())


def test_wrong_state():
    with pytest.raises(
        ShapeError, match=r"^expected a state of shape \(batch, 20\), for which.*got \(batch, 10\): call fold"
    ):
        fold(ode(20), torch.randn(2, 10).double())
