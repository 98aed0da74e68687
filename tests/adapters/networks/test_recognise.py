"""Layers that people wrote without torchmor: found, replaced by what does the same, reduced; and what is refused."""

import copy
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import nn
from torchdiffeq import odeint
from torchdiffeq import odeint_adjoint as adjoint_alias

from foreign_networks import FOREIGN, Field, Trajectory
from networks import NETWORKS, Parts, chain, dense
from torchmor.adapters import (
    ODELayer,
    ReducedODELayer,
    collect_snapshots,
    find_ode_layers,
    load,
    reduce_network,
    save,
)
from torchmor.adapters.layers.own_forward import own_form
from torchmor.adapters.networks import recognise
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.evaluation import recorded_calls
from torchmor.adapters.networks.recognise import ADEQUATE, LEFT_OUT
from torchmor.adapters.networks.stand_in import with_ode_layer
from torchmor.adapters.reduction import size_search
from torchmor.adapters.solving.steps import COARSE, solved_by
from torchmor.engine.errors import CalibrationError, NotReducedWarning

pytestmark = pytest.mark.slow

SIZES = {"state_dim": 4, "points": 6}
T = torch.tensor([0.0, 1.0], dtype=torch.float64)
entries = pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in FOREIGN.items()])


def replaced(entry, network):
    return with_ode_layer(network, entry.layer, Calibration(entry.batches()), entry.input_attribute)


def reduced(entry, network, **sizes):
    named = {"input_attribute": entry.input_attribute}
    return reduce_network(network, entry.layer, entry.batches(), **named, **(sizes or entry.sizes))


def state(network):
    """All that must stay as it was."""
    modules = {
        name: (
            module.training,
            {k: v for k, v in vars(module).items() if isinstance(v, int)},
            len(module._forward_hooks),
        )
        for name, module in network.named_modules()
    }
    return modules, {k: (id(v), v.tolist()) for k, v in network.state_dict(keep_vars=True).items()}


# -- laws over the catalogue ------------------------------------------------------------------------------------------


@entries
def test_stand_in_does_the_same_on_other_data(entry):
    """Law: the network returned gives what the network gives, to rounding."""
    network = entry.network()
    with torch.no_grad():
        for other, name in (replaced(entry, network), replaced(entry, network.train())):
            assert name == entry.reduced and isinstance(other.get_submodule(name), ODELayer)
            for seed in (7, 8, 9):
                arguments = entry.batch(5, seed)
                torch.testing.assert_close(other(*arguments), network(*arguments), rtol=0, atol=1e-12)


@entries
def test_full_sizes_reproduce_the_network(entry):
    network = entry.network()
    with pytest.warns(NotReducedWarning):
        same = reduced(entry, network, state_dim="full", points="full")
    for seed in (7, 8):
        arguments = entry.batch(6, seed)
        torch.testing.assert_close(same(*arguments), network(*arguments), rtol=0, atol=1e-8)


@entries
def test_reduced_network_is_near_and_explains_itself(entry):
    network = entry.network()
    small = reduced(entry, network)
    layer = small.get_submodule(entry.reduced)
    assert isinstance(layer, ReducedODELayer) and layer.ode.state_size == entry.sizes["state_dim"]
    assert "loss (relative)" in str(small.get_submodule(entry.layer).explain())
    arguments = entry.batch(6, 7)
    value, expected = small(*arguments), network(*arguments)
    assert value.shape == expected.shape and (value - expected).norm() < 0.5 * expected.norm()
    value.sum().backward()
    assert all(parameter.grad.any() for parameter in layer.ode.parameters())


@entries
def test_network_is_unchanged(entry):
    network = entry.network().train()
    before = state(network)
    reduced(entry, network)
    find_ode_layers(network, *entry.batch())
    assert state(network) == before


