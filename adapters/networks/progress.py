"""Progress of long work: bars with the remaining time on a terminal, the log of the name "torchmor" elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import length_hint
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from torchmor.adapters.networks.calibration import Batch, Calibration

_Item = TypeVar("_Item")

_LOG = logging.getLogger("torchmor")

#: A phase tells the log how far it is when so many seconds have passed.
_LOG_EVERY_S = 10.0

#: The bars of the outermost `phases`; None where none are shown.
_BARS: ContextVar[Progress | None] = ContextVar("bars", default=None)


@contextmanager
def phases(progress: bool) -> Iterator[None]:
    """Show what is tracked while the context lasts: as bars if standard error is a terminal, in the log otherwise.

    Contexts inside of others share their bars. However the context ends, its bars are gone then.

    Parameters
    ----------
    progress
        False for the log, on a terminal too.
    """
    with _bars(progress) as bars:
        token = _BARS.set(bars)
        try:
            yield
        finally:
            _BARS.reset(token)


def track(items: Iterable[_Item], words: str, total: int | None = None) -> "Phase[_Item]":
    """Return items behind a bar of the `phases` around, or the log.

    Parameters
    ----------
    items
        What is done one by one.
    words
        What it is, in a few words.
    total
        Number of items; None for the length of what has one.
    """
    return Phase(items, words, total or length_hint(items) or None, _BARS.get())


def shown(calibration: Calibration, progress: bool, words: str) -> Iterator[Batch]:
    """Yield the batches of calibration data, as :func:`track` in :func:`phases` of their own."""
    with _bars(progress) as bars:
        yield from Phase(calibration, words, calibration.total_batches(), bars)


class Phase(Generic[_Item]):
    """The items of :func:`track`; the words may be changed by :meth:`say` while they are taken."""

    def __init__(self, items: Iterable[_Item], words: str, total: int | None, bars: Progress | None):
        self._items, self._words, self._total, self._bars = items, words, total, bars
        self._task: TaskID | None = None

    def say(self, words: str) -> None:
        """Say in other words what is done now."""
        if self._bars is None:
            _LOG.info(words)
        elif self._task is not None:
            self._bars.update(self._task, description=words)

    def __iter__(self) -> Iterator[_Item]:
        return self._logged() if self._bars is None else self._shown(self._bars)

    def _shown(self, bars: Progress) -> Iterator[_Item]:
        self._task = bars.add_task(self._words, total=self._total)
        try:
            for item in self._items:
                yield item
                bars.advance(self._task)
        finally:
            bars.remove_task(self._task)
            self._task = None

    def _logged(self) -> Iterator[_Item]:
        start = said = time.monotonic()
        done = 0
        for done, item in enumerate(self._items, 1):
            yield item
            now = time.monotonic()
            if now - said >= _LOG_EVERY_S:
                said = now
                _LOG.info("%s: %d%s", self._words, done, self._rest(done, now - start))
        _LOG.info("%s: %d in %.1f s", self._words, done, time.monotonic() - start)

    def _rest(self, done: int, elapsed_s: float) -> str:
        if self._total is None:
            return f" in {elapsed_s:.0f} s"
        return f" of {self._total}, {elapsed_s / done * (self._total - done):.0f} s left"


@contextmanager
def _bars(progress: bool) -> Iterator[Progress | None]:
    """The bars around, or new ones; None where none are to be shown."""
    if not (progress and sys.stderr.isatty()):
        yield None
    elif (outer := _BARS.get()) is not None:
        yield outer
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield bars
