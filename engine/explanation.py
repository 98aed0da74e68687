"""What a reduction did, in numbers and words. Pure Python: it travels with saved layers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from torchmor.engine.findings import Clock, ConfirmedLoss, Tuning
from torchmor.engine.text_table import text_table

Fate = Literal["reduced", "kept", "absorbed"]


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
        In the metric of the search, on validation data.

    Cost and loss are infinite where there was no solution.
    """

    sizes: str
    solver: str
    cost: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return the trial as plain data, null for infinity: JSON has none."""
        return {key: None if value == math.inf else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """Return the trial of `to_json`."""
        read: dict[str, Any] = {key: math.inf if value is None else value for key, value in data.items()}
        return cls(**read)


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
    """What `reduce_network` did to a layer; ``print(layer.explain())`` to read it.

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
        now = replace(self, errors={}, steps=None, confirmed=None, clock=None, since=since, fingerprint=fingerprint, solver=solver)
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
        read = {
            "parts": tuple(map(Part.from_json, data["parts"])),
            "operations": tuple(data["operations"]),
            "curve": tuple(map(Trial.from_json, data.get("curve", ()))),
            "chosen": Trial.from_json(data["chosen"]) if data.get("chosen") else None,
            "steps": EqualSteps(**data["steps"]) if data.get("steps") else None,
            "confirmed": ConfirmedLoss(**data["confirmed"]) if data.get("confirmed") else None,
            "tuning": Tuning.from_json(data["tuning"]) if data.get("tuning") else None,
            "clock": Clock.from_json(data["clock"]) if data.get("clock") else None,
        }
        known = {field.name for field in fields(cls)}  # a later version may tell more
        return cls(**{key: value for key, value in {**data, **read}.items() if key in known})

    @property
    def frontier(self) -> list[Trial]:
        """Entries of the curve that no other beats in cost and loss, the cheapest first."""
        found: list[Trial] = []
        for trial in sorted(self.curve, key=lambda trial: (trial.cost, trial.loss)):
            if not found or trial.loss < found[-1].loss:
                found.append(trial)
        return found

    @property
    def _unmeasured(self) -> set[str]:
        """Names of the parts that were fitted with nothing held out."""
        fitted = self.method.get("fit") == "least_squares" and any(part.fate == "reduced" for part in self.parts[1:])
        measured = any(part.error is not None for part in self.parts)
        return {part.name for part in self.parts if fitted and not measured and part.fate == "reduced"}

    def _table(self) -> list[str]:
        """Return the parts as lines of text, without columns in which nothing stands."""
        total, unmeasured = sum(part.operations or 0 for part in self.parts), self._unmeasured
        columns = {
            "part": [part.name for part in self.parts],
            "function": [_shortened(part.what) for part in self.parts],
            "reads": [", ".join(part.reads) for part in self.parts],
            "full": [f"{part.full:,}" for part in self.parts],
            "reduced": [f"{part.reduced:,}" for part in self.parts],
            "error": ["not measured" if part.name in unmeasured else _short(part.error) for part in self.parts],
            "share": [f"{100 * (part.operations or 0) / total:.0f} %" if total else "-" for part in self.parts],
            "dropped": [_short(part.dropped_energy) for part in self.parts],
            "constant": [_short(part.constant) for part in self.parts],
            "why": [part.why for part in self.parts],
        }
        columns = {name: cells for name, cells in columns.items() if set(cells) - {"", "-"}}
        right = [i for i, name in enumerate(columns) if name in _NUMBERS]
        return text_table([tuple(columns), *zip(*columns.values(), strict=True)], right)

    def __str__(self) -> str:
        before, after = self.operations
        held_out = ", ".join(f"{name} {_short(error)}" for name, error in self.errors.items())
        return "\n".join(
            [
                "Reduced ODE layer: " + ", ".join(f"{key} {value}" for key, value in self.method.items()),
                f"solver: {self.solver}" + (f"; {self._steps_words()}" if self.steps else ""),
                *([f"since the reduction: {self.since}"] if self.since else []),
                f"calibration: {self.snapshots:,} snapshots of {self.samples:,} samples, "
                f"{self.evaluations:,} evaluations of the ODE function in a forward pass",
                "",
                *self._table(),
                "",
                f"one evaluation of the ODE function: {before:,} -> {after:,} multiply-adds for each sample"
                + (f" ({before / after:.3g} times fewer)" if after and before > after else ""),
                f"relative error on held-out calibration data: {held_out or 'not measured'}",
                *self._legend(),
                *self._curve_lines(),
            ]
        )

    def _steps_words(self) -> str:
        assert self.steps is not None
        return (
            f"{self.steps.count} equal steps of {self.steps.method} do the same within its tolerances (relative "
            f"difference {_short(self.steps.error)})"
        )

    def _legend(self) -> list[str]:
        words: dict[str, list[float | None]] = {
            "error: of what reads the stage (of the state: of its derivative), on snapshots held out of its fit": [
                part.error for part in self.parts
            ],
            "share: of the multiply-adds of one evaluation": [part.operations for part in self.parts],
            "dropped energy: relative squared projection error (of a balanced basis: as the output sees it)": [
                part.dropped_energy for part in self.parts
            ],
            "constant: the interpolation error is at most this times the best possible": [
                part.constant for part in self.parts
            ],
        }
        return [line for line, values in words.items() if any(value is not None for value in values)]

    def _curve_lines(self) -> list[str]:
        if not self.curve:
            return []
        full = self.curve[0].cost
        rows = [("network", "times less cost", f"loss ({self.metric})")]
        for trial in self.frontier:
            mark = "  chosen" if trial == self.chosen else ""
            gain = f"{full / trial.cost:.3g}"
            rows.append((f"{trial.sizes}, {trial.solver}", gain, f"{_short(trial.loss):>8}{mark}"))
        return [
            "",
            f"search: {len(self.curve)} networks tried on validation data{', before that' if self.since else ''}; "
            "those that no other beats:",
            *text_table(rows, right=[1]),
        ]

    __repr__ = __str__


#: Columns of numbers, and how much is shown of a function.
_NUMBERS = ("full", "reduced", "error", "share", "dropped", "constant")
_WIDEST = 34


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
