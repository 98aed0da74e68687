"""Speed and memory on this machine: ``make bench``, or ``python -m torchmor.experiments.benchmark``.

The networks are those of `torchmor convolutional` on images of 28 × 28 pixels, reduced to the sizes that are distilled
there, with random weights: for times the sizes count, not what was learned. What a reduction does to accuracy is shown
by that command.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import torch
from rich.console import Console
from torch import Tensor, nn

from torchmor.adapters import fold, reduce_network
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.networks.timing import compare_times
from torchmor.adapters.solving.steps import COARSE, solved_by
from torchmor.adapters.solving.torch_private import forget_compiled
from torchmor.experiments.data.random_images import random_images
from torchmor.experiments.measure.floor import Machine, measure_machine, needs
from torchmor.experiments.measure.progress import progress
from torchmor.experiments.measure.runtimes import TorchodeLayer, compiled, eager, in_onnx_runtime
from torchmor.experiments.measure.surroundings import surroundings, threads, threads_in_words
from torchmor.experiments.report.table import NOTHING, empty_table, milliseconds, ratio
from torchmor.experiments.report.verdict import PARTS
from torchmor.experiments.studies.convolutional import EXPERIMENT
from torchmor.experiments.studies.networks import LAYER, NetworkRecipe, ode_layer
from torchmor.experiments.studies.offline_costs import offline_costs, print_costs

BATCHES = (1, 32, 256, 2048)
THREADS = (1, 2)

#: Samples that networks are reduced with, and entries of a sampled encoder for each reduced state.
SAMPLES, ENTRIES_PER_STATE = 2048, 4

EAGER, COMPILED, ONNX = "torch", "compiled", "ONNX Runtime"

#: Seconds that repeated calls of all rows at one batch may take.
BUDGET_S = 6.0


@dataclass(frozen=True)
class Subject:
    """Something that is timed.

    Parameters
    ----------
    network
        Key of the network.
    part
        "layer" or "network".
    name, runtime
        What it is, and what runs it.
    ready
        Number of threads → batch → call.
    module
        The module, where torch runs it as it is.
    floor
        Whether the module is compared with what the machine could do at best.
    """

    network: str
    part: str
    name: str
    runtime: str
    ready: Callable[[int], Callable[[Tensor], Callable[[], object]]]
    module: nn.Module | None = None
    floor: bool = False


def subjects(recipe: NetworkRecipe, folder: Path, samples: int = SAMPLES) -> tuple[list[Subject], dict[str, Tensor]]:
    """Return what is timed of a network, and its arguments: images, and states for the layer alone."""
    data = random_images(max(samples, *BATCHES))
    full: Any = recipe.network(data, 0).eval().requires_grad_(False)
    images = data.train.inputs
    sizes = EXPERIMENT.levels.distilled[recipe.key][0]
    small = reduce_network(
        full,
        LAYER,
        images[:samples],
        state_dim=sizes.r,
        points=sizes.m,
        metric="agreement",
        progress=False,
    )
    small = solved_by(small, LAYER, sizes.solver).requires_grad_(False)
    words = f"r {sizes.r}, m {sizes.m}, {sizes.solver}"
    folded = {f"{words}, folded": fold(small, images[:2])}
    sampled = fold(small, images[:samples], sampled_encoder=ENTRIES_PER_STATE * sizes.r)
    if not sampled.explain().exact:
        folded[f"{words}, folded, sampled encoder"] = sampled
    with torch.no_grad():
        states = full.stem(images)

    def torch_row(part: str, name: str, module: nn.Module, floor: bool = False) -> Subject:
        return Subject(recipe.key, part, name, EAGER, lambda count: eager(module), module, floor)

    def compiled_row(part: str, name: str, module: nn.Module) -> Subject:
        return Subject(recipe.key, part, name, COMPILED, lambda count: compiled(module))

    def onnx_row(part: str, name: str, module: nn.Module) -> Subject:
        example = states if part == "layer" else images
        file = f"{recipe.key}-{part}-{name}".replace(" ", "-").replace(",", "")
        return Subject(recipe.key, part, name, ONNX, in_onnx_runtime(module, folder, file, example[:3]))

    coarse = {str(steps): solved_by(full, LAYER, steps) for steps in COARSE}
    layer, reduced = full.ode, ode_layer(small)
    rows = [
        torch_row("layer", f"full, {layer.method}", layer),
        Subject(recipe.key, "layer", f"full, {layer.method}", "torchode", lambda count: eager(TorchodeLayer(layer))),
        *(torch_row("layer", f"full, {name}", ode_layer(network)) for name, network in coarse.items()),
        *(compiled_row("layer", f"full, {name}", ode_layer(network)) for name, network in coarse.items()),
        torch_row("layer", words, reduced, floor=True),
        compiled_row("layer", words, reduced),
        onnx_row("layer", words, reduced),
        onnx_row("layer", f"one product, n to {sizes.r}", nn.Sequential(nn.Flatten(), copy.deepcopy(reduced.encode))),
        torch_row("network", f"full, {layer.method}", full),
        *(torch_row("network", f"full, {name}", network) for name, network in coarse.items()),
        *(onnx_row("network", f"full, {name}", network) for name, network in coarse.items()),
        torch_row("network", words, small),
        onnx_row("network", words, small),
    ]
    for name, network in folded.items():
        rows += [
            torch_row("network", name, network, floor=True),
            compiled_row("network", name, network),
            onnx_row("network", name, network),
        ]
    pixels = images[0].numel()
    product = nn.Sequential(nn.Flatten(), nn.Linear(pixels, sizes.r))
    rows.append(onnx_row("network", f"one product, {pixels} to {sizes.r}", product))
    return rows, {"layer": states, "network": images}


def times(
    rows: Sequence[Subject], arguments: dict[str, Tensor], machine: Machine, batches: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Time all rows with the machine's threads, interleaved, batch by batch.

    Returns
    -------
    list of dict
        For each row and batch: "network", "part", "name", "runtime", "device", "batch", "floor_s" (None where there is
        none), and the entries of :class:`~torchmor.adapters.networks.timing.Timing`.
    """
    found = []
    forget_compiled()  # code is compiled for a number of threads
    with threads(machine.threads), torch.no_grad():
        ready = [row.ready(machine.threads) for row in rows]
        words = f"network {rows[0].network}, {threads_in_words(machine.threads)}"
        with progress(words, len(batches)) as bar:
            for batch in batches:
                parts = {part: value[:batch].clone() for part, value in arguments.items()}
                calls = {i: prepare(parts[row.part]) for i, (row, prepare) in enumerate(zip(rows, ready, strict=True))}
                timed = compare_times(calls, repeats=repeats, budget_s=BUDGET_S)
                for i, row in enumerate(rows):
                    floor = None
                    if row.floor and row.module is not None:
                        floor = machine.floor_s(*needs(row.module, parts[row.part]))
                    found.append(_entry(row, "cpu", batch, floor) | asdict(timed[i]))
                bar.advance()
    return found


