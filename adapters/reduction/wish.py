"""What a search is asked for: a loss and a cost, and which of two networks answers that better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchmor.adapters.reduction.metrics import Metric
from torchmor.engine.explanation import Trial

#: Largest losses where none is given, by metric.
MAX_LOSSES = {"relative": 0.02, "agreement": 0.01, "accuracy": 0.005}


@dataclass(frozen=True)
class Wish:
    """The cheapest network within a loss; or, with a speed-up, the most accurate one that is so much cheaper.

    Parameters
    ----------
    max_loss
        Largest loss; infinity for any.
    speedup
        How many times less the layer has to cost than the full one with its own solver; None if it need only be less.
    metric
        Of the loss.
    """

    max_loss: float
    speedup: float | None
    metric: Metric

    @classmethod
    def of(cls, max_loss: float | None, speedup: float | None, metric: Metric) -> Wish:
        """Return the wish of a user.

        Parameters
        ----------
        max_loss
            None for :data:`MAX_LOSSES`; for any, where a speed-up is asked for.

        Raises
        ------
        ValueError
            A number is impossible, or a metric of one's own comes without any.
        """
        for value, words, least in ((max_loss, "max_loss", 0), (speedup, "speedup", 1)):
            if value is not None and not value >= least:
                raise ValueError(f"expected {words} to be at least {least}, got {value!r}")
        if max_loss is None and speedup is None and callable(metric):
            raise ValueError(
                "expected max_loss, or speedup, with a metric that is a function, got none: only you know its scale"
            )
        if max_loss is None:
            max_loss = math.inf if speedup is not None else MAX_LOSSES[str(metric)]
        return cls(max_loss, speedup, metric)

    def most_cost(self, full: Trial) -> float:
        """Return the most that a layer may cost, by the trial of the full network with its own solver."""
        return full.cost / (self.speedup or 1.0)

    def is_met(self, trial: Trial, full: Trial) -> bool:
        """Whether a network is accurate enough, and cheaper than the full one, or so much cheaper."""
        return trial.loss <= self.max_loss and trial.cost <= self.most_cost(full) and trial.cost < full.cost

    def rank(self, trial: Trial) -> tuple[float, float]:
        """Return what is smaller for a better network, of those that meet the wish."""
        values = (trial.cost, trial.loss)
        return values if self.speedup is None else values[::-1]

    @property
    def words(self) -> str:
        """The wish as a phrase."""
        asked = [f"a loss of at most {self.max_loss:g}"] * (self.max_loss < math.inf)
        asked += [f"{self.speedup:g} times less cost"] if self.speedup is not None else []
        return " and ".join(asked) or "less cost than the full layer"
