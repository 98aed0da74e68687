"""What a comparison says, in sentences made from its numbers, whoever wins."""

from collections.abc import Sequence

from torchmor.experiments.comparison import (
    ADEQUATE_POINTS,
    BATCHES,
    Row,
    adequate,
    best_reduced,
    cheapest_full,
    layer_wall_s,
)
from torchmor.experiments.table import milliseconds, ratio

#: Times that differ by less count as equal.
NOTICEABLE = 1.1


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return the findings of a comparison, the most important first.

    Parameters
    ----------
    rows
        Of :func:`~torchmor.experiments.comparison.compare`; the first is the full network with its own solver.
    """
    full, rival, ours = rows[0], cheapest_full(rows), best_reduced(rows)
    if rival is full:
        lines = [
            f"No coarse solver of the full layer stays within {ADEQUATE_POINTS} points of {full.solver}, "
            f"{full.accuracy:.1f} %: the full layer with its own solver is the one to beat."
        ]
    else:
        lines = [
            f"The full network has {full.accuracy:.1f} % with its own solver, {full.solver}, and "
            f"{rival.accuracy:.1f} % with {rival.solver}, {_gain(full, rival, max(BATCHES))} times as fast: this is "
            "the one to beat."
        ]
    if adequate(ours, full):
        lines.append(f"The fastest reduced layer that is good enough on validation data has {_words(ours, full)}.")
    else:
        lines.append(
            f"No reduced layer stays within {ADEQUATE_POINTS} points of the full network on validation data. The best "
            f"one there has {_words(ours, full)}."
        )
    lines += [_speed(ours, full, rival, batch) for batch in sorted(BATCHES, reverse=True)]
    lines += [
        f"With the ODE layer skipped {row.accuracy:.1f} % are left: a reduced layer below that is worse than none."
        for row in rows
        if row.kind == "skipped"
    ]
    return lines


def _words(row: Row, full: Row) -> str:
    low, high = row.difference_interval
    points = " + ".join(map(str, row.points))
    return (
        f"{row.state} states, {points} points and {row.solver}: {row.accuracy:.1f} % on test data, "
        f"{_signed(row.accuracy - full.accuracy)} points against the full network (95 % interval {_signed(low)} to "
        f"{_signed(high)})"
    )


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


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")
