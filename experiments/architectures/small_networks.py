"""Small classifiers of digits, and networks that are trained in a second."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from torchmor.adapters import ODELayer

CHANNELS, GROUPS, PIXELS, CLASSES = 16, 4, 8, 10


def between(stem: nn.Module, function: nn.Module, head: nn.Module) -> nn.Sequential:
    """Return a network of a stem, an ODE layer ``y' = function(y)`` from t = 0 to t = 1, and a head."""
    layer = ODELayer(function, t=(0.0, 1.0), method="dopri5", rtol=1e-3, atol=1e-3)
    return nn.Sequential(OrderedDict(stem=stem, ode=layer, head=head))


def dense_network(units: int = 128) -> nn.Sequential:
    """Return an untrained classifier of digits whose ODE function is a perceptron, ``W₂ tanh(W₁ y + b₁) + b₂``."""
    function = nn.Sequential(nn.Linear(units, units), nn.Tanh(), nn.Linear(units, units))
    stem = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS * PIXELS, units), nn.Tanh())
    return between(stem, function, nn.Linear(units, CLASSES))


def grouped_network() -> nn.Sequential:
    """Return an untrained classifier of digits with ``y' = norm(K ∗ relu(norm(y)) + b)``, normalised by groups."""
    function = nn.Sequential(
        nn.GroupNorm(GROUPS, CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1),
        nn.GroupNorm(GROUPS, CHANNELS),
    )
    stem = nn.Conv2d(1, CHANNELS, kernel_size=3, padding=1)
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(CHANNELS * PIXELS * PIXELS, CLASSES))
    return between(stem, function, head)


def tiny_network(inputs: int, outputs: int, units: int) -> nn.Sequential:
    """Return an untrained network of vectors (batch, inputs) with ``y' = tanh(W y + b)``."""
    function = nn.Sequential(nn.Linear(units, units), nn.Tanh())
    return between(nn.Linear(inputs, units), function, nn.Linear(units, outputs))


class RandomMap(nn.Module):
    """A smooth random function of vectors: ``B sin(A x)``.

    Parameters
    ----------
    inputs, outputs
        Sizes.
    waves
        Number of sines.
    """

    def __init__(self, inputs: int, outputs: int, waves: int = 32):
        super().__init__()
        self.a, self.b = torch.randn(waves, inputs), torch.randn(outputs, waves) / waves**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Return values (batch, outputs) at x (batch, inputs)."""
        return (x @ self.a.T).sin() @ self.b.T
