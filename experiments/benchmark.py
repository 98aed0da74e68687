"""Speed and memory on this machine: ``make bench``, or ``python -m torchmor.experiments.benchmark``.

Networks here have random weights and random states: for times the sizes count, not what was learned. What a reduction
does to accuracy is shown by `torchmor demo`.
"""

import copy
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import torch
from pymor.core.logger import log_levels
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from torchmor.adapters import ODELayer, full_order_model, reduce_network
from torchmor.adapters.atomic import atomic_path
from torchmor.adapters.steps import COARSE, Steps, set_solver
from torchmor.engine.bases import pod
from torchmor.experiments.progress import progress
from torchmor.experiments.surroundings import surroundings, threads, threads_in_words
from torchmor.experiments.table import milliseconds, ratio
from torchmor.experiments.timing import compare_times

BATCHES = (1, 32, 256)
THREADS = (1, 2)
STATE = (16, 14, 14)
SIZES = ((16, 32), (64, 128))
REDUCED_WITH = (Steps("midpoint", 1), Steps("euler", 2))


def convolution(channels: int) -> nn.Module:
    """Return the ODE function ``tanh(K ∗ y + b)`` with a convolution of 3 × 3."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh())


def layers() -> dict[tuple[str, str], nn.Module]:
    """Return the layers that are timed, by name and solver: the full one, and two reduced ones."""
    torch.manual_seed(0)
    full = ODELayer(convolution(STATE[0]))
    named = {"full": full}
    for r, m in SIZES:
        named[f"r {r}, m {m}"] = reduce_network(
            full, "", torch.randn(64, *STATE), state_dim=r, points=m, progress=False
        )
    found = {(name, layer.method): layer for name, layer in named.items()}
    for name, layer in named.items():
        for steps in COARSE if layer is full else REDUCED_WITH:
            found[name, str(steps)] = coarse = copy.deepcopy(layer)
            set_solver(coarse, steps)
    return found


def layer_times(timed: dict[tuple[str, str], nn.Module], device: str, count: int, repeats: int) -> list[dict[str, Any]]:
    """Time the layers, encoding and decoding included, with a number of threads.

    Returns
    -------
    list of dict
        For each layer and batch: "layer", "solver", "device", "batch", and the entries of
        :class:`~torchmor.experiments.timing.Timing`.
    """
    states = torch.randn(max(BATCHES), *STATE, generator=torch.Generator().manual_seed(1)).to(device)
    there = {key: copy.deepcopy(layer).to(device) for key, layer in timed.items()}
    rows = []
    with threads(count), progress(f"layers on {device}, {count} threads", len(BATCHES) * (repeats + 2)) as bar:
        for batch in BATCHES:
            calls = {key: _call(layer, states[:batch]) for key, layer in there.items()}
            for (name, solver), timing in compare_times(calls, repeats=repeats, progress=bar).items():
                rows.append({"layer": name, "solver": solver, "device": device, "batch": batch} | asdict(timing))
    return rows


def pod_of_many_snapshots() -> Callable[[], Any]:
    """POD, 6,000 snapshots in 3,136 dimensions."""
    random = np.random.default_rng(0)
    snapshots = random.standard_normal((3136, 500)) @ random.standard_normal((500, 6000))
    return lambda: pod(snapshots, 64)


def trace_and_restrict() -> Callable[[], Any]:
    """Trace a convolution of 64 channels on 32 × 32, and restrict it to 256 points."""
    layer, state = ODELayer(convolution(64)), torch.randn(1, 64, 32, 32)
    dofs = np.random.default_rng(0).choice(state.numel(), 256, replace=False)
    return lambda: full_order_model(layer, state).operator.restricted(dofs)


def whole_reduction() -> Callable[[], Any]:
    """reduce_network, n = 3,136 to r = 64 and m = 128, 500 samples."""
    layer, states = ODELayer(convolution(STATE[0])), torch.randn(500, *STATE)
    return lambda: reduce_network(layer, "", states, state_dim=64, points=128, progress=False)


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


def run(
    *,
    out: Annotated[Path, cyclopts.Parameter(help="JSON file for the raw numbers.")] = Path("reports/benchmark.json"),
    repeats: Annotated[int, cyclopts.Parameter(help="Calls of which the median time is taken.")] = 7,
) -> None:
    """Measure how fast full and reduced ODE layers are here, and what a reduction costs."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    timed = layers()
    rows = [row for count in THREADS for row in layer_times(timed, "cpu", count, repeats)]
    if torch.cuda.is_available():
        rows += layer_times(timed, "cuda", 1, repeats)
    offline = offline_costs(min(THREADS))  # more threads are slower where others use the cores too
    print_times(console, rows)
    print_costs(console, offline)
    result = {"command": "python -m torchmor.experiments.benchmark", "surroundings": surroundings()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(result | {"layers": rows, "offline": offline}, indent=1) + "\n")
    console.print(f"raw numbers: {out}", highlight=False)


def print_times(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print one line for each layer, and one column for each device, number of threads and batch."""
    places = list(dict.fromkeys((row["device"], row["threads"], row["batch"]) for row in rows))
    wall_s = {(row["layer"], row["solver"], row["device"], row["threads"], row["batch"]): row["wall_s"] for row in rows}
    title = f"ODE layer on a state of {' × '.join(map(str, STATE))}, ms (gain on the full layer with 1 midpoint step)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer, solver", vertical="bottom")
    for device, count, batch in places:
        where = device if device != "cpu" else threads_in_words(count)
        table.add_column(f"{where}\n×{batch}", justify="right", no_wrap=True)
    for layer, solver in dict.fromkeys((row["layer"], row["solver"]) for row in rows):
        cells = []
        for place in places:
            wall = wall_s[layer, solver, *place]
            cells.append(f"{milliseconds(wall)} ({ratio(wall_s['full', str(REDUCED_WITH[0]), *place] / wall)})")
        table.add_row(f"{layer}, {solver}", *cells)
    console.print(table, highlight=False)


def print_costs(console: Console, costs: list[dict[str, Any]]) -> None:
    """Print what is done once."""
    title = f"Done once, {threads_in_words(costs[0]['threads'])}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("what", "s", "peak memory, MiB"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for cost in costs:
        table.add_row(cost["what"], f"{cost['wall_s']:.3g}", f"{cost['peak_bytes'] / 2**20:,.0f}")
    console.print(table, highlight=False)


def _cost(task: Callable[[], Callable[[], Any]], count: int) -> dict[str, Any]:
    with threads(count), log_levels({"pymor": "WARNING"}):
        call = task()
        before, start = _peak_bytes(reset=True), time.perf_counter()
        call()
        wall_s = time.perf_counter() - start
    what = task.__doc__.strip().rstrip(".")
    return {"what": what, "wall_s": wall_s, "peak_bytes": _peak_bytes() - before, "threads": count}


def _peak_bytes(reset: bool = False) -> int:
    """Return the largest resident memory of this process; on Linux since the last reset."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:  # a new process starts with the peak of its parent
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _call(layer: nn.Module, states: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(states)


if __name__ == "__main__":
    cyclopts.run(run)
