"""Progress of long work: bars on a terminal, nothing in a pipe."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress:
    """One bar; `advance` moves it by one."""

    def __init__(self, bars: RichProgress, words: str, total: int):
        self._bars = bars
        self._task = bars.add_task(words, total=total)

    def advance(self) -> None:
        """Say that one part of the work is done."""
        self._bars.advance(self._task)


@contextmanager
def progress(words: str, total: int) -> Iterator[Progress]:
    """Show a bar of `total` parts on standard error while the context lasts, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with RichProgress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        yield Progress(bars, words, total)
