"""What an experiment found, for its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import find_layer
from torchmor.experiments.measure.comparison import Row


@dataclass(frozen=True, eq=False)
class Showcase:
    """Networks to draw pictures of.

    Parameters
    ----------
    full
        A trained network.
    reduced
        Method → the network reduced by it; all to the same sizes.
    name
        Name of the ODE layer in all of them.
    inputs
        Some validation inputs (k, …).
    """

    full: nn.Module
    reduced: Mapping[str, nn.Module]
    name: str
    inputs: Tensor

    @property
    def layer(self) -> ODELayer:
        """The full ODE layer."""
        return find_layer(self.full, self.name)

    @property
    def reduced_layers(self) -> dict[str, Any]:
        """Method → the layer reduced by it."""
        return {method: small.get_submodule(self.name) for method, small in self.reduced.items()}


@dataclass(frozen=True, eq=False)
class NetworkResult:
    """What was found on one network.

    Parameters
    ----------
    key
        Its short name, like "a".
    title
        Its name, like "Linear stem".
    description
        Sentences: what it consists of, and how it was trained.
    rows
        Seed → rows; the first row of each is the full network with its own solver. The rows of the first seed have
        times, on one yardstick; those of the others have none.
    failures
        What could not be measured, in sentences.
    showcase
        For the pictures.
    """

    key: str
    title: str
    description: str
    rows: Mapping[int, Sequence[Row]]
    failures: Sequence[str]
    showcase: Showcase

    @property
    def heading(self) -> str:
        """Its name in a report."""
        return f"Network {self.key}: {self.title}"
