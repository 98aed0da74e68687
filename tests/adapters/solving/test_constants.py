"""What follows from constants alone."""

import gc

import torch

from torchmor.adapters.solving import constants
from torchmor.adapters.solving.constants import Constants, remembered
from torchmor.adapters.solving.runge_kutta import _plan as plan_of
from torchmor.engine.tableaux import TABLEAUX


def test_remembered_computes_once():
    """Law: ``remembered(f)(*arguments) == f(*arguments)``."""
    calls = []

    @remembered
    def f(a, b):
        """Doc."""
        calls.append((a, b))
        return a + b

    assert (f(1, 2), f(1, 2), f(2, 2)) == (3, 3, 4)
    assert calls == [(1, 2), (2, 2)] and f.__doc__ == "Doc."


def test_constants_are_numbers_unless_a_graph_is_exported():
    class Module(torch.nn.Module):
        def forward(self, x):
            constant = Constants(x)
            seen.append(constant(0.1))
            return x * constant(0.1) + constant(0.1)

    seen = []
    x = torch.ones(3, dtype=torch.float64)
    Module()(x)
    assert seen == [0.1]
    program = torch.export.export(Module(), (x,))
    assert all(isinstance(number, torch.Tensor) for number in seen[1:]) and len(seen) > 1
    (value,) = program.constants.values()
    assert value.dtype == torch.float64 and value.item() == 0.1


def test_what_was_not_asked_for_lately_is_forgotten(monkeypatch):
    """By the numbers that are kept, arguments counted, and by the results."""
    monkeypatch.setattr(constants, "MOST_NUMBERS", 30)
    computed = []

    @remembered
    def repeat(count, value):
        computed.append((count, value))
        return (value,) * count

    for value in range(3):
        repeat(6, value)  # 8 numbers each
    repeat(6, 0)
    assert computed == [(6, 0), (6, 1), (6, 2)]
    repeat(6, 3)  # now the one that was asked for longest ago is forgotten, and no other
    assert repeat(6, 0) == (0,) * 6
    assert repeat(6, 2) == (2,) * 6
    assert len(computed) == 4
    repeat(6, 1)
    assert len(computed) == 5
    repeat(100, 0)
    repeat(100, 0)
    assert len(computed) == 7, "what is too large is not kept"
    assert len(computed) == 7 and repeat(6, 1) and len(computed) == 7, "and pushes nothing out"
    monkeypatch.setattr(constants, "MOST_RESULTS", 1)
    repeat(1, 1)
    repeat(6, 1)
    assert len(computed) == 9


def test_plans_of_many_grids_are_released():
    """Plans of long grids do not add up."""

    def plans():
        gc.collect()
        return sum(type(one).__name__ == "_PlannedStep" for one in gc.get_objects())

    before = plans()
    for i in range(40):
        plan_of((0.0, 1.0 + i), TABLEAUX["rk4"], 0.002 * (1.0 + i), False)
    assert plans() - before < 40 * 500 / 4
