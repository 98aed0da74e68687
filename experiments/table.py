"""The one table of a comparison, on a terminal, in a pipe and in a report."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from torchmor.experiments.comparison import BATCHES, Row, best_reduced, cheapest_full, layer_wall_s
from torchmor.experiments.surroundings import threads_in_words


def header(rows: Sequence[Row]) -> list[str]:
    """Return the titles of the columns; a title may have several lines."""
    batches = BATCHES[::-1]
    times = [f"layer\nms\n×{batch}" for batch in batches]
    rivals = [rival.solver.rpartition(" ") for rival in _rivals(rows)]
    gains = [f"gain on\n{(first + chr(10)) * bool(first)}{last}\n×{b}" for first, _, last in rivals for b in batches]
    return ["network, solver", "accu-\nracy\n%", "agrees\nwith\nfull %", *times, *gains, "state", "points"]


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return the entries of a row."""
    batches, rivals = BATCHES[::-1], _rivals(rows)
    numbers = [f"{row.accuracy:.1f}", f"{row.agreement:.1f}"]
    if row.kind == "skipped":
        return [row.name, *numbers, *["-"] * (len(batches) * (1 + len(rivals)) + 2)]
    numbers += [milliseconds(layer_wall_s(row, batch)) for batch in batches]
    numbers += [ratio(layer_wall_s(r, batch) / layer_wall_s(row, batch)) for r in rivals for batch in batches]
    return [row.name, *numbers, f"{row.state:,}", " + ".join(f"{m:,}" for m in row.points)]


def notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader of the table has to know."""
    timing = rows[0].layer[max(BATCHES)]
    return [
        f"accuracy: on test data; {' and '.join(f'×{batch}' for batch in BATCHES[::-1])}: at these batch sizes",
        f"layer: the ODE layer with its encoding and decoding; median of {timing.repeats} interleaved calls, "
        + threads_in_words(timing.threads),
        "gain: how many times as fast as the full layer with that solver; below 1 means slower",
    ]


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """Print the table with its notes."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, title in enumerate(header(rows)):
        table.add_column(title, justify="left" if i == 0 else "right", no_wrap=i > 0, vertical="bottom")
    best = best_reduced(rows)
    for number, row in enumerate(rows):
        following = rows[min(number + 1, len(rows) - 1)]
        table.add_row(*cells(row, rows), style="bold" if row is best else None, end_section=row.kind != following.kind)
    console.print(table, highlight=False)
    for note in notes(rows):
        console.print(note, style="dim", highlight=False, soft_wrap=True)


def milliseconds(wall_s: float) -> str:
    """Return a time in milliseconds with three digits."""
    value = wall_s * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(factor: float) -> str:
    """Return a ratio of times with two digits."""
    return f"{factor:.0f}" if factor >= 9.95 else f"{factor:.1f}" if factor >= 0.995 else f"{factor:.2f}"


def _rivals(rows: Sequence[Row]) -> list[Row]:
    """The full network with its own solver, and with the cheapest adequate one if that is another."""
    rival = cheapest_full(rows)
    return [rows[0]] if rival is rows[0] else [rows[0], rival]
