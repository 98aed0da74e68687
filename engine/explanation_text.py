"""What an explanation says: first of the network, in the words of its user, then the details. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from torchmor.engine.findings import Clock, Tuning
from torchmor.engine.text_table import text_table

if TYPE_CHECKING:
    from torchmor.engine.explanation import Explanation

#: Columns of numbers, and how much is shown of a function.
_NUMBERS = ("full", "reduced", "error", "share", "dropped", "constant")
_WIDEST = 34

#: So many stages are named in the line of sizes.
_MOST_NAMED = 6


class Table(NamedTuple):
    """Rows of cells, the headings first, and which columns are aligned to the right."""

    rows: Sequence[tuple[str, ...]]
    right: Sequence[int] = ()


def as_text(explanation: Explanation) -> str:
    """Return an explanation as lines of text."""
    lines = [f"{label}: {text}" for label, text in headlines(explanation)]
    lines += ["", "details", *(f"{label}: {text}" for label, text in details(explanation))]
    lines += ["", *text_table(*parts_table(explanation)), *legend(explanation)]
    if explanation.curve:
        lines += ["", f"{curve_caption(explanation)}:", *text_table(*curve_table(explanation))]
    return "\n".join(lines)


def headlines(explanation: Explanation) -> list[tuple[str, str]]:
    """Return what users ask first, as labels with texts: loss, error, speed, tuning and sizes."""
    found = [*_loss(explanation), ("relative error on held-out calibration data", _errors(explanation))]
    if explanation.since:
        found.append(("since the reduction", explanation.since))
    if explanation.clock is not None:
        found += _speeds(explanation.clock)
    if explanation.tuning is not None:
        found.append(("tuning", _tuning(explanation.tuning)))
    return [*found, ("sizes", _sizes(explanation))]


def details(explanation: Explanation) -> list[tuple[str, str]]:
    """Return what stands before the table of parts, as labels with texts."""
    before, after = explanation.operations
    solver = explanation.solver
    if explanation.steps is not None:
        solver += (
            f"; {explanation.steps.count} equal steps of {explanation.steps.method} do the same within its tolerances "
            f"(relative difference {_short(explanation.steps.error)})"
        )
    return [
        ("method", ", ".join(f"{key} {value}" for key, value in explanation.method.items())),
        ("solver", solver),
        (
            "calibration",
            f"{explanation.snapshots:,} snapshots of {explanation.samples:,} samples, {explanation.evaluations:,} "
            "evaluations of the ODE function in a forward pass",
        ),
        (
            "one evaluation of the ODE function",
            f"{before:,} -> {after:,} multiply-adds for each sample"
            + (f" ({_number(before / after)} times fewer)" if after and before > after else ""),
        ),
    ]


def parts_table(explanation: Explanation) -> Table:
    """Return what became of the state and the stages, without columns in which nothing stands."""
    parts, unmeasured = explanation.parts, _unmeasured(explanation)
    total = sum(part.operations or 0 for part in parts)
    columns = {
        "part": [part.name for part in parts],
        "function": [_shortened(part.what) for part in parts],
        "reads": [", ".join(part.reads) for part in parts],
        "full": [f"{part.full:,}" for part in parts],
        "reduced": [f"{part.reduced:,}" for part in parts],
        "error": ["not measured" if part.name in unmeasured else _short(part.error) for part in parts],
        "share": [f"{100 * (part.operations or 0) / total:.0f} %" if total else "-" for part in parts],
        "dropped": [_short(part.dropped_energy) for part in parts],
        "constant": [_short(part.constant) for part in parts],
        "why": [part.why for part in parts],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) - {"", "-"}}
    right = [i for i, name in enumerate(columns) if name in _NUMBERS]
    return Table([tuple(columns), *zip(*columns.values(), strict=True)], right)


def legend(explanation: Explanation) -> list[str]:
    """Return what the columns of the table of parts mean."""
    parts = explanation.parts
    words: dict[str, list[float | None]] = {
        "error: of what reads the stage (of the state: of its derivative), on snapshots held out of its fit": [
            part.error for part in parts
        ],
        "share: of the multiply-adds of one evaluation": [part.operations for part in parts],
        "dropped energy: relative squared projection error (of a balanced basis: as the output sees it)": [
            part.dropped_energy for part in parts
        ],
        "constant: the interpolation error is at most this times the best possible": [part.constant for part in parts],
    }
    return [line for line, values in words.items() if any(value is not None for value in values)]


def curve_caption(explanation: Explanation) -> str:
    """Return what the table of the curve shows."""
    before = ", before that" if explanation.since else ""
    return f"search: {len(explanation.curve)} networks tried on validation data{before}; those that no other beats"


def curve_table(explanation: Explanation) -> Table:
    """Return the networks of the search that no other beats."""
    full = explanation.curve[0].cost
    rows = [("network", "times less cost", f"loss ({explanation.metric})", "")]
    for trial in explanation.frontier:
        gain, loss = _number(full / trial.cost), _short(trial.loss)
        chosen = "chosen" if trial == explanation.chosen else ""
        rows.append((f"{trial.sizes}, {trial.solver}", gain, loss, chosen))
    return Table(rows, [1, 2])


def _loss(explanation: Explanation) -> list[tuple[str, str]]:
    label, metric, confirmed = f"loss ({explanation.metric})", explanation.metric, explanation.confirmed
    if confirmed is None:
        if explanation.chosen is None or explanation.since:
            return []
        return [(label, f"{_in_metric(explanation.chosen.loss, metric)} on the data that it was chosen by")]
    text = f"{_in_metric(confirmed.loss, metric)}, "
    if confirmed.bound is not None:
        text += f"with {100 * confirmed.confidence:g} % confidence at most {_in_metric(confirmed.bound, metric)}, "
    return [(label, f"{text}on {_counted(confirmed.samples, 'sample')} that nothing was chosen by")]


def _errors(explanation: Explanation) -> str:
    network_first = sorted(explanation.errors.items(), key=lambda item: item[0] != "network output")
    return ", ".join(f"{name} {_percent(error)}" for name, error in network_first) or "not measured"


def _speeds(clock: Clock) -> list[tuple[str, str]]:
    """Return how many times as fast as the full one the layer and the network are, the largest batch first."""
    on = f"{clock.device}, {_counted(clock.threads, 'thread')}"
    parts = dict.fromkeys(call.part for call in clock.calls)
    return [(f"speed of the {part} ({on})", _speed(clock, part)) for part in parts]


def _speed(clock: Clock, part: Literal["layer", "network"]) -> str:
    batches = sorted({call.batch for call in clock.calls if call.part == part}, reverse=True)
    gains = [clock.gains(part, batch) for batch in batches]
    solvers = [
        f"{_number(gain)} times as fast as the full {part} with its own solver ({solver})"
        if i == 0
        else f"{_number(gain)} times as with {solver}"
        for i, (solver, gain) in enumerate(gains[0].items())
    ]
    others = [
        f"batch {batch}: {' and '.join(map(_number, found.values()))} times"
        for batch, found in zip(batches[1:], gains[1:], strict=True)
    ]
    return "; ".join([f"{', '.join(solvers)}, batch {batches[0]}", *others])


def _tuning(tuning: Tuning) -> str:
    made = {"none": "", "mix": ", mixtures among them"}.get(tuning.augment, ", those of a function among them")
    text = (
        f"its loss fell from {_short(tuning.before)} to {_short(tuning.after)} on data that was not "
        f"trained on; {_counted(tuning.epochs, 'epoch')} of {_counted(tuning.samples, 'sample')}"
        f"{made}, in {_number(tuning.seconds)} s, by the full layer with {tuning.teacher}"
    )
    if not tuning.wants_data:
        return text
    return f"{text}; more calibration data would help: on what was trained on it is {_short(tuning.trained)}"


def _sizes(explanation: Explanation) -> str:
    state, *stages = explanation.parts
    words = [f"{part.name} {part.full:,} -> {part.reduced:,}" for part in stages if part.fate == "reduced"]
    words = [*words[:_MOST_NAMED], *([f"and {len(words) - _MOST_NAMED} more"] if len(words) > _MOST_NAMED else [])]
    for fate in ("absorbed", "kept"):
        count = sum(part.fate == fate for part in stages)
        words += [f"{_counted(count, 'stage')} {fate}"] if count else []
    kept = f"{state.name} {state.full:,} kept"
    sizes = ", ".join([kept if state.fate == "kept" else f"{state.name} {state.full:,} -> {state.reduced:,}", *words])
    if explanation.chosen is None or explanation.since:
        return sizes
    return f"{sizes}, with {explanation.chosen.solver}"


def _unmeasured(explanation: Explanation) -> set[str]:
    """Names of the parts that were fitted with nothing held out."""
    parts = explanation.parts
    fitted = explanation.method.get("fit") == "least_squares" and any(part.fate == "reduced" for part in parts[1:])
    measured = any(part.error is not None for part in parts)
    return {part.name for part in parts if fitted and not measured and part.fate == "reduced"}


def _in_metric(value: float, metric: str) -> str:
    """Return a loss as a metric is spoken of."""
    if metric == "accuracy":
        return f"{_number(100 * value)} points"
    return _percent(value) if metric in ("relative", "agreement") else _short(value)


def _percent(value: float) -> str:
    return f"{_number(100 * value)} %"


def _number(value: float) -> str:
    """Return two digits of a number, or all of its whole part."""
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:,.0f}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
