"""Tables of comparisons, on a terminal, in a pipe and in a report."""

import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from torchmor.experiments.measure.comparison import BATCHES, Row, best_reduced, cheapest_full, layer_wall_s
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.measure.surroundings import threads_in_words
from torchmor.experiments.report.spread import Entry, Spread

#: In the place of a number that was not measured, or that has no meaning.
NOTHING = "–"

#: Behind a time that is impossible.
IMPOSSIBLE = " ?"

#: What all columns need.
WIDE = 100


def header(rows: Sequence[Row]) -> list[str]:
    """Return the titles of the columns; a title may have several lines."""
    batches = BATCHES[::-1]
    times = [f"layer\nms\n×{batch}" for batch in batches]
    gains = [f"gain on\n{_broken(rival.solver)}\n×{batch}" for rival in _rivals(rows) for batch in batches]
    return ["network, solver", "accu-\nracy\n%", "agrees\nwith\nfull %", *times, *gains, "size"]


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return the entries of a row."""
    batches, rivals = BATCHES[::-1], _rivals(rows)
    numbers = [f"{row.accuracy:.1f}", f"{row.agreement:.1f}"]
    if row.method == "skipped":
        return [row.name, *numbers, *[NOTHING] * (len(batches) * (1 + len(rivals)) + 1)]
    numbers += [timing_words(row, "layer", batch) for batch in batches]
    numbers += [_gain(rival, row, batch) for rival in rivals for batch in batches]
    return [row.name, *numbers, row.size]


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader of the table has to know."""
    timing = rows[0].layer[max(BATCHES)]
    return [
        f"accuracy: on test data; {' and '.join(f'×{batch}' for batch in BATCHES[::-1])}: at these batch sizes",
        "layer: the ODE layer with its encoding and decoding; median of "
        f"{timing.repeats} calls, {threads_in_words(timing.threads)}",
        "gain: how many times as fast as the full layer with that solver; below 1 means slower",
        "size: n states of the full layer, r of a reduced one, which evaluates the nonlinearity at m points",
        *impossible_note(rows),
    ]


def impossible_note(rows: Sequence[Row]) -> list[str]:
    """Return what the mark of impossible times means, where a row has it."""
    found = dict.fromkeys(words for row in rows for words in row.impossible)
    return [f"{IMPOSSIBLE}: an impossible time, which is compared with nothing: {', '.join(found)}"] if found else []


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """Print the table with its notes, on a narrow terminal without the columns that matter least."""
    titles = header(rows)
    shown = list(range(len(titles)))
    if console.width < WIDE:
        least = [title.startswith("agrees") or (title.startswith("gain") and title.endswith("×1")) for title in titles]
        shown = [i for i in shown if not least[i]]
    table = empty_table([titles[i] for i in shown], 1)
    table.columns[0].no_wrap, table.columns[-1].no_wrap = True, False
    best = best_reduced(rows)
    for number, row in enumerate(rows):
        following = rows[min(number + 1, len(rows) - 1)]
        entries = cells(row, rows)
        last = row.method != following.method
        table.add_row(*[entries[i] for i in shown], style="bold" if row is best else None, end_section=last)
    console.print(table, highlight=False)
    _print_notes(console, notes(rows))


