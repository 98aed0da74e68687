"""The networks that are compared on: fixed here, not picked for a result."""

import torch
from torch import Tensor, nn

from torchmor.adapters import ODELayer


class ConvolutionalOde(nn.Module):
    """Classifies images by a convolution with ReLU, an ODE layer ``y' = tanh(K ∗ y + b)``, and a linear map.

    Parameters
    ----------
    shape
        (channels, height, width) of an image.
    channels
        Channels of the state.
    classes
        Number of classes.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 8, 8), channels: int = 16, classes: int = 10):
        super().__init__()
        inputs, height, width = shape
        self.stem = nn.Sequential(nn.Conv2d(inputs, channels, kernel_size=3, padding=1), nn.ReLU())
        self.ode = ODELayer(
            nn.Sequential(nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.Tanh()),
            t=(0.0, 1.0),
            method="dopri5",
            rtol=1e-3,
            atol=1e-3,
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (batch, classes) of images (batch, channels, height, width)."""
        return self.head(self.ode(self.stem(images)))


def digits_network(seed: int = 0) -> ConvolutionalOde:
    """Return the untrained network for the digits: 1,024 states, 16 channels of 8 × 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvolutionalOde()
