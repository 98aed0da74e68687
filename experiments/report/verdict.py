"""What a comparison says, in sentences made from its numbers, whoever wins."""

from collections.abc import Sequence

from torchmor.engine.explanation import Explanation
from torchmor.experiments.measure.comparison import (
    ADEQUATE_POINTS,
    BATCHES,
    Row,
    adequate,
    best_reduced,
    cheapest_full,
    layer_wall_s,
)
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.spread import Entry, Spread, best_of_methods
from torchmor.experiments.report.table import milliseconds, ratio, signed

#: Times that differ by less count as equal.
NOTICEABLE = 1.1

#: What is timed, in words.
PARTS = {"layer": "ODE layer", "network": "whole network"}


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return the findings of a comparison of one method with the full network, the most important first.

    Parameters
    ----------
    rows
        Timed on one yardstick; the first is the full network with its own solver.
    """
    full, rival, ours = rows[0], cheapest_full(rows), best_reduced(rows)
    compared = not (full.impossible or rival.impossible or ours.impossible)
    lines = [_to_beat(full, rival)] if compared else [f"The full network has {full.accuracy:.1f} %."]
    if adequate(ours, full):
        fastest = "fastest" if compared else "most accurate"
        lines.append(f"The {fastest} reduced layer that is good enough on validation data has {_words(ours, full)}.")
    else:
        lines.append(
            f"No reduced layer stays within {ADEQUATE_POINTS} points of the full network on validation data. The best "
            f"one there has {_words(ours, full)}."
        )
    if compared:
        lines += [_speed(ours, full, rival, batch) for batch in sorted(BATCHES, reverse=True)]
    lines += impossible_times(rows, compared)
    lines += [
        f"With the ODE layer skipped {row.accuracy:.1f} % are left: a reduced layer below that is worse than none."
        for row in rows
        if row.method == "skipped"
    ]
    return lines


def gained_and_lost(rows: Sequence[Row], explanation: Explanation) -> str:
    """Return what one call gained and lost, in a sentence, and what it states of itself.

    Parameters
    ----------
    rows
        As of :func:`verdict`.
    explanation
        Of the reduced layer.
    """
    full, rival, ours = rows[0], cheapest_full(rows), best_reduced(rows)
    gains = []
    for one in [full] if rival is full else [full, rival]:
        times = [f"{ratio(layer_wall_s(one, b) / layer_wall_s(ours, b))} (batch {b})" for b in BATCHES[::-1]]
        gains.append(f"{' and '.join(times)} times as fast as with {one.solver}")
    faster = f"made the ODE layer {', '.join(gains)}"
    if full.impossible or rival.impossible or ours.impossible:
        faster = "reduced the ODE layer, of whose speed nothing is said for impossible times"
    words = f"One call {faster}; the accuracy on test data went from {full.accuracy:.1f} to {ours.accuracy:.1f} %."
    stated = explanation.confirmed
    if stated is None or stated.bound is None:
        return words
    return (
        f"{words} It states that {100 * stated.loss:.1f} % of the samples get another class, with "
        f"{100 * stated.confidence:g} % confidence at most {100 * stated.bound:.1f} %."
    )


def findings(found: Sequence[Entry]) -> list[str]:
    """Return the findings of a comparison of all methods, the most important first.

    Parameters
    ----------
    found
        Of :func:`~torchmor.experiments.report.spread.entries`; the first is the full network with its own solver.
    """
    full, measured = found[0], [entry for entry in found if entry.row.layer and entry.row.network]
    timed = [entry for entry in measured if not entry.row.impossible]
    lines = [_skipping(entry) for entry in found if entry.row.method == "skipped"]
    if not measured or not full.row.layer:
        return [*lines, "Nothing was timed."]
    rival = to_beat(found)
    lines += impossible_times([entry.row for entry in measured], rival is not None)
    if rival is None:
        return lines
    lines.append(_to_beat(full.row, rival.row, full.accuracy, rival.accuracy))
    lines += [_fastest(timed, part, batch) for part in PARTS for batch in sorted(BATCHES, reverse=True)]
    lines += _distillation(timed)
    if any(entry.row.ours for entry in timed):
        lines.append(_reduction([entry.row for entry in timed], rival.row))
    best = best_of_methods(timed)
    poor = [entry for entry in best.values() if entry.compressed and not entry.adequate]
    if poor:
        words = (f"{METHODS[entry.row.method].words} ({signed(entry.difference.mean)})" for entry in poor)
        lines.append(
            f"No size of these is within {ADEQUATE_POINTS} points of the full network on validation data (in brackets, "
            f"how the best row differs on test data): {', '.join(words)}."
        )
    good = [entry for entry in best.values() if entry.compressed and entry.adequate]
    return [*lines, _on_test_data(good)] if good else lines


def impossible_times(rows: Sequence[Row], compared: bool) -> list[str]:
    """Say which rows have impossible times, and what does not follow from them.

    Parameters
    ----------
    rows
        The rows.
    compared
        Whether speeds are compared all the same, without these rows.
    """
    broken = [row for row in rows if row.impossible]
    if not broken:
        return []
    words = "; ".join(f"{name_in_words(row)} ({', '.join(row.impossible)})" for row in broken)
    without = "they are left out of all that is said about speed" if compared else "so nothing is said about speed"
    return [f"The times of these are impossible, although they were measured again, {without}: {words}."]


def name_in_words(row: Row) -> str:
    """Return what a row is, with its sizes."""
    return f"{row.name}, {row.size}" if row.size else row.name


def _distillation(found: Sequence[Entry]) -> list[str]:
    """Say how the distilled rows do beside their controls, and how long distilling took."""
    controls = {entry.row.size: entry for entry in found if entry.row.method == "control"}
    distilled = [entry for entry in found if entry.row.method == "distilled" and entry.row.size in controls]
    pairs = [(entry, controls[entry.row.size]) for entry in distilled]
    if not pairs:
        return []
    gains = ", ".join(
        f"{entry.row.size}: {signed(entry.difference.mean)} against {signed(control.difference.mean)}"
        for entry, control in pairs
    )
    longest = max(entry.row.offline_s for entry, _ in pairs)
    return [
        "Distilled from the reduction, and from random numbers as its control (for the first seed only), networks "
        f"differ from the full one by so many points: {gains}. Distilling one took at most {longest:.0f} s."
    ]


def to_beat(found: Sequence[Entry]) -> Entry | None:
    """Return the cheapest adequate full network; None if nothing was timed, or the first row's times are impossible."""
    timed = [entry for entry in found if entry.row.layer]
    if not found[0].row.layer or found[0].row.impossible:
        return None
    rival = cheapest_full([entry.row for entry in timed])
    return next(entry for entry in timed if entry.row is rival)


