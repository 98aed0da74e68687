"""What a reduction did, in numbers and words. Pure Python: it travels with saved layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from torchmor.engine.errors import MissingPackageError
from torchmor.engine.explanation_html import as_html
from torchmor.engine.explanation_text import as_text
from torchmor.engine.findings import Clock, ConfirmedLoss, Tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Fate = Literal["reduced", "kept", "absorbed"]

#: So many singular values of a part are kept, the largest.
MOST_SINGULAR_VALUES = 512


@dataclass(frozen=True)
class Part:
    """What became of the state, or of one stage of the ODE function.

    Parameters
    ----------
    name
        "state", or the stage's name.
    what
        The function in words, for example ``tanh(a1)``.
    full
        Size before: state dimension n, or components of the stage.
    reduced
        Size after: r, or the number m of evaluated points.
    fate
        What became of it: "reduced", "kept", or "absorbed" by the fit of what reads it.
    how
        How the size came about, or why the part was kept.
    dropped_energy
        Relative squared projection error of the calibration snapshots; None where nothing was dropped.
    constant
        Interpolation constant of a stage.
    condition
        Condition number of its interpolation matrix.
    reads
        What feeds the stage: names of the sources of its argument.
    error
        Largest relative error of what reads the stage, and of the projected derivative for the state, without its
        mean, on the fifth of the calibration samples that was held out of the fit; None where nothing was fitted, or
        a single sample left nothing to hold out.
    operations
        Multiply–adds, for each sample, of the argument of the reduced stage; for the state, of the map to the
        derivative. They sum up to those of one evaluation.
    """

    name: str
    what: str
    full: int
    reduced: int
    fate: Fate
    how: str = ""
    dropped_energy: float | None = None
    constant: float | None = None
    condition: float | None = None
    reads: tuple[str, ...] = ()
    error: float | None = None
    operations: int | None = None

    @property
    def why(self) -> str:
        """How the size came about, or why the part was kept, as a phrase."""
        return {"reduced": self.how, "kept": f"kept: {self.how}", "absorbed": "absorbed by the fit after it"}[self.fate]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Part:
        """Return the part of plain data; in files of torchmor 0.1 the phrase tells the fate."""
        data = {**data, "reads": tuple(data.get("reads", ()))}
        if "why" in data:
            fate, _, how = data.pop("why").partition(": ")
            known = {"kept": ("kept", how), "absorbed by the fit after it": ("absorbed", "")}
            data["fate"], data["how"] = known.get(fate, ("reduced", fate))
        return cls(**data)


@dataclass(frozen=True)
class Trial:
    """A network that the search for sizes tried.

    Parameters
    ----------
    sizes
        "full", or the reduced sizes in words.
    solver
        The solver in words.
    cost
        Multiply–adds and bytes of a forward pass of the layer, for each sample, in multiply–adds.
    loss
        In the metric of the search, on data to choose by.
    tuned
        Whether the reduced operators were tuned.

    Cost and loss are infinite where there was no solution.
    """

    sizes: str
    solver: str
    cost: float
    loss: float
    tuned: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the trial as plain data, null for infinity: JSON has none."""
        return {key: None if value == math.inf else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """Return the trial of `to_json`."""
        read: dict[str, Any] = {key: math.inf if value is None else value for key, value in data.items()}
        return cls(**read)


def frontier(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials that no other beats in cost and loss, the cheapest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.cost, trial.loss)):
        if not found or trial.loss < found[-1].loss:
            found.append(trial)
    return found


#: Metrics of the classes that outputs stand for, rather than of their values.
CLASS_METRICS = ("agreement", "accuracy")


@dataclass(frozen=True)
class EqualSteps:
    """Equal steps that were tried in the place of an adaptive solver, on held-out calibration data.

    Parameters
    ----------
    method, count
        The method, and how many steps over the layer's whole time.
    error
        Relative difference of the layer's output to that of its own solver.
    """

    method: str
    count: int
    error: float


