"""`ChainModule`: what stage chains compute, in torch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from catalogue import CATALOGUE, traced
from operation_counter import Operations
from torchmor.adapters.export.operators import equation
from torchmor.adapters.layers.chain_module import AffineModule, ChainModule
from torchmor.adapters.models.conversion import chain_to_module
from torchmor.engine import functions
from torchmor.engine.expressions import Expression, apply_primitive

DOUBLE = {"dtype": torch.float64}
catalogue = pytest.mark.parametrize("name", CATALOGUE)


def module_and_arguments(name, batch=3):
    y, u = CATALOGUE[name].example(batch, seed=3)
    return chain_to_module(traced(name)), (y.flatten(1), u, torch.tensor(0.3, **DOUBLE))


@catalogue
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_equals_the_function(name, batch):
    """Law: ``module(y, u, t) == f(t, y, u)``."""
    module, (y, u, t) = module_and_arguments(name, batch)
    value, entry = module(y, u, t), CATALOGUE[name]
    assert value.shape == (batch, entry.n)
    if batch:
        expected = entry.values(*entry.columns(batch, seed=3), t=0.3)
        torch.testing.assert_close(value.detach().T.numpy(), expected, rtol=1e-12, atol=1e-12)


@catalogue
def test_several_evaluations_at_once(name):
    """Law: ``module(y, known=module.along(times, u, y)[i]) == module(y, u[i], times[i])``."""
    module, (y, u, _) = module_and_arguments(name)
    times = (0.3, -0.2, 1.7)
    inputs = None if u is None else torch.stack([u, 2 * u, u - 1])
    for i, known in enumerate(module.along(times, inputs, y)):
        expected = module(y, None if u is None else inputs[i], times[i])
        torch.testing.assert_close(module(y, known=known), expected, rtol=1e-13, atol=1e-13)


def test_what_is_known_costs_nothing():
    """Stages of the time and the input alone, or of nothing, are evaluated once for all; sources of size 0 never."""
    tanh, twice = Expression.of("tanh"), Expression.of("mul")
    maps = [({}, 2), ({"u": 3, "t": 1, "g1": 2}, 8), ({"y": 4, "u": 0}, 5), ({"g2": 4, "g3": 5, "t": 1}, 4)]
    module = ChainModule(4, 3, [tanh, twice, tanh], maps, **DOUBLE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    y, u, times = torch.randn(6, 4, **DOUBLE), torch.randn(5, 6, 3, **DOUBLE), (0.0, 0.1, 0.2, 0.3, 0.4)
    known = module.along(times, u, y)
    with Operations() as count:
        values = [module(y, known=each) for each in known]
    assert count.of == {"addmm": 10, "tanh": 5}
    for i, value in enumerate(values):
        g1 = torch.tanh(module.stages[0].bias)
        a, b = (
            torch.cat([u[i], torch.full((6, 1), times[i], **DOUBLE), g1.expand(6, 2)], 1)
            .matmul(module.stages[1].weight.T)
            .add(module.stages[1].bias)
            .chunk(2, 1)
        )
        g3 = torch.tanh(y @ module.stages[2].weight.T + module.stages[2].bias)
        g = torch.cat([a * b, g3, torch.full((6, 1), times[i], **DOUBLE)], 1)
        torch.testing.assert_close(value, g @ module.output.weight.T + module.output.bias, rtol=1e-12, atol=1e-12)


@catalogue
def test_samples_are_independent(name):
    module, (y, u, t) = module_and_arguments(name)
    together = module(y, u, t)
    alone = torch.cat([module(y[i : i + 1], None if u is None else u[i : i + 1], t) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-13, atol=1e-13)


@catalogue
def test_gradients_in_state_input_and_every_parameter(name):
    module, (y, u, t) = module_and_arguments(name, 2)
    names, values = zip(*module.named_parameters(), strict=True)

    def f(y, u, t, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), (y, u, t))

    arguments = (y, u, t, *(value.detach() for value in values))
    arguments = [a if a is None or not a.numel() else a.clone().requires_grad_() for a in arguments]
    assert gradcheck(f, arguments, fast_mode=True)


@catalogue
def test_knows_what_it_reads(name):
    (module, _), entry = module_and_arguments(name), CATALOGUE[name]
    assert module.reads_input == bool(entry.p) and module.input_size == entry.p
    assert module.reads_time == entry.reads_time
    assert module.state_size == entry.n and len(module.stages) == entry.stages


def test_time_may_be_a_number():
    chain = ChainModule(2, 0, [], [({"y": 2, "t": 1}, 2)], torch.float64)
    nn.init.ones_(chain.output.weight)
    y = torch.tensor([[1.0, 2.0]], **DOUBLE)
    for t in (0.5, torch.tensor(0.5, **DOUBLE), torch.tensor(0.5)):
        assert chain(y, None, t).tolist() == [[3.5, 3.5]]
    assert chain(y).tolist() == [[3.0, 3.0]]


def test_parameters_are_zero_at_first_and_named_after_their_maps():
    maps = [({"y": 3, "u": 2}, 8), ({"g1": 4, "t": 1}, 3)]
    module = ChainModule(3, 2, [Expression.of("mul")], maps, torch.float32, "meta")
    assert {name: (tuple(p.shape), p.dtype, p.device.type) for name, p in module.named_parameters()} == {
        "stages.0.weight": ((8, 5), torch.float32, "meta"),
        "stages.0.bias": ((8,), torch.float32, "meta"),
        "output.weight": ((3, 5), torch.float32, "meta"),
        "output.bias": ((3,), torch.float32, "meta"),
    }
    assert not any(p.any() for p in ChainModule(3, 2, [Expression.of("mul")], maps).parameters())


def test_affine_module_without_sources_is_constant():
    module = AffineModule({}, 2, **DOUBLE)
    nn.init.ones_(module.bias)
    assert module({"y": torch.zeros(3, 5)}).tolist() == [[1.0, 1.0]] * 3
    assert repr(module) == "AffineModule(constant -> 2)"


def test_is_a_plain_module():
    module, arguments = module_and_arguments("GRU")
    twin = copy.deepcopy(module)
    nn.init.zeros_(twin.output.weight)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(*arguments), module(*arguments))
    for line in ("y(", "g1 = ", "(stages)", "(output)"):
        assert line in repr(module)
    traced = torch.export.export(module, arguments).module()
    assert np.allclose(traced(*arguments).detach(), module(*arguments).detach(), rtol=1e-14, atol=1e-14)


def test_towers_of_gates_are_described_in_few_words():
    """Of a function whose parts occur twice each, 40 floors high, a trillion paths lead to the argument."""
    gates = Expression(1, ())
    for _ in range(40):
        gates = apply_primitive("mul", [gates, apply_primitive("sigmoid", [gates])])
    module = ChainModule(2, 0, [gates], [({"y": 2}, 2), ({"g1": 2}, 2)], torch.float64)
    torch.nn.init.eye_(module.stages[0].weight), torch.nn.init.eye_(module.output.weight)
    assert len(str(module)) < 1000
    lines = equation(module).splitlines()
    assert len(lines) == 42 and max(map(len, lines)) < 100
    names = {"a1": np.array([3.0, 0.5]), **functions.VALUES}
    exec("\n".join(lines[1:-1]), names)
    np.testing.assert_allclose(module(torch.tensor([[3.0, 0.5]], **DOUBLE)).detach()[0], names["g1"], rtol=1e-12)