@entries
def test_found(entry):
    (found,) = find_ode_layers(entry.network(), *entry.batch())
    by_attribute = entry.input_attribute is not None and found.output == "by its own forward"  # found without its name
    assert (found.name, found.kind) == (entry.layer, "torchdiffeq") and (by_attribute or found.output == entry.output)
    assert found.reducible and 0 < found.time_share <= 1 and found.evaluations > 0
    snapshots = collect_snapshots(entry.network(), entry.layer, entry.batches())
    assert found.state_shape == snapshots.state_shape and snapshots.y.shape[0] == entry.n
    assert found.evaluations == snapshots.nfe[0]


@entries
def test_saved_network_is_loaded_into_the_original_one(entry, tmp_path):
    """Law: the loaded layer returns the same bits as the saved one, called as the module that it replaced."""
    network = entry.network()
    small = reduced(entry, network)
    save(small, tmp_path / "small.safetensors")
    assert isinstance(load(tmp_path / "small.safetensors"), ReducedODELayer)
    if entry.layer == "":
        return
    again = load(tmp_path / "small.safetensors", network=network)
    arguments = entry.batch(5, 7)
    assert torch.equal(again(*arguments), small(*arguments))
    assert type(again.block) is type(small.block)
    twin = copy.deepcopy(small)
    keeps_func = entry in (FOREIGN["input by a setter"], FOREIGN["input as a callable"])
    assert hasattr(twin.block, "func") == keeps_func
    if keeps_func:
        twin.block.func.set_inputs(None)  # the last one may be a lambda
    twin.block = pickle.loads(pickle.dumps(twin.block))
    assert torch.equal(twin(*arguments), small(*arguments))


# -- interception -----------------------------------------------------------------------------------------------------


def by_global(self, y):
    return odeint(self.func, y, T)[-1]


def by_module(self, y):
    return torchdiffeq.odeint(self.func, y, T, method="rk4")[-1]


def by_keywords(self, y):
    return torchdiffeq.odeint(func=self.func, y0=y, t=T, rtol=1e-4, atol=1e-5, method="dopri8")[-1]


def by_alias(self, y):
    return adjoint_alias(self.func, y, T, method="midpoint", options={"step_size": 0.1})[-1]


def by_default(self, y, solve=torchdiffeq.odeint):
    return solve(self.func, y, T)[-1]


def by_local_import(self, y):
    from torchdiffeq import odeint as solve

    return solve(self.func, y, T)[-1]


def by_private_import(self, y):
    from torchdiffeq._impl.adjoint import odeint_adjoint as solve

    return solve(self.func, y, T)[-1]


SOLVERS = {"adaptive": torchdiffeq.odeint_adjoint}
euler = partial(torchdiffeq.odeint, method="euler")


class Holder:
    solve = staticmethod(torchdiffeq.odeint)


STYLES = {
    "global": by_global,
    "module": by_module,
    "keywords": by_keywords,
    "alias of the adjoint": by_alias,
    "default argument": by_default,
    "import in the function": by_local_import,
    "private module": by_private_import,
    "table": lambda self, y: SOLVERS["adaptive"](self.func, y, T)[-1],
    "partial": lambda self, y: euler(self.func, y, T)[-1],
    "class attribute": lambda self, y: Holder.solve(self.func, y, T)[-1],
    "closure": (lambda solve: lambda self, y: solve(self.func, y, T)[-1])(torchdiffeq.odeint),
    "lambda as function": lambda self, y: odeint(lambda t, z: self.func(t, z), y, T)[-1],
    "method of the function": lambda self, y: odeint(self.func.forward, y, T)[-1],
}


def block(forward, func=None) -> nn.Module:
    parts = {"stem": nn.Linear(5, 10), "block": Parts(forward, func=func or Field()), "head": nn.Linear(10, 3)}
    return chain(**parts).double()


