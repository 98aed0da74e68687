"""What was found out about a reduced network after its sizes were chosen: how it was tuned, its loss, its speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: Where the loss on other data is so many times that on what was trained on, more data would help.
MEMORISED = 2.0


@dataclass(frozen=True)
class Tuning:
    """How reduced operators were tuned to the full network's outputs.

    Parameters
    ----------
    before, after
        Squared error of the network's output relative to its variance, for classes plus the divergence from the full
        network's, on data that was not trained on; infinite where there was no solution.
    trained
        The same at the end, on the data that was trained on.
    epochs, samples
        Passes over the data, and its samples, those that were made of others too.
    seconds
        What it took.
    teacher
        The full layer's solver in training, in words.
    augment
        What further samples were made by: "none", "mix", or "a function".
    learning_rate
        The rate that was best.
    steps, left_out
        Steps of training, and how many of them had no finite loss or gradient, and were left out.
    """

    before: float
    after: float
    trained: float
    epochs: int
    samples: int
    seconds: float
    teacher: str
    augment: str
    learning_rate: float
    steps: int = 0
    left_out: int = 0

    @property
    def wants_data(self) -> bool:
        """Whether more calibration data would help: the loss is much smaller on what was trained on."""
        return self.after > MEMORISED * self.trained

    def to_json(self) -> dict[str, Any]:
        """Return the tuning as plain data, null for infinity: JSON has none."""
        return {key: None if value == math.inf else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tuning:
        """Return the tuning of `to_json`."""
        read: dict[str, Any] = {key: math.inf if value is None else value for key, value in data.items()}
        return cls(**read)


@dataclass(frozen=True)
class ConfirmedLoss:
    """A loss on data that neither the fit nor the choice has seen.

    Parameters
    ----------
    loss
        In the metric of the reduction.
    bound
        One-sided upper bound of the loss on data like this; None where the metric has no samples.
    confidence
        Of the bound.
    samples
        Number of samples.
    """

    loss: float
    bound: float | None
    confidence: float
    samples: int


@dataclass(frozen=True)
class TimedCall:
    """Median time of a forward pass.

    Parameters
    ----------
    network
        "reduced", or "full".
    solver
        The ODE layer's solver in words.
    part
        Whether the ODE layer alone was called, or the whole network.
    batch
        Number of samples.
    seconds
        Wall time.
    """

    network: Literal["reduced", "full"]
    solver: str
    part: Literal["layer", "network"]
    batch: int
    seconds: float


@dataclass(frozen=True)
class Clock:
    """Times of a reduced network and of the full one, measured in turns in one process.

    Parameters
    ----------
    calls
        What was timed: the reduced network first, then the full one with its own solver, then with the cheapest coarse
        steps that are good enough, if there are any.
    threads
        Threads of torch.
    device
        Where it ran, as "cpu".
    """

    calls: tuple[TimedCall, ...]
    threads: int
    device: str

    def gains(self, part: Literal["layer", "network"], batch: int) -> dict[str, float]:
        """Return, for each solver of the full network, how many times as fast the reduced one is, where both ran."""
        found = [call for call in self.calls if (call.part, call.batch) == (part, batch)]
        reduced = [call.seconds for call in found if call.network == "reduced"]
        return {call.solver: call.seconds / reduced[0] for call in found if call.network == "full" and reduced}

    @property
    def batches(self) -> list[int]:
        """The numbers of samples, in their order."""
        return list(dict.fromkeys(call.batch for call in self.calls))

    def to_json(self) -> dict[str, Any]:
        """Return the times as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Clock:
        """Return the times of `to_json`."""
        calls: Sequence[dict[str, Any]] = data["calls"]
        return cls(tuple(TimedCall(**call) for call in calls), data["threads"], data["device"])
