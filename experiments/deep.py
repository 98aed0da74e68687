"""`torchmor deep`: ODE functions of the forms that people publish, trained on data, each reduced by one call."""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters import ODELayer, distill, reduce_network
from torchmor.adapters.atomic import atomic_path
from torchmor.adapters.steps import Steps, solved_by, solver_name
from torchmor.engine.bases import pod
from torchmor.experiments.accuracy import accuracy, predict
from torchmor.experiments.comparison import layer_arguments
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.deep_networks import (
    ControlledFunction,
    DrivenClassifier,
    LatentOde,
    NormalisedOde,
    RateFunction,
)
from torchmor.experiments.experiment import LAYER
from torchmor.experiments.networks import NetworkRecipe, Training
from torchmor.experiments.surroundings import surroundings, threads
from torchmor.experiments.table import ratio
from torchmor.experiments.timing import compare_times
from torchmor.experiments.trained import trained_network

#: Samples of the timed calls.
BATCH = 256

MIDPOINT = Steps("midpoint", 1)


@dataclass(frozen=True)
class Outcome:
    """What reducing one network gave.

    Parameters
    ----------
    network, function
        What it is.
    sizes
        State and stages, before and after.
    measure
        What the losses are.
    losses
        Name of a network → its loss on test data.
    gains
        Name of a full solver → how many times as fast as the full layer with it the reduced layer is.
    offline_s
        Seconds that the reduction took, and distilling.
    """

    network: str
    function: str
    sizes: str
    measure: str
    losses: dict[str, float]
    gains: dict[str, float]
    offline_s: dict[str, float]


def normalised(images: DataSet, folder: Path, seed: int = 0, count: int = 1) -> Outcome:
    """Reduce a network of the form of torchdiffeq's example for MNIST: three group normalisations, two convolutions."""
    training = Training(
        epochs=3, least_steps=100, batch_size=128, learning_rate=2e-3, weight_decay=1e-2, solver=MIDPOINT
    )
    recipe = NetworkRecipe("normalised", "", "", lambda data: NormalisedOde(data.classes), training)
    full, inputs = trained_network(recipe, images, seed, folder), images.train.inputs
    coarse, start = solved_by(full, LAYER, MIDPOINT), time.perf_counter()
    sizes = {"state_dim": 32, "points": 128, "solver": MIDPOINT}
    small = reduce_network(full, LAYER, inputs[:2000], **sizes, metric="agreement", progress=False)
    reduced = time.perf_counter()
    tuned = distill(
        coarse, small, inputs[:20_000], validation=images.validation.inputs, epochs=15, seed=seed, progress=False
    )
    offline_s = {"reduction": reduced - start, "distillation": time.perf_counter() - reduced}
    exact, *others = (
        accuracy(predict(network, images.test.inputs), images.test.labels) for network in (full, coarse, small, tuned)
    )
    names = (f"full, {MIDPOINT}", "reduced", "distilled")
    return Outcome(
        "images, 64 channels of 6 × 6",
        "norm(conv(relu(norm(conv(relu(norm(y)), t))), t))",
        _sizes(small),
        f"points of accuracy lost, of {exact:.1f} %",
        {name: exact - other for name, other in zip(names, others, strict=True)},
        _gains(full.ode, small.ode, layer_arguments(full, LAYER, images.validation.inputs[:BATCH]), [MIDPOINT], count),
        offline_s,
    )


def latent(sequences: DataSet, folder: Path, seed: int = 0, count: int = 1) -> Outcome:
    """Reduce the function of a latent ODE, which has a small state and wide layers."""
    full, start = _reconstructing(sequences, seed), time.perf_counter()
    small = reduce_network(full, LAYER, sequences.train.inputs, state_dim="full", points=32, progress=False)
    offline_s = {"reduction": time.perf_counter() - start}
    arguments = layer_arguments(full, LAYER, sequences.test.inputs)
    with torch.no_grad():
        exact, found = full.ode(*arguments), small.ode(*arguments)
    return Outcome(
        "latent trajectories, 15 states",
        "three hidden layers of 100 units, tanh",
        _sizes(small),
        "relative error of the trajectories",
        {"reduced": _relative_error(found, exact)},
        _gains(full.ode, small.ode, arguments, [], count),
        offline_s,
    )


def rates(sequences: DataSet, folder: Path, seed: int = 0, count: int = 1) -> Outcome:
    """Reduce a rate network of 256 units to the error of the best projection of its rank."""
    full = _classifier("rates", sequences, folder, seed, lambda p: RateFunction(p, 256), 256, slopes=False)
    layer = _trajectories(full.ode)
    calibration, held_out = (layer_arguments(full, LAYER, part.inputs) for part in (sequences.train, sequences.test))
    start = time.perf_counter()
    small = reduce_network(layer, "", calibration, state_dim=32, points=128, progress=False)
    offline_s = {"reduction": time.perf_counter() - start}
    with torch.no_grad():
        exact, found = layer(*held_out), small(*held_out)
    best = pod(exact.flatten(0, 1).T.double().numpy()).dropped_energy(32) ** 0.5
    return Outcome(
        "rates, 256 units driven by recordings",
        "−y + W tanh(y) + B u",
        _sizes(small, ""),
        "relative error of the trajectories",
        {"best projection of rank 32": best, "reduced": _relative_error(found, exact)},
        _gains(layer, small, held_out, [], count),
        offline_s,
    )