@pytest.mark.parametrize("style", STYLES)
def test_solve_is_found_however_it_was_imported(style):
    network, x = block(STYLES[style]), torch.randn(8, 5, dtype=torch.float64)
    codes = torchdiffeq.odeint.__code__, torchdiffeq.odeint_adjoint.__code__
    names = [set(solver.__globals__) for solver in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint)]
    other, name = with_ode_layer(network, "block", [next(iter(Calibration(x)))])
    assert name == "block" and isinstance(other.block, ODELayer)
    assert torch.equal(other(x), network(x)), "the same operations give the same bits"
    assert (torchdiffeq.odeint.__code__, torchdiffeq.odeint_adjoint.__code__) == codes
    assert [set(solver.__globals__) for solver in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint)] == names


def test_settings_are_those_of_the_call():
    network, x = block(STYLES["alias of the adjoint"]), torch.randn(8, 5, dtype=torch.float64)
    layer = with_ode_layer(network, "block", Calibration(x))[0].block
    assert (layer.method, layer.options, layer.adjoint, layer.t) == ("midpoint", {"step_size": 0.1}, True, (0.0, 1.0))
    layer = with_ode_layer(block(by_keywords), "block", Calibration(x))[0].block
    assert (layer.method, layer.rtol, layer.atol, layer.adjoint) == ("dopri8", 1e-4, 1e-5, False)
    layer = with_ode_layer(block(by_default), "block", Calibration(x))[0].block
    assert (layer.method, layer.rtol, layer.atol) == ("dopri5", 1e-7, 1e-9), "torchdiffeq's defaults"


def test_torchdiffeq_is_restored_after_an_error():
    def forward(self, y):
        torchdiffeq.odeint(self.func, y, T)
        raise RuntimeError("no")

    code, network = torchdiffeq.odeint.__code__, block(forward)
    with pytest.raises(CalibrationError, match=r"failed on .*: no\b"):
        find_ode_layers(network, torch.randn(4, 5, dtype=torch.float64))
    assert torchdiffeq.odeint.__code__ is code
    assert not any(module._forward_hooks for module in network.modules())
    assert find_ode_layers(block(by_global), torch.randn(4, 5, dtype=torch.float64)), "and can be watched again"


def test_solves_of_other_threads_are_their_own():
    """A solve in another thread goes on as it would, and is not recorded."""
    from concurrent.futures import ThreadPoolExecutor

    y, func = torch.randn(3, 10), Field()
    expected = torchdiffeq.odeint(func, y, T.float())

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(torch.no_grad()(torchdiffeq.odeint), func, y, T.float()).result()
        assert torch.equal(found, expected)
        return by_global(self, x)

    (found,) = find_ode_layers(block(forward), torch.randn(4, 5, dtype=torch.float64))
    assert found.name == "block" and found.reducible


def test_solve_inside_an_ode_function_belongs_to_it():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Field()

        def forward(self, t, y):
            return odeint(self.inner, y, T, method="euler")[-1]

    network = block(lambda self, y: odeint(self.func, y, T, method="euler")[-1], Nested())
    (found,) = find_ode_layers(network, torch.randn(4, 5, dtype=torch.float64))
    assert (found.name, found.function, found.evaluations) == ("block", "block.func", 1)


# -- the surrounding code ---------------------------------------------------------------------------------------------


def test_attributes_that_the_network_uses_stay(tmp_path):
    """As in ODE-RNNs, which step by hand now and then: a copy of the module stands behind the block."""

    def forward(self, x):
        y = self.block(self.stem(x)) * self.block.scale
        return y + 0.1 * self.block.func(T[0], y)

    def make():
        inner = Parts(by_global, func=Field())
        inner.register_buffer("scale", torch.tensor(2.0))
        return Parts(forward, stem=nn.Linear(5, 10), block=inner).double()

    network, x = make(), torch.randn(30, 5, dtype=torch.float64)
    small = reduce_network(network, "block", x, state_dim=9, points=14)
    assert (small(x) - network(x)).norm() < 0.2 * network(x).norm()
    assert small.block.layer.explain() is small.block.explain()
    save(small, tmp_path / "small.safetensors")
    assert torch.equal(load(tmp_path / "small.safetensors", network=make())(x), small(x)), "the state is the saved one"
    small.block.scale = torch.tensor(0.0)
    assert torch.equal(small.block.source.scale, torch.tensor(0.0))


