"""Solvers in words, and set from them."""

import numpy as np
import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer
from torchmor.adapters.solving.steps import Steps, fixed_steps, set_solver, solver_name
from torchmor.engine.tableaux import TABLEAUX


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "dopri5"}, "dopri5"),
        ({"method": "euler"}, "1 Euler step"),
        ({"method": "euler", "t": (0.0, 1.0, 3.0)}, "2 Euler steps"),
        ({"method": "rk4", "t": (2.0, 0.0), "options": {"step_size": 0.1}}, "20 RK4 steps"),
        ({"method": "midpoint", "options": {"step_size": 0.3}}, "4 midpoint steps"),
        ({"method": "euler", "t": (0.0, 5.0), "options": {"step_size": 5.0 / 26}}, "26 Euler steps"),
        ({"method": "rk4_classic"}, "1 classical RK4 step"),
        ({"method": "dopri5_fixed", "options": {"step_size": 0.5}}, "2 Dormand–Prince steps"),
        ({"method": "bosh3_fixed"}, "1 Bogacki–Shampine step"),
    ],
)
def test_own_solver_in_words(settings, words):
    assert solver_name(ODELayer(nn.Tanh(), **settings)) == words


def evaluations(layer):
    calls = []
    with layer.observe(lambda t, y, u: calls.append(t.item())):
        layer(torch.ones(1, 1))
    return calls


@pytest.mark.parametrize("method", TABLEAUX)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_steps_that_are_set_are_named_and_taken(method, count):
    layer, steps = ODELayer(nn.Tanh(), t=(0.0, 0.7)), Steps(method, count)
    set_solver(layer, steps)
    assert solver_name(layer) == str(steps)
    assert len(evaluations(layer)) == steps.evaluations


@pytest.mark.slow
def test_as_many_steps_as_asked_for_whatever_rounding_does():
    """A duration over a number of steps may be rounded down: torchdiffeq would take one step more, of no length."""
    for duration, count in zip(np.random.default_rng(0).uniform(0, 5, 300), range(1, 301), strict=True):
        layer = ODELayer(nn.Tanh(), t=(0.5, 0.5 + float(duration)))
        set_solver(layer, Steps("euler", count))
        assert len(evaluations(layer)) == count


def test_a_method_alone_steps_from_output_time_to_output_time():
    layer = ODELayer(nn.Tanh(), (0.0, 1.0, 3.0), "dopri5", options={"first_step": 0.1}, adjoint=True)
    set_solver(layer, "midpoint")
    assert evaluations(layer) == [0.0, 0.5, 1.0, 2.0]
    assert (layer.options, layer.adjoint) == ({}, False), "the steps themselves are differentiated"


def test_fixed_steps_from_what_users_write():
    assert fixed_steps(None) is None
    assert fixed_steps("rk4_classic") == "rk4_classic"
    expected = Steps("midpoint", 2)
    for solver in (expected, ("midpoint", 2), ["midpoint", np.int64(2)]):
        assert fixed_steps(solver) == expected and type(fixed_steps(solver).count) is int


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (
            "dopri5",
            r"solver to be None, a method with fixed steps, a pair .* got 'dopri5': the methods are euler",
        ),
        (3, "got 3: the methods are euler, midpoint, heun2, heun3, rk4, rk4_classic, bosh3_fixed, dopri5_fixed"),
        (("midpoint", 2, 1), r"got \('midpoint', 2, 1\)"),
        (("dopri5", 2), "expected a method with fixed steps, one of euler, .*, got 'dopri5'"),
        (("midpoint", 0), "expected a number of steps of 'midpoint', 1 or more, got 0"),
        (("midpoint", 1.5), "1 or more, got 1.5"),
        (("midpoint", True), "1 or more, got True"),
    ],
)
def test_solvers_that_are_refused(solver, text):
    with pytest.raises(ValueError, match=text):
        fixed_steps(solver)
