"""The networks that are compared on: fixed here, not picked for a result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchmor.adapters.solving.steps import Steps
from torchmor.experiments.architectures.convolutional_ode import ConvolutionalOde
from torchmor.experiments.architectures.recurrent_ode import RecurrentOde
from torchmor.experiments.data.labelled import DataSet

#: Name of the ODE layer in all networks.
LAYER = "ode"

#: Channels of the state of the convolutional networks, and units of the recurrent ones.
CHANNELS, UNITS = 16, 256

#: Smaller images keep their size in the stem.
SMALL_IMAGE = 16


@dataclass(frozen=True)
class Training:
    """How a network is trained, as :func:`~torchmor.experiments.studies.training.train` takes it.

    Parameters
    ----------
    epochs
        Passes over the training data, at least.
    least_steps
        On small data there are more passes, so that the optimiser makes so many steps.
    batch_size, learning_rate, weight_decay, label_smoothing, solver
        As there.
    """

    epochs: int
    least_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.0
    solver: Steps | None = None

    def epochs_on(self, samples: int) -> int:
        """Return the passes over so many samples."""
        return max(self.epochs, -(-self.least_steps // -(-samples // self.batch_size)))

    def arguments(self, samples: int) -> dict[str, Any]:
        """Return what `train` takes for so many samples."""
        return {key: value for key, value in vars(self).items() if key != "least_steps"} | {
            "epochs": self.epochs_on(samples)
        }

    def words(self, samples: int) -> str:
        """Return the training on so many samples in words."""
        smoothing = f", label smoothing {self.label_smoothing:g}" * bool(self.label_smoothing)
        return (
            f"AdamW, {self.epochs_on(samples)} epochs, batches of {self.batch_size}, one cycle of the learning rate up "
            f"to {self.learning_rate:g}, weight decay {self.weight_decay:g}{smoothing}, the ODE layer with "
            f"{self.solver or 'its own solver'}"
        )


@dataclass(frozen=True)
class NetworkRecipe:
    """A network that is compared on.

    Parameters
    ----------
    key
        Its short name.
    title
        Its name.
    description
        What it consists of, in a sentence.
    build
        Makes the untrained network for a data set.
    training
        How it is trained.
    """

    key: str
    title: str
    description: str
    build: Callable[[DataSet], nn.Module]
    training: Training

    def network(self, data: DataSet, seed: int) -> nn.Module:
        """Return the untrained network; its weights are a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(data)


def ode_layer(network: nn.Module) -> Any:
    """Return the ODE layer of a network, be it full, reduced or pruned."""
    return network.get_submodule(LAYER)


def digits_network(seed: int = 0) -> ConvolutionalOde:
    """Return the untrained network of the demo: 1,024 states, 16 channels of 8 × 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = nn.Sequential(nn.Conv2d(1, CHANNELS, kernel_size=3, padding=1), nn.ReLU())
        return ConvolutionalOde(stem, nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 8 * 8, 10)), CHANNELS)


def _first_convolution(data: DataSet) -> tuple[nn.Conv2d, int, int]:
    channels, height, width = data.train.inputs.shape[1:]
    if min(height, width) < SMALL_IMAGE:
        return nn.Conv2d(channels, CHANNELS, kernel_size=3, padding=1), height, width
    return nn.Conv2d(channels, CHANNELS, kernel_size=4, stride=2, padding=1), height // 2, width // 2


def _linear(data: DataSet) -> ConvolutionalOde:
    stem, height, width = _first_convolution(data)
    return ConvolutionalOde(
        stem, nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * height * width, data.classes)), CHANNELS
    )


def _stronger(data: DataSet) -> ConvolutionalOde:
    first, height, width = _first_convolution(data)
    head = nn.Sequential(
        nn.Conv2d(CHANNELS, 2 * CHANNELS, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * CHANNELS * (height // 2) * (width // 2), data.classes),
    )
    return ConvolutionalOde(nn.Sequential(first, nn.ReLU()), head, CHANNELS)


def _recurrent(leak: bool) -> Callable[[DataSet], RecurrentOde]:
    def build(data: DataSet) -> RecurrentOde:
        _, steps, inputs = data.train.inputs.shape
        return RecurrentOde(inputs, steps, UNITS, data.classes, leak)

    return build


# the step solves the ODE to about the tolerance of its own solver, with which training would take five times as long
_IMAGES = Training(
    epochs=8, least_steps=1000, batch_size=128, learning_rate=1e-3, weight_decay=1e-2, solver=Steps("rk4", 1)
)
_SEQUENCES = Training(epochs=5, least_steps=1000, batch_size=32, learning_rate=5e-3, weight_decay=0.1)

#: The networks of `torchmor convolutional`.
CONVOLUTIONAL = (
    NetworkRecipe(
        "a",
        "Linear around the ODE",
        f"A convolution of 4 × 4 with stride 2 makes {CHANNELS} channels of an image (3 × 3 without stride where "
        f"images have fewer than {SMALL_IMAGE} pixels a side), the ODE layer moves them by y' = tanh(K ∗ y + b) with a "
        "convolution K of 3 × 3 from t = 0 to t = 1, and a linear map reads the class off the result.",
        _linear,
        _IMAGES,
    ),
    NetworkRecipe(
        "b",
        "Nonlinear around the ODE",
        "The same ODE layer between nonlinear parts: after the first convolution comes a ReLU, and the result is read "
        f"by a strided convolution of 4 × 4 to {2 * CHANNELS} channels, a ReLU and a linear map.",
        _stronger,
        _IMAGES,
    ),
)

#: The networks of `torchmor recurrent`.
RECURRENT = (
    NetworkRecipe(
        "c",
        "With leak",
        f"{UNITS} units start from zero and are driven by the sequence u: y' = −y + tanh(A y + b) + Z u, from t = 0 to "
        "t = 5, with as many Euler steps as the sequence has; a linear map reads the class off the last state.",
        _recurrent(leak=True),
        _SEQUENCES,
    ),
    NetworkRecipe(
        "d",
        "Without leak",
        "The same with y' = tanh(A y + b) + Z u, the classic form: the state forgets nothing by itself.",
        _recurrent(leak=False),
        _SEQUENCES,
    ),
)