def test_code_that_works_in_place():
    """What comes after the block changes its argument and its output."""

    def forward(self, x):
        y = self.stem(x)
        z = self.block(y)
        y.mul_(0.5)
        return self.head(torch.relu_(z)) + y.sum(1, keepdim=True)

    parts = {"stem": nn.Linear(5, 10), "block": Parts(by_global, func=Field()), "head": nn.Linear(10, 3)}
    network, x = Parts(forward, **parts).double(), torch.randn(20, 5, dtype=torch.float64)
    with torch.no_grad():
        other, _ = with_ode_layer(network, "block", Calibration(x))
        assert torch.equal(other(x), network(x))
        assert find_ode_layers(network, x)[0].reducible
        network.block.run = lambda self, y: by_global(self, y.mul_(2.0))
        other, _ = with_ode_layer(network, "block", Calibration(x))
        assert own_form(other.block) is not None and torch.equal(other(x), network(x))


def test_shared_module_is_replaced_in_all_its_places():
    parts = {"stem": nn.Linear(5, 10), "block": Parts(by_module, func=Field()), "head": nn.Linear(10, 3)}
    network = Parts(lambda self, x: self.head(self.again(torch.sin(self.block(self.stem(x))))), **parts).double()
    network.again, x = network.block, torch.randn(20, 5, dtype=torch.float64)
    for name in ("block", "again"):
        small = reduce_network(network, name, x, **SIZES)
        assert small.block is small.again and isinstance(small.block, ReducedODELayer)
        assert small.again.explain().evaluations == 8, "of both calls"


def test_block_is_exported_with_a_dynamic_batch():
    entry = FOREIGN["augmented"]
    small = reduced(entry, entry.network())
    small.block.layer.method = "midpoint"
    x = torch.randn(4, 7, dtype=torch.float64)
    program = torch.export.export(small.block, (x,), dynamic_shapes=(({0: torch.export.Dim("batch", min=2)},),))
    for size in (2, 9):
        x = torch.randn(size, 7, dtype=torch.float64)
        torch.testing.assert_close(program.module()(x), small.block(x), rtol=0, atol=1e-14)


# -- what is found ----------------------------------------------------------------------------------------------------


def by_event(self, y):
    ends = {"event_fn": lambda t, y: t - 0.5}
    return odeint(self.func, y, T, **ends, method="euler", options={"step_size": 0.25})[1][-1]


def test_table():
    func = Field()
    whole = chain(
        stem=nn.Linear(5, 10),
        first=Parts(lambda self, y: odeint(self.func, y, T, rtol=1e-3, atol=1e-4)[-1], func=func),
        second=ODELayer(Field(), method="rk4", options={"step_size": 0.25}),
        third=Parts(by_event, func=func),
        reduced=reduce_network(ODELayer(Field()).double(), "", torch.randn(30, 10, dtype=torch.float64), **SIZES),
    ).double()
    found = find_ode_layers(whole, torch.randn(6, 5, dtype=torch.float64))
    assert [one.name for one in found] == ["first", "second", "third"], "reduced layers are not listed"
    assert [one.kind for one in found] == ["torchdiffeq", "ODELayer", "torchdiffeq"]
    assert [one.function for one in found] == ["first.func", "second.func", "first.func"], "a shared one has one name"
    assert found[1].evaluations == 16
    assert [one.reducible for one in found] == [True, True, False]
    assert min(one.time_share for one in found) > 0 and sum(one.time_share for one in found) <= 1
    lines = str(found).splitlines()
    assert lines[0].split("  ")[0] == "name" and lines[0].endswith("can be reduced")
    assert "dopri5, rtol 0.001, atol 0.0001" in lines[1] and "4 RK4 steps" in lines[2] and lines[3].endswith("no")
    assert [line.split()[0] for line in lines[4:]] == ["'first':", "'second':", "'third':"]
    assert lines[4] == f"'first': {found[0].advice}" and lines[1].split("  ")[-1].strip() == "yes"
    assert f" {found[0].adequate} " in lines[1] and f"{100 * found[0].time_share:.0f} %" in lines[1]
    assert lines[6].startswith("'third': expected a solve between given times, got one that stops at an event")
    assert [line.split()[0] for line in str(found[0]).splitlines()] == ["name", "'first'", "'first':"]
    assert str(find_ode_layers(nn.Linear(5, 5), torch.randn(3, 5))).startswith("no module solves an ODE")


