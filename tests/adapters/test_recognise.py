"""Layers that people wrote without torchmor: found, replaced by what does the same, reduced; and what is refused."""

import copy
import functools
import pickle

import pytest
import torch
import torchdiffeq
from torch import nn
from torchdiffeq import odeint
from torchdiffeq import odeint_adjoint as adjoint_alias

from foreign_networks import FOREIGN, Field
from networks import Parts, chain
from torchmor.adapters import ODELayer, ReducedODELayer, collect_snapshots, find_ode_layers, load, reduce_network, save
from torchmor.adapters.calibration import Calibration
from torchmor.adapters.stand_in import with_ode_layer
from torchmor.engine.errors import CalibrationError, NotReducedWarning

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
    assert "Reduced ODE layer" in str(small.get_submodule(entry.layer).explain())
    arguments = entry.batch(6, 7)
    value, expected = small(*arguments), network(*arguments)
    assert value.shape == expected.shape and (value - expected).norm() < 0.5 * expected.norm()
    value.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.ode.parameters())


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
    if entry.input_attribute is not None and found.obstacle:
        assert "name it: input_attribute=" in found.obstacle
        return
    assert (found.name, found.kind, found.output) == (entry.layer, "torchdiffeq", entry.output)
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
    if entry.input_attribute is not None:
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
euler = functools.partial(torchdiffeq.odeint, method="euler")


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
    with pytest.raises(CalibrationError, match="no"):
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
    assert found.name == "block"


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
