"""What a reduction costs once: wall time and peak memory, each task in a process of its own."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymor.core.logger import log_levels
from rich.console import Console
from torch import nn

from torchmor.adapters import ODELayer, full_order_model, reduce_network
from torchmor.engine.bases import pod
from torchmor.experiments.data.random_images import random_images
from torchmor.experiments.measure.progress import progress
from torchmor.experiments.measure.surroundings import threads, threads_in_words
from torchmor.experiments.report.table import empty_table
from torchmor.experiments.studies.networks import CONVOLUTIONAL, LAYER


def pod_of_many_snapshots() -> Callable[[], Any]:
    """POD, 6,000 snapshots in 3,136 dimensions."""
    random = np.random.default_rng(0)
    snapshots = random.standard_normal((3136, 500)) @ random.standard_normal((500, 6000))
    return lambda: pod(snapshots, 64)


def trace_and_restrict() -> Callable[[], Any]:
    """Trace a convolution of 64 channels on 32 × 32, and restrict it to 256 points."""
    layer, state = ODELayer(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Tanh())), torch.randn(1, 64, 32, 32)
    dofs = np.random.default_rng(0).choice(state.numel(), 256, replace=False)
    return lambda: full_order_model(layer, state).operator.restricted(dofs)


def whole_reduction() -> Callable[[], Any]:
    """reduce_network, network a, n = 3,136 to r = 64 and m = 128, 2,000 images."""
    data = random_images(2000)
    network = CONVOLUTIONAL[0].network(data, 0)
    sizes: dict[str, Any] = {"state_dim": 64, "points": 128, "metric": "agreement"}
    return lambda: reduce_network(network, LAYER, data.train.inputs, **sizes, progress=False)


OFFLINE = (pod_of_many_snapshots, trace_and_restrict, whole_reduction)


def offline_costs(count: int) -> list[dict[str, Any]]:
    """Measure what is done once, each in a process of its own: wall time, and peak memory above that before."""
    processes = multiprocessing.get_context("spawn")
    costs = []
    with progress("offline", len(OFFLINE)) as bar:
        for task in OFFLINE:
            with processes.Pool(1) as pool:
                costs.append(pool.apply(_cost, (task, count)))
            bar.advance()
    return costs


def print_costs(console: Console, costs: list[dict[str, Any]]) -> None:
    """Print what is done once."""
    title = f"Done once, {threads_in_words(costs[0]['threads'])}"
    table = empty_table(["what", "s", "peak memory, MiB"], 1, title)
    for cost in costs:
        table.add_row(cost["what"], f"{cost['wall_s']:.3g}", f"{cost['peak_bytes'] / 2**20:,.0f}")
    console.print(table, highlight=False)


def _cost(task: Callable[[], Callable[[], Any]], count: int) -> dict[str, Any]:
    with threads(count), log_levels({"pymor": "WARNING"}):
        call = task()
        before, start = _peak_bytes(reset=True), time.perf_counter()
        call()
        wall_s = time.perf_counter() - start
    what = (task.__doc__ or "").strip().rstrip(".")
    return {"what": what, "wall_s": wall_s, "peak_bytes": _peak_bytes() - before, "threads": count}


def _peak_bytes(reset: bool = False) -> int:
    """Return the largest resident memory of this process; on Linux since the last reset."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:  # a new process starts with the peak of its parent
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