@pytest.mark.parametrize("name", NETWORKS)
def test_ode_layers_are_found(name):
    entry = NETWORKS[name]
    (found,) = find_ode_layers(entry.network(), *entry.batch(6))
    layer = entry.network().get_submodule(entry.layer)
    assert (found.name, found.kind, found.output) == (entry.layer, "ODELayer", layer.output) and found.reducible
    assert found.evaluations == collect_snapshots(entry.network(), entry.layer, entry.batch(6)).nfe[0]


# -- what a reduction could save --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NETWORKS, *FOREIGN])
def test_adequate_steps_are_the_cheapest_that_give_the_same_output(name):
    """Law: with them the network's output differs by 2 % at most; with any that are cheaper, by more."""
    entry = {**NETWORKS, **FOREIGN}[name]
    arguments = entry.batch(6)
    (found,) = find_ode_layers(entry.network(), *arguments)
    attribute = getattr(entry, "input_attribute", None)
    network, layer = with_ode_layer(entry.network(), entry.layer, Calibration([arguments]), attribute)
    with torch.no_grad(), recorded_calls(network.get_submodule(layer)) as solves:
        exact = network(*arguments)
        evaluations = found.evaluations / len(solves)
        missed = {one: (solved_by(network, layer, one)(*arguments) - exact).norm() / exact.norm() for one in COARSE}
    ordered = sorted(COARSE, key=lambda one: one.evaluations)
    enough = [str(one) for one in ordered if missed[one] <= ADEQUATE and one.evaluations < evaluations]
    assert found.adequate == (enough or [""])[0]
    assert (f"{found.adequate} would do" in found.advice) == bool(enough)


def decaying(n=80, of=3, rate=1.0):
    """y' = −rate y, from states of an affine subspace: their span has one dimension more."""
    func = Parts(lambda self, t, y: -rate * y)
    return chain(stem=nn.Linear(of, n), ode=ODELayer(func), head=nn.Linear(n, 2)).double()


def test_rank_is_the_dimension_of_the_states():
    """Law: the variance of the states along the solve without its so many largest parts is at most 1e-4 of all."""
    (found,) = find_ode_layers(decaying(), torch.randn(30, 3, dtype=torch.float64))
    assert found.energy_rank == 4
    far = decaying(rate=0.0)
    far.stem.bias.data += 100
    (found,) = find_ode_layers(far, torch.randn(30, 3, dtype=torch.float64))
    assert found.energy_rank == 3, "the mean does not count"
    entry = NETWORKS["dense"]
    x = entry.batch(100)
    states = collect_snapshots(entry.network(), entry.layer, x).y
    energies = np.linalg.svd(states - states.mean(1, keepdims=True), compute_uv=False) ** 2
    left = 1 - np.cumsum(energies) / energies.sum()
    (found,) = find_ode_layers(entry.network(), *x)
    assert found.energy_rank == np.argmax(left <= LEFT_OUT) + 1
    (found,) = find_ode_layers(decaying(), torch.randn(5, 3, dtype=torch.float64))
    assert found.energy_rank is None, "five samples span little, whatever the states are"


