"""Stages that the output cannot see get no points, everywhere; and nothing dearer than the full layer is found."""

import numpy as np
import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer, export_operators, export_program, load, reduce_network, save
from torchmor.adapters.reduction.wish import Wish
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Trial

X = torch.randn(80, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
METHODS = [
    {},
    {"basis": "pod"},
    {"fit": "interpolation"},
    {"basis": "pod", "fit": "interpolation"},
    {"basis": "pod", "selection": "deim", "fit": "interpolation"},
]


class TwoStages(nn.Module):
    """y' = C tanh(A y) + D relu(B y − e)."""

    def __init__(self, n=12):
        super().__init__()
        self.a, self.c, self.b, self.d = (nn.Linear(n, n) for _ in range(4))

    def forward(self, t, y):
        return self.c(torch.tanh(self.a(y))) + self.d(torch.relu(self.b(y)))


def network(dead=(), readout=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 12), ODELayer(TwoStages(), method="rk4"), nn.Linear(12, 3)).double()
    with torch.no_grad():
        if "relu" in dead:
            net[1].func.b.bias.fill_(-100.0)
        if "weights" in dead:
            net[1].func.d.weight.zero_()
        if "all weights" in dead:
            net[1].func.d.weight.zero_()
            net[1].func.c.weight.zero_()
        if not readout:
            net[2].weight.zero_()
    return net


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dead", ["relu", "weights", "all weights"])
def test_stages_without_points(dead, method, tmp_path):
    net = network(dead=(dead,))
    if method.get("selection") == "deim" and dead != "relu":
        pytest.skip("it interpolates whatever there is to interpolate")
    small = reduce_network(
        net, "1", X, state_dim=5 if dead == "all weights" else 9, points=10, **method, progress=False
    )
    sizes = {part.what: part.reduced for part in small[1].explain().parts[1:]}
    assert sizes["relu(a1)"] == 0 and len(small[1].points["g2"]) == 0
    assert (sizes["tanh(a1)"] == 0) == (dead == "all weights")
    with torch.no_grad():
        assert (small(X) - net(X)).norm() < 0.1 * net(X).norm()
    save(small, tmp_path / "small")
    torch.testing.assert_close(load(tmp_path / "small", network=net)(X), small(X), rtol=0, atol=0)
    export_operators(small[1], tmp_path / "small.npz")
    export_program(small, tmp_path / "small.pt2", X)
    states = net[0](X[:1])
    rom = small[1].rom.output({"initial_state": states.detach().numpy()[0]})
    np.testing.assert_allclose(rom[:, -1], small[1](states).detach().numpy()[0], rtol=1e-9)


def test_output_that_sees_no_state_at_all():
    """Zero gradients: the states are reduced as by POD, and the stages by what the derivative needs."""
    net = network(readout=False)
    small = reduce_network(net, "1", X, state_dim=8, points=10, progress=False)
    assert small[1].explain().errors["layer output"] < 0.1
    torch.testing.assert_close(small(X), net(X))


@pytest.mark.parametrize("speedup", [None, 1.0, 2.0])
def test_nothing_dearer_than_the_full_layer_is_good_enough(speedup):
    full, wish = Trial("full", "rk4", 100.0, 0.0), Wish.of(0.1, speedup, "relative")
    assert wish.is_met(Trial("state 4, points 4", "rk4", 40.0, 0.05), full)
    for cost in (100.0, 140.0):
        assert not wish.is_met(Trial("state 4, points 4", "rk4", cost, 1e-9), full)
        assert not Wish.of(float("inf"), None, "relative").is_met(Trial("state 4, points 4", "rk4", cost, 0.0), full)


@pytest.mark.parametrize("sizes", [{"state_dim": 13}, {"points": 13}, {"points": [13, None]}, {"points": [4]}], ids=str)
def test_sizes_above_the_full_ones_are_refused_in_a_search(sizes):
    with pytest.raises(SizeError, match=r"of at most 12, the full size, got 13|one entry of points for each of the 2"):
        reduce_network(network(), "1", X, max_loss=0.1, progress=False, **sizes)
