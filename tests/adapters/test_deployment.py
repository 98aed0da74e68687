"""`fold`: laws over a catalogue of surroundings of reduced layers, sampled encoders, and errors."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import Parts, Tanh, chain
from torchmor.adapters import ReducedODELayer, deployment, fold
from torchmor.adapters.conversion import chain_to_module
from torchmor.adapters.network_graph import NetworkGraph
from torchmor.adapters.ode_layer import OdeFunction
from torchmor.adapters.sampled_encoder import SampledEncoder
from torchmor.adapters.solve_request import SolveSettings
from torchmor.adapters.tracing import trace
from torchmor.engine.errors import (
    CalibrationError,
    NonFiniteError,
    ShapeError,
    SizeError,
    UnknownLayerError,
    UnsupportedOperationError,
)
from torchmor.engine.fitting import regress
from torchmor.engine.matching_pursuit import matching_pursuit

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
        trajectory(lambda self, x: through(self, x) * torch.arange(len(MANY))[:, None, None], times=MANY),
        (5,),
        (("exact", "5 -> 3"), ("kept", "it does not do the same at each time of the trajectory")),
    ),
    "something else at few times": Entry(
        trajectory(lambda self, x: through(self, x) * torch.arange(len(TIMES))[:, None, None]),
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
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_same_function(name, batch):
    """The copy is the same function of its arguments, for any batch."""
    if name == "samples mixed" and batch == 0:
        pytest.skip("the mean of no samples is not a number")
    network, folded = made(name)
    arguments = SURROUNDINGS[name].arguments(batch, seed=3)
    assert_same(folded(*arguments), network(*arguments))


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


@surroundings
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