def hidden(n, width):
    func = Parts(lambda self, t, y: self.b(torch.tanh(self.a(y))), a=nn.Linear(n, width), b=nn.Linear(width, n))
    return chain(stem=nn.Linear(100, n), ode=ODELayer(func, method="euler"), head=nn.Linear(n, 2)).double()


@pytest.mark.parametrize(
    ("make", "samples", "share", "words"),
    [
        (decaying, 30, 0.03, "a reduction saves little: 3 % of the time is spent in the layer"),
        (decaying, 30, 0.5, "can profit: 4 of 80 dimensions hold 99.99 % of the variance of the states"),
        (decaying, 5, 0.5, "can profit if .* small subspace of their 80 dimensions: give more samples to tell"),
        (
            partial(decaying, of=60),
            128,
            0.5,
            "a reduction saves little: the states take up 6[01] of their 80 dimensions",
        ),
        (
            partial(hidden, 15, 50),
            30,
            0.5,
            ".* little: a state of 15 entries and stages of at most 50 are small already",
        ),
        (partial(hidden, 15, 90), 30, 0.5, "can profit: stages of 90 .* can shrink, while the state of 15 is small"),
    ],
)
def test_advice(make, samples, share, words, monkeypatch):
    monkeypatch.setattr(recognise, "_time_shares", lambda network, batch, names: dict.fromkeys(names, share))
    network = make()
    (found,) = find_ode_layers(network, torch.randn(samples, network.stem.in_features, dtype=torch.float64))
    assert re.match(words, found.advice)


def test_coarse_steps_are_known_where_the_function_cannot_be_reduced():
    func = Parts(lambda self, t, y: -y.sort(1).values)
    network = chain(stem=nn.Linear(3, 80), ode=ODELayer(func, rtol=1e-8)).double()
    (found,) = find_ode_layers(network, torch.randn(6, 3, dtype=torch.float64))
    assert not found.reducible and found.energy_rank is None
    assert found.advice.startswith(f"{found.adequate} would do: the network's output stays the same within 2 %, with ")


def test_function_that_fails_does_not_hide_the_others():
    class Baked(Field):
        def forward(self, t, y):
            return super().forward(t, y) + torch.zeros(len(y) if len(y) in (3, 6) else 7, 1, dtype=y.dtype)

    whole = chain(a=block(by_global)[1], b=ODELayer(Baked(), method="euler")).double()
    found = find_ode_layers(whole, torch.randn(6, 10, dtype=torch.float64))
    assert [one.name for one in found if one.reducible] == ["a"]
    assert "its ODE function fails on part of the example (RuntimeError" in found[1].obstacle


def test_what_cannot_be_looked_at():
    with pytest.raises(CalibrationError, match=r"arguments of one call.*got none"):
        find_ode_layers(dense())
    with pytest.raises(CalibrationError, match=r"failed on .* \(\(3, 4\) of"):
        find_ode_layers(dense(), torch.randn(3, 4))


def test_settings_of_an_ode_layer_inside_a_module_of_ones_own():
    """The layer is the ODELayer, not the module around it."""
    whole = chain(block=Parts(lambda self, x: self.ode(x).sin(), ode=ODELayer(Field(), method="euler"))).double()
    (found,) = find_ode_layers(whole, torch.randn(3, 10, dtype=torch.float64))
    assert (found.name, found.kind, found.output) == ("block.ode", "ODELayer", "final")


# -- sequences --------------------------------------------------------------------------------------------------------


def test_jumps_between_solves_pool_their_snapshots():
    entry = FOREIGN["ODE-RNN"]
    batches = entry.batches()
    snapshots = collect_snapshots(entry.network(), "block", batches)
    assert snapshots.nfe == tuple(2 * batch[2].shape[0] for batch in batches), "midpoint, one step to each observation"
    assert snapshots.t_range[0] < min(float(times.min()) for _, _, times in batches), "beyond the first observation"
    assert len(set(snapshots.t)) == sum(snapshots.nfe)


