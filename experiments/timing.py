"""Wall times, measured so that they can be compared."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchmor.experiments.progress import Progress

#: Rounds before those that count.
WARM_UP = 2


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
    """

    wall_s: float
    low_s: float
    high_s: float
    repeats: int
    threads: int


def compare_times(
    calls: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 15,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Time several calls in one process, interleaved: what disturbs the machine disturbs all of them.

    Each round makes every call once, in an order of its own, without gradients and garbage collection. On a GPU, a call
    ends when its work is done.

    Parameters
    ----------
    calls
        Name → call without arguments.
    repeats
        Rounds that count; two more before them warm up.
    seed
        Of the orders.
    progress
        Told of each round.
    """
    names = list(calls)
    order = np.random.default_rng(seed)
    walls: dict[str, list[float]] = {name: [] for name in names}
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.no_grad():
            for repeat in range(WARM_UP + repeats):
                for i in order.permutation(len(names)):
                    wait()
                    start = time.perf_counter()
                    calls[names[i]]()
                    wait()
                    if repeat >= WARM_UP:
                        walls[names[i]].append(time.perf_counter() - start)
                if progress is not None:
                    progress.advance()
    finally:
        if collects:
            gc.enable()
    return {name: _timing(values) for name, values in walls.items()}


def _timing(values: list[float]) -> Timing:
    low, high = np.quantile(values, (0.25, 0.75))
    return Timing(statistics.median(values), float(low), float(high), len(values), torch.get_num_threads())
