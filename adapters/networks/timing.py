"""Wall times, measured so that they can be compared."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

_Name = TypeVar("_Name")

#: Rounds before those that count, if nothing else is asked for.
WARM_UP = 2

#: Rounds that count even when they take longer than the budget, if nothing else is asked for.
FEWEST = 3


@dataclass(frozen=True)
class Timing:
    """Wall times of repeated calls, in seconds.

    Parameters
    ----------
    wall_s
        Median.
    low_s, high_s
        Quartiles.
    repeats
        Number of calls.
    threads
        Threads of torch.
    yardstick_s
        Median of another call, always the same one, timed in turns with these.
    """

    wall_s: float
    low_s: float
    high_s: float
    repeats: int
    threads: int
    yardstick_s: float | None = None

    def against(self, yardstick: "Timing") -> "Timing":
        """Return these times with those of the yardstick that was timed in turns with them."""
        return replace(self, yardstick_s=yardstick.wall_s)

    def scaled(self, yardstick_s: float) -> "Timing":
        """Return these times as they would be if the yardstick had taken so long."""
        assert self.yardstick_s is not None
        factor = yardstick_s / self.yardstick_s
        times = {key: factor * getattr(self, key) for key in ("wall_s", "low_s", "high_s")}
        return replace(self, **times, yardstick_s=yardstick_s)


def now() -> float:
    """Return the time in seconds, when a GPU has done its work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def compare_times(
    calls: Mapping[_Name, Callable[[], Any]],
    *,
    repeats: int = 15,
    budget_s: float = math.inf,
    fewest: int = FEWEST,
    warm_up: int = WARM_UP,
    seed: int = 0,
) -> dict[_Name, Timing]:
    """Time several calls in one process, interleaved: what disturbs the machine disturbs all of them.

    Each round makes every call once, in an order of its own, without gradients and garbage collection. On a GPU, a call
    ends when its work is done.

    Parameters
    ----------
    calls
        Name → call without arguments.
    repeats
        Rounds that count.
    budget_s
        A call that has had its equal share of so many seconds, by its least time, sits out the rounds that follow: what
        disturbs the first calls does not make their number small.
    fewest
        Rounds that count for each call, whatever they take.
    warm_up
        Rounds before those that count.
    seed
        Of the orders.
    """
    names = list(calls)
    order = np.random.default_rng(seed)
    walls: dict[_Name, list[float]] = {name: [] for name in names}
    share_s = budget_s / max(len(names), 1)
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.no_grad():
            for _ in range(warm_up + repeats):
                for i in order.permutation(len(names)):
                    made = walls[names[i]]
                    if len(made) >= warm_up + fewest and len(made) * min(made) > share_s:
                        continue
                    start = now()
                    calls[names[i]]()
                    made.append(now() - start)
    finally:
        if collects:
            gc.enable()
    return {name: _timing(values[warm_up:]) for name, values in walls.items()}


def _timing(values: list[float]) -> Timing:
    low, high = np.quantile(values, (0.25, 0.75))
    return Timing(statistics.median(values), float(low), float(high), len(values), torch.get_num_threads())