def test_times_are_those_of_each_call():
    entry = FOREIGN["latent ODE"]
    small, network = reduced(entry, entry.network(), state_dim=9, points="full"), entry.network()
    x = entry.batch(5)[0]
    for times in (torch.linspace(0.1, 1, 9), torch.tensor([0.1, 0.2]), torch.tensor([0.1, -0.4, -0.5])):
        value, expected = small(x, times.double()), network(x, times.double())
        assert value.shape == expected.shape == (5, len(times), 3)
        assert (value - expected).norm() < 0.2 * expected.norm()


def test_sizes_are_searched_on_sequences_of_several_lengths(monkeypatch):
    monkeypatch.setattr(size_search, "STATE_DIMS", (4,))
    monkeypatch.setattr(size_search, "POINTS_PER_STATE_DIM", (2,))
    parts = {"stem": nn.Linear(5, 60), "block": Trajectory(Field(60, 80), method="dopri5"), "head": nn.Linear(60, 3)}
    network = Parts(lambda self, x, t: self.head(self.block(self.stem(x), t)), **parts).double()
    batches = [(torch.randn(40, 5).double(), torch.linspace(0, 1, 3 + i).double()) for i in range(4)]
    small = reduce_network(network, "block", batches, max_loss=0.1)
    explanation = small.block.explain()
    assert explanation.chosen.loss <= 0.1 and explanation.chosen in explanation.curve
    assert (small(*batches[0]) - network(*batches[0])).norm() < 0.15 * network(*batches[0]).norm()


def test_samples_and_trajectories_are_both_batch():
    entry = FOREIGN["latent ODE"]
    network = entry.network()
    snapshots = collect_snapshots(network, "block", [entry.batch(6)])
    assert snapshots.state_shape == (10,)
    small = reduced(entry, network)
    assert small.block.form.batch_dims == 2
    states = small.block(torch.randn(2, 7, 10, dtype=torch.float64), torch.tensor([0.1, 0.3], dtype=torch.float64))
    assert states.shape == (2, 7, 2, 10)


@pytest.mark.parametrize(
    ("func", "shape", "batch_dims"),
    [
        (nn.Conv1d(3, 3, 3, padding=1), (3, 6), 1),
        (nn.Conv1d(6, 6, 1), (6, 6), 1),
        (nn.Linear(6, 6), (3, 6), 2),
        (nn.Sequential(nn.Flatten(), nn.Linear(18, 18), nn.Unflatten(1, (3, 6))), (3, 6), 1),
        (Parts(lambda self, y: y + self.position, position=nn.Parameter(torch.randn(3, 6))), (3, 6), 1),
    ],
)
def test_other_states_of_three_dimensions(func, shape, batch_dims):
    whole = Parts(lambda self, y, t: odeint(self.func, y, t, method="midpoint"), func=OfState(func)).double()
    for batch in (1, 6):
        y = torch.randn(batch, *shape, dtype=torch.float64)
        other, name = with_ode_layer(whole, "", Calibration([(y, T)]))
        assert name == "layer" and other.form.batch_dims == batch_dims
        assert torch.equal(other(y, T), whole(y, T))


class OfState(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, y):
        return torch.tanh(self.inner(y))


@pytest.mark.gpu
@entries
def test_network_on_a_gpu(entry):
    network = entry.network().cuda()
    batches = [tuple(a.cuda() for a in entry.batch(12, seed)) for seed in range(4)]
    small = reduce_network(network, entry.layer, batches, **entry.sizes, input_attribute=entry.input_attribute)
    (found,) = find_ode_layers(network, *batches[0])
    assert found.name == entry.layer
    expected = reduced(entry, entry.network())(*entry.batch(12, 7))
    value = small(*(a.cuda() for a in entry.batch(12, 7)))
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-5)