def empty_table(columns: Sequence[str], words: int, title: str | None = None) -> Table:
    """Return a table for a terminal whose first columns hold words, and the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < words else "right", no_wrap=i >= words, vertical="bottom")
    return table


# -- several seeds and methods ------------------------------------------------------------------------------------


def method_header(rival: Row | None, full: Row) -> list[str]:
    """Return the titles of the columns of :func:`method_cells`; a title may have several lines.

    Parameters
    ----------
    rival
        The cheapest adequate full network, or None if nothing was timed.
    full
        The full network with its own solver.
    """
    largest = max(BATCHES)
    times = [f"{part}\nms\n×{batch}" for part in ("layer", "network") for batch in BATCHES[::-1]]
    gains = [f"gain on\n{_broken(one.solver, 8)}\n×{largest}" for one in _two_rivals(rival, full)]
    sizes = ["numbers\nheld", "evalu-\nations"]
    return ["method", "size", "solver", "accuracy\n%", "difference\npoints", "agrees\n%", *times, *gains, *sizes]


def method_cells(entry: Entry, rival: Row | None, full: Row) -> list[str]:
    """Return the entries of a row; of several lines in an entry, the later ones are details."""
    row, largest = entry.row, max(BATCHES)
    low, high = row.difference_interval
    difference = NOTHING
    if row is not full:
        difference = f"{signed(row.accuracy - full.accuracy)}\n{signed(low)} to {signed(high)}"
    times = [timing_words(row, part, batch) for part in ("layer", "network") for batch in BATCHES[::-1]]
    gains = [_gain(one, row, largest) for one in _two_rivals(rival, full)]
    if row.method == "skipped":
        times[: len(BATCHES)] = [NOTHING] * len(BATCHES)
        gains = [NOTHING] * len(gains)
    return [
        METHODS[row.method].words,
        row.size or NOTHING,
        NOTHING if row.method == "skipped" else row.solver,
        spread_words(entry.accuracy),
        difference,
        f"{row.agreement:.1f}",
        *times,
        *gains,
        f"{row.parameters:,}",
        f"{row.evaluations:,}",
    ]


def method_notes(full: Row, seeds: Sequence[int]) -> list[str]:
    """Return what a reader of the table of methods has to know."""
    lines = ["accuracy: on test data", *_differences(seeds)]
    if len(seeds) > 1:
        lines[0] += f", mean over the seeds {', '.join(map(str, seeds))}, and their range; rows without a range were "
        lines[0] += f"measured on seed {seeds[0]} only"
    lines += ["agrees: test samples that get the same class as from the full network with its own solver"]
    if full.layer:
        timing = full.layer[max(BATCHES)]
        batches = " and ".join(f"×{batch}" for batch in BATCHES[::-1])
        lines += [
            f"layer, network: median time of a forward pass of the ODE layer (encoding and decoding counted) and of "
            f"the whole network, {batches}: at these batch sizes, {threads_in_words(timing.threads)}",
            "gain: how many times as fast as the full layer with that solver; below 1 means slower",
        ]
    return [
        *lines,
        "size: n states; r reduced states, m points where the nonlinearity is evaluated; neurons or channels kept; "
        "rank of the weights",
        "numbers held: parameters of the ODE layer; evaluations: of its ODE function in a forward pass",
    ]


def print_methods(console: Console, found: Sequence[Entry], rival: Row | None, full: Row) -> None:
    """Print a table of some entries, without the columns for which 120 characters are too few."""
    titles = [title.replace("difference", "differ-\nence") for title in method_header(rival, full)]
    shown = [i for i, title in enumerate(titles) if title.partition("\n")[0] not in ("agrees", "numbers", "evalu-")]
    table = empty_table([titles[i] for i in shown], 3)
    table.columns[0].no_wrap = True
    for entry in found:
        lines = [cell.partition("\n")[0] for cell in method_cells(entry, rival, full)]
        if entry.accuracy.seeds > 1:
            lines[3] += f" ±{(entry.accuracy.high - entry.accuracy.low) / 2:.1f}"
        table.add_row(*[lines[i] for i in shown], style=None if entry.adequate else "dim")
    console.print(table, highlight=False)


def spread_words(spread: Spread) -> str:
    """Return a mean, and in a second line the range over several seeds."""
    several = f"\n{spread.low:.1f} – {spread.high:.1f}" if spread.seeds > 1 else ""
    return f"{spread.mean:.1f}{several}"


def timing_words(row: Row, part: str, batch: int) -> str:
    """Return the time of a row's "layer" or "network" in milliseconds, marked if it is impossible."""
    times = getattr(row, part)
    if batch not in times:
        return NOTHING
    return milliseconds(times[batch].wall_s) + (IMPOSSIBLE if row.impossible else "")


def milliseconds(wall_s: float) -> str:
    """Return a time in milliseconds with three digits."""
    value = wall_s * 1e3
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def ratio(factor: float) -> str:
    """Return a ratio of times with two digits."""
    return f"{factor:.0f}" if factor >= 9.95 else f"{factor:.1f}" if factor >= 0.995 else f"{factor:.2f}"


def signed(points: float) -> str:
    """Return a difference with its sign."""
    return f"{points:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def _differences(seeds: Sequence[int]) -> list[str]:
    of_seed = f" on seed {seeds[0]}" if len(seeds) > 1 else ""
    return [
        f"difference: to the full network with its own solver{of_seed}, with its 95 % interval (paired bootstrap over "
        "test samples)"
    ]


def _print_notes(console: Console, lines: Sequence[str]) -> None:
    for note in lines:
        console.print(note, style="dim", highlight=False, soft_wrap=True)


def _broken(solver: str, width: int = 10) -> str:
    """Return a solver's name in narrow lines."""
    return "\n".join(textwrap.wrap(solver, width, break_long_words=False))


def _gain(rival: Row, row: Row, batch: int) -> str:
    if not row.layer or row.impossible or rival.impossible:
        return NOTHING
    return ratio(layer_wall_s(rival, batch) / layer_wall_s(row, batch))


def _two_rivals(rival: Row | None, full: Row) -> list[Row]:
    return [] if rival is None else [full] if rival is full else [full, rival]


def _rivals(rows: Sequence[Row]) -> list[Row]:
    """The full network with its own solver, and with the cheapest adequate one if that is another."""
    return _two_rivals(cheapest_full(rows), rows[0])
