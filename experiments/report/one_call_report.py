"""What one call of `reduce_network` delivers, over networks and seeds: verdict, table and report."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from torchmor.engine.findings import Clock, Tuning
from torchmor.experiments.measure.comparison import BATCHES
from torchmor.experiments.measure.coverage import fewest_held, interval
from torchmor.experiments.measure.delivery import Delivery
from torchmor.experiments.measure.surroundings import threads_in_words
from torchmor.experiments.report.report import Details, Listing, Paragraph, Part, Points, Settings, Table, write_report
from torchmor.experiments.report.table import NOTHING, empty_table, ratio

#: Confidence of the bounds that calls state.
CONFIDENCE = 0.95

#: How calls end, in words.
_ENDINGS = {
    "reduced": "a reduced network",
    "best": "an error with the best network found",
    "steps": "an error with coarse steps",
    "nothing": "an error alone",
}

_TITLES = [
    "network",
    "ended with",
    "loss on test\npoints or %",
    "bound stated\npoints or %",
    "bound\nheld",
    *(f"gain on\n{rival}\n×{batch}" for batch in BATCHES[::-1] for rival in ("own", "coarse")),
    "offline\ns",
]


def findings(found: Sequence[Delivery], small: str) -> list[str]:
    """Return what the calls came to, in sentences, the verdict first.

    Parameters
    ----------
    found
        All calls.
    small
        Key of those on small networks, which count for the bounds only.
    """
    large = [one for one in found if one.network != small]
    lines = [_verdict(large)] if large else []
    errors = [one for one in large if one.ending != "reduced"]
    if errors:
        counts = Counter(one.network for one in errors)
        words = ", ".join(f"{key} ({count})" for key, count in counts.items())
        lines.append(f"Calls that ended in an error, by network: {words}.")
    coverage = [one for one in found if one.network == small]
    return [*lines, *([_coverage(coverage)] if coverage else [])]


def print_one_call(console: Console, found: Sequence[Delivery], titles: Mapping[str, str], small: str) -> None:
    """Print findings, and a line for each network; `titles` are those of the networks, by key."""
    for line in findings(found, small):
        console.print(line, highlight=False, soft_wrap=True)
    if titles:
        table = empty_table(_TITLES, 2)
        for cells in _lines(found, titles):
            table.add_row(*(cell.partition("\n")[0] for cell in cells))
        console.print(table, highlight=False)
    for note in _notes(found):
        console.print(note, style="dim", highlight=False, soft_wrap=True)


def write_one_call_report(
    path: Path,
    command: str,
    found: Sequence[Delivery],
    titles: Mapping[str, str],
    small: str,
    settings: Mapping[str, Any],
) -> None:
    """Write the report.

    Parameters
    ----------
    path
        The file.
    command
        The command that repeats the run.
    found
        All calls.
    titles
        Of the networks, by key; not of the small ones.
    small
        Key of the small ones.
    settings
        All that the calls depend on.
    """
    sections: dict[str, list[Part]] = {"": [Points(findings(found, small), "findings")]}
    if titles:
        sections["By network"] = [Table(_TITLES, _lines(found, titles), _notes(found))]
        sections["Every call"] = [_every_call(found, titles), *_said(found, titles)]
    coverage = [one for one in found if one.network == small]
    if coverage:
        sections["Do the bounds hold?"] = [Paragraph(_COVERAGE), _coverage_table(coverage)]
    sections["Settings"] = [Settings({"command": command, **settings})]
    write_report(path, "One call: what it delivers", sections)


_COVERAGE = (
    "Each run draws a function to learn, trains a small network on samples of it, makes one default call with fresh "
    "ones, and compares the stated bound with the loss on many more. Runs are independent, so the number of bounds "
    "that hold is binomial: the interval for its share is the exact one of Clopper and Pearson (1934), and the fewest "
    f"that agree with the stated confidence of {100 * CONFIDENCE:g} % are the 1 % quantile of that distribution."
)


def _verdict(large: Sequence[Delivery]) -> str:
    reduced = [one for one in large if one.ending == "reduced"]
    words = f"{len(reduced)} of {len(large)} default calls returned a reduced network"
    gains = [one.gains("layer", max(BATCHES)) for one in reduced]
    timed = [gain for gain in gains if gain is not None]
    if timed:
        own, coarse = (median(values) for values in zip(*timed, strict=True))
        words += (
            f", in the median {ratio(own)} times as fast as the full layer with its own solver and {ratio(coarse)} "
            f"times as fast as with its cheapest adequate one (batch {max(BATCHES)})"
        )
    within = sum(one.loss is not None and one.loss <= one.max_loss for one in reduced)
    words += f"; {within} of them lose no more on test data than was allowed"
    stated = [one.held for one in reduced if one.held is not None]
    words += f", the stated bound holds for {sum(stated)} of {len(stated)}" if stated else ", no bound was stated"
    return f"{words}; the longest call took {max(one.offline_s for one in large):.0f} s."


def _coverage(coverage: Sequence[Delivery]) -> str:
    held = [one.held for one in coverage if one.held is not None]
    if not held:
        return f"None of {len(coverage)} calls on small networks stated a bound."
    low, high = interval(sum(held), len(held))
    silent = len(coverage) - len(held)
    fewest = fewest_held(len(held), CONFIDENCE)
    return (
        f"The bound that was stated with {100 * CONFIDENCE:g} % confidence holds on fresh data in {sum(held)} of "
        f"{len(held)} runs over small networks ({100 * low:.0f} to {100 * high:.0f} %; were each to hold with that "
        f"probability, fewer than {fewest} would come in at most one of a hundred studies)"
        + (f"; {silent} more stated none" if silent else "")
        + "."
    )


def _lines(found: Sequence[Delivery], titles: Mapping[str, str]) -> list[list[str]]:
    """Return the entries of a line for each network, means over its seeds with their range as details."""
    lines = []
    for key, title in titles.items():
        of_network = [one for one in found if one.network == key]
        held = [one.held for one in of_network if one.held is not None]
        gains = [
            _spread([gain[rival] for gain in _gains(of_network, batch)], ratio)
            for batch in BATCHES[::-1]
            for rival in range(2)
        ]
        endings = Counter(_ENDINGS[one.ending] for one in of_network)
        lines.append(
            [
                f"{key}: {title}",
                ", ".join(f"{words} ×{count}" for words, count in endings.items()),
                _spread([one.loss for one in of_network], _percent),
                _spread([one.bound for one in of_network], _percent),
                f"{sum(held)} of {len(held)}" if held else NOTHING,
                *gains,
                _spread([one.offline_s for one in of_network], "{:.0f}".format),
            ]
        )
    return lines


def _every_call(found: Sequence[Delivery], titles: Mapping[str, str]) -> Table:
    titles_of_calls = [
        "call",
        "found",
        "tuning",
        "loss\ntest",
        "loss\nstated",
        "bound\nstated",
        "layer's\nerror, %",
        *(f"gains of\n{part}\n×{batch}" for part in ("layer", "network") for batch in BATCHES[::-1]),
        "offline\ns",
    ]
    lines, calls = [], [one for one in found if one.network in titles]
    for one in sorted(calls, key=lambda one: (list(titles).index(one.network), one.seed)):
        times = [
            _gains_in_words(one.times, part, batch) + "\n" + _gains_in_words(one.clock, part, batch)
            for part in ("layer", "network")
            for batch in BATCHES[::-1]
        ]
        lines.append(
            [
                f"{one.network}, seed {one.seed}\n{_ENDINGS[one.ending]}",
                "\n".join(one.found.split(", ")) or NOTHING,
                _tuning(one.tuning),
                *(
                    NOTHING if value is None else _percent(value)
                    for value in (
                        one.loss,
                        None if one.confirmed is None else one.confirmed.loss,
                        one.bound,
                    )
                ),
                NOTHING if one.layer_error is None else f"{100 * one.layer_error:.2g}",
                *times,
                f"{one.offline_s:.0f}",
            ]
        )
    stated = next((one.clock for one in calls if one.clock), None)
    notes = [
        "gains: how many times as fast as the full one with its own solver / with its cheapest adequate coarse steps; "
        "in the second line, what the call itself states"
        + (f" ({threads_in_words(stated.threads)})" if stated else ", which it doesn't here")
    ]
    return Table(titles_of_calls, lines, notes)


def _said(found: Sequence[Delivery], titles: Mapping[str, str]) -> list[Part]:
    return [
        Details(f"{titles[one.network]}, seed {one.seed}: what the call says", [Listing(one.said)])
        for one in found
        if one.network in titles
    ]


def _coverage_table(coverage: Sequence[Delivery]) -> Table:
    lines, metrics = [], list(dict.fromkeys(one.metric for one in coverage))
    for metric in metrics:
        of_metric = [one for one in coverage if one.metric == metric]
        held = [one.held for one in of_metric if one.held is not None]
        lines.append(
            [
                metric,
                f"{len(of_metric)}",
                f"{sum(one.ending == 'reduced' for one in of_metric)}",
                f"{sum(held)} of {len(held)}",
                _spread([one.loss for one in of_metric], _percent),
                _spread([one.bound for one in of_metric], _percent),
                _spread([one.offline_s for one in of_metric], "{:.0f}".format),
            ]
        )
    titles = ["metric", "runs", "reduced", "bounds\nheld", "loss\npoints or %", "bound\npoints or %", "offline\ns"]
    return Table(titles, lines, ["mean, and range"])


def _notes(found: Sequence[Delivery]) -> list[str]:
    timed = next((one.times for one in found if one.times), None)
    return [
        "mean over the seeds; of an error, the network that it carries is measured",
        "loss on test, bound: points of accuracy lost, or relative error in %; a bound is stated with "
        f"{100 * CONFIDENCE:g} % confidence",
        "gain: how many times as fast as the full layer with its own solver, and with the cheapest coarse steps that "
        "are within the loss allowed on validation data (its own, where none are)"
        + (f"; {threads_in_words(timed.threads)}" if timed else ""),
    ]


def _gains(found: Sequence[Delivery], batch: int) -> list[tuple[float, float]]:
    return [gain for one in found if (gain := one.gains("layer", batch)) is not None]


def _gains_in_words(clock: Clock | None, part: Any, batch: int) -> str:
    if clock is None or batch not in clock.batches:
        return NOTHING
    return " / ".join(map(ratio, clock.gains(part, batch).values()))


def _tuning(tuning: Tuning | None) -> str:
    if tuning is None:
        return NOTHING
    words = f"{tuning.epochs} epochs, {tuning.samples:,} samples"
    return f"{tuning.before:.2g} → {tuning.after:.2g}\n{words}\n{tuning.augment}"


def _percent(loss: float) -> str:
    """Return a loss in points or percent; what is better than the full network has a sign."""
    return f"{100 * loss:.2f}".replace("-", "−")


def _spread(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    """Return the mean of what was measured, and in a second line its range."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    several = f"\n{form(min(known))} – {form(max(known))}" if len(known) > 1 else ""
    return form(sum(known) / len(known)) + several