def ranking(found: Sequence[Entry], part: str, batch: int) -> list[Row]:
    """Return the fastest adequate row of each method, the fastest first; a network without its ODE layer is none.

    Rows with impossible times are left out.

    Parameters
    ----------
    found
        The entries.
    part
        "layer" or "network": whose time counts.
    batch
        The batch size.
    """
    fastest: dict[str, Row] = {}
    for entry in found:
        row = entry.row
        if entry.adequate and row.method != "skipped" and getattr(row, part) and not row.impossible:
            known = fastest.get(row.method)
            if known is None or wall_s(row, part, batch) < wall_s(known, part, batch):
                fastest[row.method] = row
    return sorted(fastest.values(), key=lambda row: wall_s(row, part, batch))


def winners(ranked: Sequence[Row], part: str, batch: int) -> list[Row]:
    """Return the leading rows of a ranking: the first, and those that take hardly longer.

    The full network wins alone when no other takes noticeably less time.
    """
    if not ranked:
        return []
    leading = [row for row in ranked if wall_s(row, part, batch) <= NOTICEABLE * wall_s(ranked[0], part, batch)]
    full = [row for row in leading if row.method == "full"]
    return full or leading


def wall_s(row: Row, part: str, batch: int) -> float:
    """Return the time of a row's "layer" or "network"."""
    return getattr(row, part)[batch].wall_s


def _skipping(entry: Entry) -> str:
    lost = Spread(-entry.difference.mean, -entry.difference.high, -entry.difference.low, entry.difference.seeds)
    if lost.mean <= ADEQUATE_POINTS:
        return (
            f"Skipping the ODE layer costs nothing worth speaking of ({_range(entry.difference)} points): this network "
            "does not need it, and what is saved on it says little."
        )
    over = f" ({lost.low:.1f} to {lost.high:.1f} over {lost.seeds} seeds)" if lost.seeds > 1 else ""
    return (
        f"Skipping the ODE layer costs {lost.mean:.1f} points{over}; {entry.accuracy.mean:.1f} % are left. A method "
        "that loses more is worse than no layer."
    )


def _on_test_data(good: Sequence[Entry]) -> str:
    """Say how far the rows that validation data chose are from the full network on test data."""
    seeds = max(entry.difference.seeds for entry in good)
    how = f"mean and range over {seeds} seeds" if seeds > 1 else "with 95 % intervals"

    def words(entry: Entry) -> str:
        if seeds > 1:
            return f"{METHODS[entry.row.method].words} {_range(entry.difference)}"
        low, high = entry.row.difference_interval
        return f"{METHODS[entry.row.method].words} {signed(entry.difference.mean)} ({signed(low)} to {signed(high)})"

    return (
        f"On test data the fastest good rows differ from the full network by so many points ({how}): "
        f"{', '.join(map(words, good))}."
    )


