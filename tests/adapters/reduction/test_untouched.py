"""Nothing of a user's network runs outside eval mode, and nothing in it or in the process changes."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer, collect_snapshots, distill, find_ode_layers, reduce_network

X = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """An ODE function that draws random numbers, and moves its statistics, in training mode."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 12)
        self.norm, self.noise = nn.BatchNorm1d(12), nn.Sequential(nn.RReLU(0.1, 0.9), nn.Dropout(0.5))

    def forward(self, t, y):
        return 4 * self.outer(torch.tanh(self.noise(self.norm(self.inner(y)))))


class Held:
    """A callable that holds a module where torch does not look."""

    def __init__(self, function):
        self.function = function

    def __call__(self, t, y):
        return self.function(t, y)


def in_a_closure(function):
    return lambda t, y: function(t, y)


def network(held, training):
    torch.manual_seed(0)
    function = Noisy()
    layer = ODELayer(held(function), method="rk4", options={"step_size": 0.25})
    whole = nn.Sequential(nn.Linear(5, 12), layer, nn.BatchNorm1d(12), nn.Linear(12, 2)).double()
    function.double()
    with torch.no_grad():
        whole(3 * X)  # its statistics are no longer those of the start
    for module in (whole, function):
        module.train(training)
    function.norm.eval()  # as somebody freezes it
    return whole, function


HELD = [lambda function: function, in_a_closure, lambda function: function.forward, Held]
NAMES = ["module", "closure", "method", "object"]


def process():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("held", HELD, ids=NAMES)
@pytest.mark.parametrize("sizes", [{"max_loss": 0.3}, {"state_dim": 4, "points": 6}], ids=["searched", "given"])
def test_training_mode_changes_nothing(held, sizes):
    """Law: what is chosen, and its error, are those of the network in eval mode; all is as it was."""
    explained = []
    for training in (False, True):
        whole, function = network(held, training)
        modes = [module.training for module in (*whole.modules(), *function.modules())]
        values = {key: value.clone() for one in (whole, function) for key, value in one.state_dict().items()}
        before = process()
        small = reduce_network(whole, "1", X, **sizes, progress=False)
        explained.append(small[1].explain())
        small = distill(whole, small, X, epochs=1, progress=False)
        collect_snapshots(whole, "1", X)
        assert [module.training for module in (*whole.modules(), *function.modules())] == modes
        for one in (whole, function):
            assert all(torch.equal(value, values[key]) for key, value in one.state_dict().items())
        assert torch.equal(torch.get_rng_state(), before[0]) and process()[1:] == before[1:]
    assert explained[0].chosen == explained[1].chosen
    assert explained[0].errors == explained[1].errors


def test_finding_layers_changes_nothing():
    whole, function = network(HELD[0], True)
    before, statistics = process(), function.norm.running_mean.clone()
    modes = [module.training for module in whole.modules()]
    find_ode_layers(whole, X)
    assert [module.training for module in whole.modules()] == modes
    assert torch.equal(function.norm.running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), before[0]) and process()[1:] == before[1:]
