"""A classifier of sequences with an ODE layer that is driven by them."""

import torch
from torch import Tensor, nn

from torchmor.adapters import ODELayer


class RecurrentFunction(nn.Module):
    """The ODE function of a rate network driven by inputs: ``tanh(A y + b) + Z u``, with leak ``− y`` more.

    Parameters
    ----------
    inputs
        Channels p of the input u.
    units
        Size n of the state.
    leak
        Whether the state decays by itself.
    """

    def __init__(self, inputs: int, units: int, leak: bool):
        super().__init__()
        self.recurrent = nn.Linear(units, units)
        self.activation = nn.Tanh()
        self.input = nn.Linear(inputs, units, bias=False)
        self.leak = leak

    def forward(self, t: Tensor | float, y: Tensor, u: Tensor) -> Tensor:
        """Return dy/dt (batch, n) at states y (batch, n) and inputs u (batch, p)."""
        change = self.activation(self.recurrent(y)) + self.input(u)
        return change - y if self.leak else change


class RecurrentOde(nn.Module):
    """Classifies sequences by an ODE layer that is driven by them, and a linear map of its last state.

    Parameters
    ----------
    inputs
        Channels p of a sequence.
    steps
        Time steps of a sequence; the layer's own solver takes as many Euler steps.
    units
        Size n of the state.
    classes
        Number of classes.
    leak
        Whether the state decays by itself, as in :class:`RecurrentFunction`.
    horizon
        Length of time that a sequence lasts.
    """

    def __init__(self, inputs: int, steps: int, units: int, classes: int, leak: bool, horizon: float = 5.0):
        super().__init__()
        self.ode = ODELayer(
            RecurrentFunction(inputs, units, leak),
            t=(0.0, horizon),
            method="euler",
            options={"step_size": horizon / steps},
            input_times=torch.linspace(0.0, horizon, steps),
        )
        self.head = nn.Linear(units, classes)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return the scores (batch, classes) of sequences (batch, steps, p)."""
        state = sequences.new_zeros(len(sequences), self.head.in_features)
        return self.head(self.ode(state, sequences))
