"""A SciPy user solves exported operators, without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from networks import DOUBLE, chain
from torchmor.adapters import ODELayer, export_operators, reduce_network

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("solve_exported.py")
WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1))"


class Leaky(nn.Module):
    """y' = −y + A tanh(B y + b)."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, t, y):
        return self.outer(torch.tanh(self.inner(y))) - y


@pytest.mark.parametrize(
    "function", [lambda: nn.Sequential(nn.Linear(12, 12), nn.ReLU()), Leaky], ids=["relu", "tanh with decay"]
)
def test_scipy_agrees_with_the_layer(function, tmp_path):
    """The 20-line script agrees with the layer's trajectory to 1e-8."""
    assert len(SCRIPT.read_text().splitlines()) <= 22
    settings = {"t": (0.0, 0.3, 1.0, 2.0), "rtol": 1e-10, "atol": 1e-11, "output": "trajectory"}
    network = chain(stem=nn.Linear(5, 12), ode=ODELayer(function(), **settings)).double()
    x = torch.randn(60, 5, **DOUBLE)
    small = reduce_network(network, "ode", x, state_dim=4, points=6)
    y0 = network.stem(x[:1]).detach()
    operators, state, result = (tmp_path / name for name in ("the operators.npz", "state.npy", "result.npy"))
    export_operators(small.ode, operators)
    np.save(state, y0[0].numpy())
    command = [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT_TORCH, SCRIPT, operators, state, result]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dz/dt = " in done.stdout and "A1_z: 6 x 4" in done.stdout
    expected = small.ode(y0)[:, 0].detach().T
    assert np.abs(np.load(result) - expected.numpy()).max() < 1e-8