def times_on_cuda(
    rows: Sequence[Subject], arguments: dict[str, Tensor], batches: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Time the rows that torch runs on a GPU, in the form of :func:`times`; there is no floor."""
    found = []
    modules = {row: copy.deepcopy(row.module).cuda() for row in rows if row.module is not None}
    for batch in batches:
        parts = {part: value[:batch].cuda() for part, value in arguments.items()}
        calls = {row: eager(module)(parts[row.part]) for row, module in modules.items()}
        timed = compare_times(calls, repeats=repeats, budget_s=BUDGET_S)
        found += [_entry(row, "cuda", batch, None) | asdict(timed[row]) for row in modules]
    return found


def run(
    *,
    out: Annotated[Path, cyclopts.Parameter(help="JSON file for the raw numbers.")] = Path("reports/benchmark.json"),
    repeats: Annotated[int, cyclopts.Parameter(help="Calls of which the median time is taken, at most.")] = 15,
) -> None:
    """Measure how fast full and reduced networks are here, and what a reduction costs."""
    if repeats < 1 or out.is_dir():
        sys.exit(f"expected a file as --out and at least 1 of --repeats, got {out} and {repeats}")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    machines = [measure_machine(count) for count in THREADS]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in EXPERIMENT.recipes:
            timed, arguments = subjects(recipe, Path(folder))
            rows += [row for machine in machines for row in times(timed, arguments, machine, BATCHES, repeats)]
            if torch.cuda.is_available():
                rows += times_on_cuda(timed, arguments, BATCHES, repeats)
    offline = offline_costs(max(THREADS))
    places = ("network", "part", "device", "threads")
    for place in dict.fromkeys(tuple(row[key] for key in places) for row in rows):
        print_times(console, [row for row in rows if tuple(row[key] for key in places) == place])
    for machine in machines:
        console.print(
            f"{threads_in_words(machine.threads)}: {machine.bytes_per_s / 1e9:.1f} GB/s, "
            f"{machine.operations_per_s / 1e9:.0f} · 10⁹ multiply–adds/s",
            highlight=False,
        )
    print_costs(console, offline)
    result: dict[str, Any] = {"command": "python -m torchmor.experiments.benchmark", "surroundings": surroundings()}
    result |= {"machine": [asdict(machine) for machine in machines], "times": rows, "offline": offline}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"raw numbers: {out}", highlight=False)


def print_times(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print one line for each row of a network's part on one device, and one column for each batch.

    What is computed is the same in every runtime, and so is its floor.
    """
    first, batches = rows[0], list(dict.fromkeys(row["batch"] for row in rows))
    floors = {(row["name"], row["batch"]): row["floor_s"] for row in rows if row["floor_s"]}
    cells = {}
    for row in rows:
        floor = floors.get((row["name"], row["batch"]))
        times = f" ({ratio(row['wall_s'] / floor)})" if floor else ""
        cells[row["name"], row["runtime"], row["batch"]] = milliseconds(row["wall_s"]) + times
    where = first["device"] if first["device"] != "cpu" else threads_in_words(first["threads"])
    title = f"Network {first['network']}, {PARTS[first['part']]}, {where}: ms (times the floor)"
    table = empty_table(["what, solver", "in", *(f"×{batch:,}" for batch in batches)], 2, title)
    for name, runtime in dict.fromkeys((row["name"], row["runtime"]) for row in rows):
        table.add_row(name, runtime, *(cells.get((name, runtime, batch), NOTHING) for batch in batches))
    console.print(table, highlight=False)


def _entry(row: Subject, device: str, batch: int, floor_s: float | None) -> dict[str, Any]:
    names = ("network", "part", "name", "runtime")
    return {name: getattr(row, name) for name in names} | {"device": device, "batch": batch, "floor_s": floor_s}


if __name__ == "__main__":
    cyclopts.run(run)
