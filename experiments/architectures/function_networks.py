"""Networks of the forms that people publish: normalised convolutions, latent trajectories, rates, controlled ODEs."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from torchmor.adapters import ODELayer

CHANNELS, GROUPS = 64, 32


class TimedConvolution(nn.Module):
    """A convolution of 3 × 3 that sees the time as one more channel.

    Parameters
    ----------
    channels
        Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels + 1, channels, kernel_size=3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the convolution of y (batch, channels, height, width) and t."""
        return self.convolution(torch.cat([y, t * torch.ones_like(y[:, :1])], dim=1))


class NormalisedFunction(nn.Module):
    """``norm(conv(relu(norm(conv(relu(norm(y)), t))), t))``, the form of torchdiffeq's example for MNIST.

    Parameters
    ----------
    channels, groups
        Channels of the state, and their groups.
    """

    def __init__(self, channels: int = CHANNELS, groups: int = GROUPS):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(3))
        self.convolutions = nn.ModuleList(TimedConvolution(channels) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt at states y (batch, channels, height, width)."""
        first, second, last = self.norms
        y = self.convolutions[0](t, first(y).relu())
        y = self.convolutions[1](t, second(y).relu())
        return last(y)


class NormalisedOde(nn.Module):
    """Classifies images of 28 × 28 pixels by two strided convolutions, an ODE layer on 64 × 6 × 6, and a pooled head.

    Parameters
    ----------
    classes
        Number of classes.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, CHANNELS, kernel_size=3),
            nn.GroupNorm(GROUPS, CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, kernel_size=4, stride=2, padding=1),
            nn.GroupNorm(GROUPS, CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, kernel_size=4, stride=2, padding=1),
        )
        self.ode = ODELayer(NormalisedFunction(), t=(0.0, 1.0), method="dopri5", rtol=1e-3, atol=1e-3)
        self.head = nn.Sequential(
            nn.GroupNorm(GROUPS, CHANNELS),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(CHANNELS, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (batch, classes) of images (batch, 1, 28, 28)."""
        return self.head(self.ode(self.stem(images)))


class LatentOde(nn.Module):
    """Compresses sequences to a latent state at the start, and reconstructs them along its trajectory.

    The ODE function has three hidden layers of 100 units on a latent state of 15, as in latent ODEs for irregular
    series.

    Parameters
    ----------
    steps, channels
        Of the sequences.
    latent, width
        Sizes of the latent state and of the hidden layers.
    """

    def __init__(self, steps: int, channels: int, latent: int = 15, width: int = 100):
        super().__init__()
        sizes = (latent, width, width, width, latent)
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())][:-1]
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(steps * channels, latent))
        times = torch.linspace(0.0, 1.0, steps)
        self.ode = ODELayer(nn.Sequential(*layers), t=times, method="rk4", output="trajectory")
        self.decoder = nn.Linear(latent, channels)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return reconstructions (batch, steps, channels) of sequences (batch, steps, channels)."""
        return self.decoder(self.ode(self.encoder(sequences))).transpose(0, 1)


class RateFunction(nn.Module):
    """``−y + W tanh(y) + B u``, a rate network whose synapses follow the nonlinearity.

    Parameters
    ----------
    inputs
        Channels p of the input u.
    units
        Size n of the state.
    """

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.recurrent, self.input = nn.Linear(units, units), nn.Linear(inputs, units, bias=False)

    def forward(self, t: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Return dy/dt (batch, n) at states y (batch, n) and inputs u (batch, p)."""
        return self.recurrent(y.tanh()) - y + self.input(u)


class ControlledFunction(nn.Module):
    """``F(y) dX/dt``, the function of a neural controlled differential equation: a matrix that depends on the state.

    Parameters
    ----------
    inputs
        Channels p of the path X.
    units, width
        Sizes of the state and of the hidden layer.
    """

    def __init__(self, inputs: int, units: int, width: int):
        super().__init__()
        self.inputs, self.units = inputs, units
        self.hidden, self.matrix = nn.Linear(units, width), nn.Linear(width, units * inputs)

    def forward(self, t: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Return dy/dt (batch, n) at states y (batch, n) and slopes u = dX/dt (batch, p)."""
        matrix = self.matrix(self.hidden(y).relu()).tanh().view(-1, self.units, self.inputs)
        return torch.einsum("bnp,bp->bn", matrix, u)


class DrivenClassifier(nn.Module):
    """Classifies sequences by the last state of an ODE layer that they drive.

    Parameters
    ----------
    function
        The ODE function f(t, y, u).
    data_shape
        Steps and channels of the sequences.
    units, classes
        Sizes of the state, and of the scores.
    slopes
        Whether u is the slope dX/dt of a sequence X with the time as one more channel, and the state starts from a
        linear map of its first values; otherwise u is X itself, and the state starts from zero.
    horizon
        Length of time that a sequence lasts.
    """

    times: Tensor

    def __init__(
        self,
        function: nn.Module,
        data_shape: tuple[int, int],
        units: int,
        classes: int,
        slopes: bool = False,
        horizon: float = 5.0,
    ):
        super().__init__()
        steps, channels = data_shape
        times = torch.linspace(0.0, horizon, steps)
        self.register_buffer("times", times, persistent=False)
        self.units = units
        self.start = nn.Linear(channels, units) if slopes else None
        self.ode = ODELayer(
            function,
            t=times,  # a step from each to the next
            method="euler",
            interpolation="previous" if slopes else "linear",
        )
        self.head = nn.Linear(units, classes)

    def forward(self, sequences: Tensor) -> Tensor:
        """Return the scores (batch, classes) of sequences (batch, steps, channels)."""
        if self.start is None:
            return self.head(self.ode(sequences.new_zeros(len(sequences), self.units), sequences))
        return self.head(self.ode(self.start(sequences[:, 0]), self._slopes(sequences)))

    def _slopes(self, sequences: Tensor) -> Tensor:
        """Return dX/dt (batch, steps, channels + 1) from each time on to the next."""
        times = self.times.to(sequences).expand(len(sequences), -1)
        path = torch.cat([times.unsqueeze(2), sequences], dim=2)
        slopes = path.diff(dim=1) / times.diff(dim=1).unsqueeze(2)
        return torch.cat([slopes, slopes[:, -1:]], dim=1)
