"""Divisors that are clamped go wherever a reduced layer goes: to files, exports, and words."""

import numpy as np
import torch
from torch import nn

from torchmor.adapters import ODELayer, export_onnx, load, reduce_network, save
from torchmor.adapters.export.operators import operators
from torchmor.engine import functions


class Gated(nn.Module):
    """W2 tanh(GN(W1 y) σ(W3 y))"""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 12)
        self.normalise = nn.GroupNorm(3, 24)

    def forward(self, t, y):
        return self.last(torch.tanh(self.normalise(self.first(y)) * torch.sigmoid(self.gate(y))))


def reduced(points):
    torch.manual_seed(0)
    network = nn.Sequential(ODELayer(Gated(), t=(0.0, 1.0), method="midpoint")).double()
    y = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 12, dtype=torch.float64)
    return reduce_network(network, "0", y, state_dim=4, points=points), y


def test_statistics_of_gated_normalisations_are_absorbed():
    """Of a quotient of three arguments, as of one of two."""
    small, _ = reduced(10)
    assert [(part.fate, part.reduced) for part in small[0].explain().parts] == [
        ("reduced", 4),
        ("absorbed", 0),
        ("absorbed", 0),
        ("reduced", 10),
    ]
    assert [expression.text(["q", "a"]) for expression in small[0].ode.expressions] == ["tanh(q * sigmoid(a))"]


def test_clamped_divisors_are_saved_exported_and_written(tmp_path):
    small, y = reduced([10, "full", 10])
    expected = small(y).detach()
    text = str(small[0].ode)
    assert "sqrt(clamp(relu(a1) + 1e-05, min=" in text and "a1 / clamp(a2, min=" in text

    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", nn.Sequential(nn.Identity()))
    torch.testing.assert_close(again(y), expected, rtol=0, atol=0)

    export_onnx(small, tmp_path / "small.onnx", y, verbose=False)  # compares what the file computes with the module

    entries = operators(small[0])
    names = dict(entries, **functions.VALUES)
    z = names["z"] = entries["E"] @ y[0].numpy() + entries["e"]
    for line in str(entries["equation"]).splitlines():
        name, value = line.split(" = ", 1)
        if name[0] in "ag":
            for source in ("z", "g1", "g2", "g3"):
                value = value.replace(f"_{source} {source}", f"_{source} @ {source}")
            names[name] = eval(value, {}, names)
    derivative = names["B_g3"] @ names["g3"] + names["b"] + (names["B_z"] @ z if "B_z" in names else 0.0)
    np.testing.assert_allclose(derivative, small[0].ode(torch.tensor(z)[None]).detach()[0], rtol=1e-10)
