"""Speed and memory on this machine: ``make bench``, or ``python -m torchmor.experiments.benchmark``.

Networks here have random weights: for times the sizes count, not what was learned.
"""

import copy
import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from torchmor.adapters import ODELayer, full_order_model, reduce_network
from torchmor.adapters.atomic import atomic_path
from torchmor.engine.bases import pod
from torchmor.experiments.surroundings import surroundings, threads
from torchmor.experiments.timing import compare_times

BATCHES = (1, 32, 256)
SOLVERS = {
    "dopri5": {"method": "dopri5"},
    "1 midpoint step": {"method": "midpoint"},
    "2 Euler steps": {"method": "euler", "options": {"step_size": 0.5}},
}
SIZES = ((16, 32), (64, 128))


def convolution(channels: int) -> nn.Module:
    """Return the ODE function ``tanh(conv3×3)``."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh())


def layer_times(device: str, count: int, repeats: int) -> list[dict[str, Any]]:
    """Time the full and the reduced layer, encoding and decoding counted, on a state of 16 × 14 × 14."""
    torch.manual_seed(0)
    states = torch.randn(max(BATCHES), 16, 14, 14)
    full = ODELayer(convolution(16))
    layers = {"full": full}
    for r, m in SIZES:
        small = reduce_network(full, "", states, state_dim=r, points=m, progress=False)
        layers[f"reduced, r = {r}, m = {m}"] = small
    rows = []
    for batch in BATCHES:
        calls = {}
        for name, layer in layers.items():
            for solver, settings in SOLVERS.items():
                layer = copy.deepcopy(layer)
                for key, value in settings.items():
                    setattr(layer, key, value)
                calls[name, solver] = _call(layer.to(device), states[:batch].to(device))
        with threads(count):
            times = compare_times(calls, repeats=repeats)
        for (name, solver), timing in times.items():
            gain = times["full", solver].wall_s / timing.wall_s
            row = {"layer": name, "solver": solver, "batch": batch, "device": device, "gain_same_solver": gain}
            rows.append(row | asdict(timing))
    return rows


def offline_costs() -> dict[str, float]:
    """Time what runs once: POD, tracing a large convolution, a whole reduction; and the peak memory."""
    costs = {}
    random = np.random.default_rng(0)
    snapshots = [random.standard_normal((3136, 6000))]
    costs["pod_6000_snapshots_3136_dimensions_wall_s"] = _wall(lambda: pod(snapshots.pop(), 64))
    layer = ODELayer(convolution(64))
    models = []
    states = torch.randn(2, 64, 32, 32)
    costs["trace_64x32x32_wall_s"] = _wall(lambda: models.append(full_order_model(layer, states)))
    dofs = random.choice(64 * 32 * 32, 256, replace=False)
    costs["restrict_256_dofs_wall_s"] = _wall(lambda: models[0].operator.restricted(dofs))
    data = torch.randn(500, 16, 14, 14)
    full = ODELayer(convolution(16))
    costs["reduce_network_n3136_r64_m128_wall_s"] = _wall(
        lambda: reduce_network(full, "", data, state_dim=64, points=128, progress=False)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    costs["peak_bytes"] = peak * (1 if sys.platform == "darwin" else 1024)
    return costs


def main(out: Path = Path("benchmark.json"), repeats: int = 15) -> None:
    """Measure, print a table, and write the raw numbers."""
    console = Console()
    rows = [row for count in (1, 2) for row in layer_times("cpu", count, repeats)]
    if torch.cuda.is_available():
        rows += layer_times("cuda", 1, repeats)
    costs = offline_costs()
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps({"rows": rows, "offline": costs, "surroundings": surroundings()}, indent=1))
    table = Table(title="ODE layer, state 16 × 14 × 14, encoding and decoding counted; random weights")
    for column in ("layer", "solver", "device", "threads", "batch", "ms", "times as fast as full, same solver"):
        table.add_column(column, justify="left" if column in ("layer", "solver", "device") else "right")
    for row in rows:
        cells = (row["layer"], row["solver"], row["device"], row["threads"], row["batch"])
        table.add_row(*map(str, cells), f"{1e3 * row['wall_s']:.3g}", f"{row['gain_same_solver']:.2g}")
    console.print(table)
    for name, cost in costs.items():
        console.print(f"{name}: {cost:,.3g}" if name.endswith("wall_s") else f"{name}: {cost:,}", highlight=False)
    console.print(f"raw numbers: {out}", highlight=False)


def _call(layer: nn.Module, states: torch.Tensor):
    return lambda: layer(states)


def _wall(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
