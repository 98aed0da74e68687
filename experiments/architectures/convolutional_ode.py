"""A classifier of images with an ODE layer of one convolution."""

from torch import Tensor, nn

from torchmor.adapters import ODELayer


class ConvolutionalOde(nn.Module):
    """Classifies images by a stem, an ODE layer ``y' = tanh(K ∗ y + b)``, and a head.

    Parameters
    ----------
    stem
        Makes the state (batch, channels, height, width) of images.
    head
        Makes scores (batch, classes) of the state at the end.
    channels
        Channels of the state; K is a convolution of 3 × 3.
    """

    def __init__(self, stem: nn.Module, head: nn.Module, channels: int):
        super().__init__()
        self.stem = stem
        self.ode = ODELayer(
            nn.Sequential(nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.Tanh()),
            t=(0.0, 1.0),
            method="dopri5",
            rtol=1e-3,
            atol=1e-3,
        )
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (batch, classes) of images (batch, channels, height, width)."""
        return self.head(self.ode(self.stem(images)))