def _to_beat(full: Row, rival: Row, spread: Spread | None = None, of_rival: Spread | None = None) -> str:
    accuracy = f"{full.accuracy:.1f} %"
    other = f"{rival.accuracy if of_rival is None else of_rival.mean:.1f} %"
    if spread is not None and spread.seeds > 1:
        accuracy = f"{spread.mean:.1f} % (over {spread.seeds} seeds {spread.low:.1f} to {spread.high:.1f} %)"
    if rival is full:
        return (
            f"No coarse solver of the full layer is both within {ADEQUATE_POINTS} points of {full.solver}, {accuracy}, "
            "and faster: the full layer with its own solver is the one to beat."
        )
    return (
        f"The full network has {accuracy} with its own solver, {full.solver}, and {other} with {rival.solver}, "
        f"{_gain(full, rival, max(BATCHES))} times as fast: this is the one to beat."
    )


def _fastest(found: Sequence[Entry], part: str, batch: int) -> str:
    """Say who wins by one time."""
    ranked = ranking(found, part, batch)
    first = winners(ranked, part, batch)
    full = next(row for row in ranked if row.method == "full")
    where = f"{PARTS[part].capitalize() if part == 'network' else PARTS[part]} at batch {batch}"

    def words(row: Row) -> str:
        return f"{METHODS[row.method].words} ({row.size}; {row.solver}; {_time(row, part, batch)})"

    rest = f"the full network with {full.solver} ({_time(full, part, batch)})"
    if first == [full]:
        others = [row for row in ranked if row is not full]
        if not others:
            return f"{where}: {rest} wins, since no compressed one is good enough."
        return (
            f"{where}: {rest} wins, since nothing that is good enough is noticeably faster. The nearest is "
            f"{words(others[0])}."
        )
    factor = ratio(wall_s(full, part, batch) / wall_s(first[0], part, batch))
    if len(first) == 1:
        return f"{where}: {words(first[0])} wins, {factor} times as fast as {rest}."
    names = f"{', '.join(map(words, first[:-1]))} and {words(first[-1])}"
    return f"{where}: {names} win, about equally fast: up to {factor} times as fast as {rest}."


def _reduction(rows: Sequence[Row], rival: Row) -> str:
    """Compare the best reduced layer with the full layer, at each batch size."""
    full, ours = rows[0], best_reduced(rows)
    name = f"{METHODS[ours.method].words} ({ours.size}; {ours.solver})"
    if adequate(ours, full):
        text = f"The fastest reduced layer that is good enough, {name}, is"
    else:
        text = (
            f"No reduced layer stays within {ADEQUATE_POINTS} points of the full network on validation data; the best "
            f"one there, {name}, is"
        )
    parts = []
    for batch in sorted(BATCHES, reverse=True):
        speeds = f"{_compared(full, ours, batch)} the full layer with {full.solver}"
        if rival is not full:
            speeds += f" and {_compared(rival, ours, batch)} with {rival.solver}"
        parts.append(f"at batch {batch}, {speeds}")
    return f"{text}, {'; '.join(parts)}."


def _compared(slow: Row, fast: Row, batch: int) -> str:
    factor = layer_wall_s(slow, batch) / layer_wall_s(fast, batch)
    if factor > NOTICEABLE:
        return f"{ratio(factor)} times as fast as"
    return f"{ratio(1 / factor)} times slower than" if factor < 1 / NOTICEABLE else "no faster than"


def _time(row: Row, part: str, batch: int) -> str:
    return f"{milliseconds(wall_s(row, part, batch))} ms"


def _range(spread: Spread) -> str:
    several = f" ({signed(spread.low)} to {signed(spread.high)})" if spread.seeds > 1 else ""
    return f"{signed(spread.mean)}{several}"


def _words(row: Row, full: Row) -> str:
    low, high = row.difference_interval
    return (
        f"{size_in_words(row)} and {row.solver}: {row.accuracy:.1f} % on test data, "
        f"{signed(row.accuracy - full.accuracy)} points against the full network (95 % interval {signed(low)} to "
        f"{signed(high)})"
    )


def size_in_words(row: Row) -> str:
    """Return the sizes of a reduced layer as text that can be read aloud."""
    words = {"r": "states", "m": "points"}
    return ", ".join(f"{size:,} {words.get(name, name)}" for name, size in row.sizes.items())


def _speed(ours: Row, full: Row, rival: Row, batch: int) -> str:
    times = [f"{milliseconds(layer_wall_s(row, batch))} ms" for row in (ours, full, rival)]
    factor = layer_wall_s(rival, batch) / layer_wall_s(ours, batch)
    text = f"At batch {batch} this reduced layer takes {times[0]}"
    if rival is not full:
        text += f", the full one {times[1]} with {full.solver} ({_gain(full, ours, batch)} times as long)"
    text += f" and {times[2]} with {rival.solver}: " if rival is not full else f", the full one {times[2]}: "
    if factor > NOTICEABLE:
        return text + f"{_gain(rival, ours, batch)} times as fast as the one to beat."
    if factor < 1 / NOTICEABLE:
        return text + f"{_gain(ours, rival, batch)} times slower than the one to beat. Reducing wins nothing here."
    return text + "no faster than the one to beat. Reducing wins nothing here."


def _gain(slow: Row, fast: Row, batch: int) -> str:
    return ratio(layer_wall_s(slow, batch) / layer_wall_s(fast, batch))