def controlled(sequences: DataSet, folder: Path, seed: int = 0, count: int = 1) -> Outcome:
    """Reduce a neural controlled differential equation."""
    units, width = 32, 128
    full = _classifier(
        "controlled", sequences, folder, seed, lambda p: ControlledFunction(p, units, width), units, slopes=True
    )
    start = time.perf_counter()
    small = reduce_network(
        full, LAYER, sequences.train.inputs, state_dim=16, points=64, metric="agreement", progress=False
    )
    offline_s = {"reduction": time.perf_counter() - start}
    exact, found = (
        accuracy(predict(network, sequences.test.inputs), sequences.test.labels) for network in (full, small)
    )
    return Outcome(
        "neural CDE, 32 units driven by recordings",
        "tanh(W₂ relu(W₁ y)) dX/dt",
        _sizes(small),
        f"points of accuracy lost, of {exact:.1f} %",
        {"reduced": exact - found},
        _gains(full.ode, small.ode, layer_arguments(full, LAYER, sequences.test.inputs), [], count),
        offline_s,
    )


def run_deep(
    images: DataSet | None,
    sequences: DataSet,
    folder: Path,
    *,
    seed: int = 0,
    timing_threads: int = 1,
    console: Console,
) -> list[Outcome]:
    """Train, reduce and compare all of them; writes deep.json.

    Parameters
    ----------
    images
        Images of 28 × 28 pixels; None leaves out the network for images, whose training takes most of the time.
    sequences
        Recordings with their classes.
    folder
        For the result and the trained networks; it is made if it is missing.
    seed
        Of everything that is random.
    timing_threads
        Threads of the timed calls.
    console
        Where to print to.
    """
    networks = folder / "networks"
    networks.mkdir(parents=True, exist_ok=True)
    studies = [latent, rates, controlled]
    data = [sequences] * len(studies)
    if images is not None:
        studies, data = [normalised, *studies], [images, *data]
    found = []
    for study, of_study in zip(studies, data, strict=True):
        found.append(study(of_study, networks, seed, timing_threads))
        print_outcome(console, found[-1])
    with atomic_path(folder / "deep.json") as temporary:
        settings = {"data": list(dict.fromkeys(one.name for one in data)), "seed": seed, **surroundings()}
        temporary.write_text(json.dumps({**settings, "outcomes": [asdict(one) for one in found]}, indent=1) + "\n")
    return found


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what reducing one network gave."""
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left")
    table.title = f"{outcome.network}: y' = {outcome.function}"
    table.add_row("sizes", outcome.sizes)
    losses = ", ".join(f"{name} {loss:.3g}" for name, loss in outcome.losses.items())
    table.add_row(outcome.measure, losses)
    gains = ", ".join(f"{ratio(gain)} × with {solver}" for solver, gain in outcome.gains.items())
    table.add_row("faster than the full layer", f"{gains} (batch {BATCH})")
    table.add_row("offline", ", ".join(f"{name} {wall_s:.0f} s" for name, wall_s in outcome.offline_s.items()))
    console.print(table, highlight=False)


def _sizes(small: nn.Module, name: str = LAYER) -> str:
    parts = small.get_submodule(name).explain().parts
    return ", ".join(
        f"{part.name} {part.full:,}" + f" → {part.reduced:,}" * (part.reduced != part.full) for part in parts
    )


def _gains(
    full: nn.Module, small: nn.Module, arguments: tuple[Tensor, ...], solvers: Sequence[Steps], count: int
) -> dict[str, float]:
    """Return how many times as fast as a full layer, with its own solver and others, a reduced one is."""
    arguments = tuple(torch.cat([argument] * -(-BATCH // len(argument)))[:BATCH] for argument in arguments)
    layers = {solver_name(full): full} | {str(steps): solved_by(full, "", steps) for steps in solvers}
    calls = {name: partial(layer, *arguments) for name, layer in {"": small, **layers}.items()}
    with threads(count):
        timed = compare_times(calls, budget_s=10.0)
    return {name: timed[name].wall_s / timed[""].wall_s for name in layers}


def _trajectories(layer: ODELayer) -> ODELayer:
    """Return a layer with the states at all of its steps as its output."""
    layer = copy.deepcopy(layer)
    layer.t, layer.options, layer.output = layer.input_times, {}, "trajectory"
    return layer


def _relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _classifier(
    name: str, data: DataSet, folder: Path, seed: int, function: Callable[[int], nn.Module], units: int, slopes: bool
) -> DrivenClassifier:
    """Return a trained classifier of sequences; `function` makes its ODE function for p inputs."""
    _, steps, channels = data.train.inputs.shape

    def build(data: DataSet) -> nn.Module:
        return DrivenClassifier(function(channels + slopes), steps, units, data.classes, slopes)

    training = Training(epochs=5, least_steps=1000, batch_size=32, learning_rate=5e-3, weight_decay=0.1)
    return trained_network(NetworkRecipe(name, name, name, build, training), data, seed, folder)


def _reconstructing(data: DataSet, seed: int, steps: int = 2000, batch: int = 64) -> LatentOde:
    """Return a latent ODE that is trained to reconstruct sequences."""
    inputs = data.train.inputs
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LatentOde(*inputs.shape[1:])
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        chosen = inputs[torch.randint(len(inputs), (batch,), generator=generator)]
        loss = F.mse_loss(network(chosen), chosen)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval().requires_grad_(False)