@dataclass(frozen=True)
class Explanation:
    """What `reduce_network` did to a layer; ``print(layer.explain())`` to read it, :meth:`plot` to see it.

    Parameters
    ----------
    parts
        The state, and the stages in the order of evaluation.
    method
        Names of basis, selection and fit.
    solver
        The solver's settings in words.
    snapshots
        Number of snapshots used.
    samples
        Number of calibration samples they come from.
    evaluations
        Evaluations of the ODE function for one forward pass, before the reduction.
    operations
        Multiply–adds of one evaluation for one sample, (before, after).
    errors
        Relative errors on held-out calibration data, by name.
    metric
        What losses are measured by.
    curve
        What the search for sizes tried, the full network first; empty for given sizes.
    chosen
        The entry of the curve that was taken.
    steps
        The cheapest equal steps known to do what the adaptive solver does, within its tolerances; None if none are.
    since
        What changed the layer after the reduction, in words; of it only what was measured again stands here.
    fingerprint
        Checksum of the parameters that all this was measured with; "" in files that have none.
    confirmed
        The loss on data that neither the fit nor the choice has seen; None where it was not measured.
    tuning
        How the operators were tuned to the full network's outputs; None if they were not.
    clock
        Times beside the full network's; None where they were not measured.
    singular_values
        Of the "state" and of stages by name, as far as they were computed, the largest `MOST_SINGULAR_VALUES`.
    points
        Evaluated components of stages by name, as indices into the flattened stage.
    state_shape
        Shape of one sample's state; () in files of earlier versions, which have no singular values and points.
    """

    parts: tuple[Part, ...]
    method: dict[str, str]
    solver: str
    snapshots: int
    samples: int
    evaluations: int
    operations: tuple[int, int]
    errors: dict[str, float]
    metric: str = "relative"
    curve: tuple[Trial, ...] = ()
    chosen: Trial | None = None
    steps: EqualSteps | None = None
    since: str = ""
    fingerprint: str = ""
    confirmed: ConfirmedLoss | None = None
    tuning: Tuning | None = None
    clock: Clock | None = None
    singular_values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    points: dict[str, tuple[int, ...]] = field(default_factory=dict)
    state_shape: tuple[int, ...] = ()

    @property
    def loss(self) -> float | None:
        """The loss on data that neither the fit nor the choice has seen; None where it was not measured."""
        return None if self.confirmed is None else self.confirmed.loss

    @property
    def bound(self) -> float | None:
        """The upper bound of :attr:`loss` that holds with its confidence; None where there is none."""
        return None if self.confirmed is None else self.confirmed.bound

    def as_of(self, fingerprint: str, solver: str) -> Explanation:
        """Return the explanation of the layer with these parameters and this solver; what is not known of it is gone.

        Law: it is the explanation itself if they are those it was measured with.
        """
        trained = self.fingerprint not in ("", fingerprint)
        if not trained and solver == self.solver:
            return self
        changes = ["its parameters were changed"] if trained else []
        changes += [] if solver == self.solver else [f"its solver was {self.solver}"]
        since = "; ".join([*([self.since] if self.since else []), f"{' and '.join(changes)}: not measured since"])
        now = replace(
            self, errors={}, steps=None, confirmed=None, clock=None, since=since, fingerprint=fingerprint, solver=solver
        )
        return now.without_fits() if trained else now

    def without_fits(self) -> Explanation:
        """Return the explanation without what is true of the parameters that the reduction found only."""
        gone: dict[str, Any] = {"error": None, "dropped_energy": None, "constant": None, "condition": None}
        return replace(self, parts=tuple(replace(part, **gone) for part in self.parts))

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as plain data."""
        return asdict(self) | {
            "curve": [trial.to_json() for trial in self.curve],
            "chosen": self.chosen.to_json() if self.chosen else None,
            "clock": self.clock.to_json() if self.clock else None,
            "tuning": self.tuning.to_json() if self.tuning else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Explanation:
        """Return the explanation of `to_json`."""
        read: dict[str, Any] = {
            "parts": tuple(map(Part.from_json, data["parts"])),
            "operations": tuple(data["operations"]),
            "curve": tuple(map(Trial.from_json, data.get("curve", ()))),
            "chosen": Trial.from_json(data["chosen"]) if data.get("chosen") else None,
            "steps": EqualSteps(**data["steps"]) if data.get("steps") else None,
            "confirmed": ConfirmedLoss(**data["confirmed"]) if data.get("confirmed") else None,
            "tuning": Tuning.from_json(data["tuning"]) if data.get("tuning") else None,
            "clock": Clock.from_json(data["clock"]) if data.get("clock") else None,
            "state_shape": tuple(data.get("state_shape", ())),
        }
        for name in ("singular_values", "points"):
            read[name] = {part: tuple(values) for part, values in data.get(name, {}).items()}
        known = {one.name for one in fields(cls)}  # a later version may tell more
        return cls(**{key: value for key, value in {**data, **read}.items() if key in known})

    @property
    def frontier(self) -> list[Trial]:
        """Entries of the curve that no other beats in cost and loss, the cheapest first."""
        return frontier(self.curve)

    def plot(self) -> Figure:
        """Draw the curve of the search with the choice, singular values with the sizes, and where stages are evaluated.

        Returns
        -------
        matplotlib.figure.Figure
            ``figure.savefig("reduction.png")`` writes it; a notebook shows it after ``import matplotlib.pyplot``.

        Raises
        ------
        MissingPackageError
            Matplotlib is not installed.
        """
        try:
            from torchmor.engine.explanation_figure import drawn
        except ImportError as error:
            raise MissingPackageError(
                f"expected Matplotlib to draw with, {error.name} is missing: pip install 'torchmor[experiments]'"
            ) from error
        return drawn(self)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    __repr__ = __str__
