"""Solvers in words, and set from them."""

import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer
from torchmor.adapters.steps import Steps, set_solver, solver_name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "dopri5"}, "dopri5"),
        ({"method": "euler"}, "1 Euler step"),
        ({"method": "euler", "t": (0.0, 1.0, 3.0)}, "2 Euler steps"),
        ({"method": "rk4", "t": (2.0, 0.0), "options": {"step_size": 0.1}}, "20 RK4 steps"),
        ({"method": "midpoint", "options": {"step_size": 0.3}}, "4 midpoint steps"),
        ({"method": "euler", "t": (0.0, 5.0), "options": {"step_size": 5.0 / 26}}, "26 Euler steps"),
    ],
)
def test_own_solver_in_words(settings, words):
    assert solver_name(ODELayer(nn.Tanh(), **settings)) == words


@pytest.mark.parametrize("steps", [Steps("euler", 7), Steps("rk4", 1), Steps("midpoint", 3)])
def test_steps_that_are_set_are_named_and_taken(steps):
    layer = ODELayer(nn.Tanh(), t=(0.0, 0.7))
    set_solver(layer, steps)
    assert solver_name(layer) == str(steps)
    calls = []
    with layer.observe(lambda t, y, u: calls.append(t)):
        layer(torch.ones(1, 1))
    assert len(calls) == steps.evaluations
