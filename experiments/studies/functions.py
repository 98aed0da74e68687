"""`torchmor functions`: ODE functions of the forms that people publish, trained on data, each reduced by one call."""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters import distill, reduce_network
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.networks.timing import compare_times
from torchmor.adapters.reduction.metrics import loss
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.steps import Steps, solved_by, solver_name
from torchmor.experiments.architectures.function_networks import (
    ControlledFunction,
    DrivenClassifier,
    LatentOde,
    NormalisedOde,
    RateFunction,
)
from torchmor.experiments.data.labelled import DataSet, Labelled
from torchmor.experiments.measure.accuracy import accuracy, predict
from torchmor.experiments.measure.comparison import layer_arguments
from torchmor.experiments.measure.surroundings import surroundings, threads
from torchmor.experiments.report.table import ratio, signed
from torchmor.experiments.studies.networks import LAYER, NetworkRecipe, Training, ode_layer
from torchmor.experiments.studies.trained import trained_network

#: Samples of the timed calls.
BATCH = 256

#: Inputs that reductions, distillations, and their validation see at most.
CALIBRATION, DISTILLED, HELD_OUT = 2000, 30_000, 2000

#: Pixels on each side of the images.
PIXELS = 28

#: Steps of the reduced layer, and those that the full one is trained with and teaches with: they solve it well enough.
MIDPOINT, RK4 = Steps("midpoint", 1), Steps("rk4", 1)


@dataclass(frozen=True)
class Outcome:
    """What reducing one network gave.

    Parameters
    ----------
    network, function
        What it is, in words.
    sizes
        State and stages, before and after.
    measure
        What was measured, on test data: relative errors of trajectories, or differences of accuracy in points.
    values
        What was compared → its value.
    gains
        A solver of the full layer → how many times as fast as the full layer with it the smallest network's layer is.
    offline_s
        What was done once → seconds that it took.
    """

    network: str
    function: str
    sizes: str
    measure: str
    values: dict[str, float]
    gains: dict[str, float]
    offline_s: dict[str, float]


@dataclass(frozen=True)
class Setting:
    """What all studies share.

    Parameters
    ----------
    folder
        For the result, and for trained networks; it is made if it is missing.
    seed
        Of everything that is random.
    timing_threads
        Threads of the timed calls.
    quick
        Whether trainings and distillations are short: to see that everything works.
    """

    folder: Path
    seed: int = 0
    timing_threads: int = 1
    quick: bool = False

    def network(self, name: str, data: DataSet, build: Callable[[DataSet], nn.Module], training: Training) -> nn.Module:
        """Return a trained classifier."""
        if self.quick:
            training = replace(training, epochs=1, least_steps=30)
        return trained_network(
            NetworkRecipe(name, name, name, build, training), data, self.seed, self.folder / "networks"
        )

    def gains(
        self, full: SolvingLayer, small: nn.Module, arguments: tuple[Tensor, ...], solvers: Sequence[Steps] = ()
    ) -> dict[str, float]:
        """Return how many times as fast as a full layer, with its own solver and others, a reduced one is."""
        arguments = tuple(torch.cat([argument] * -(-BATCH // len(argument)))[:BATCH] for argument in arguments)
        layers = {solver_name(full): full} | {str(steps): solved_by(full, "", steps) for steps in solvers}
        calls = {name: partial(layer, *arguments) for name, layer in {"": small, **layers}.items()}
        with threads(self.timing_threads):
            timed = compare_times(calls, budget_s=1.0 if self.quick else 10.0)
        return {name: timed[name].wall_s / timed[""].wall_s for name in layers}


def normalised_network(images: DataSet, setting: Setting) -> nn.Module:
    """Return a trained classifier of images of 28 × 28 pixels, of the form of torchdiffeq's example for MNIST."""
    training = Training(epochs=3, least_steps=100, batch_size=128, learning_rate=2e-3, weight_decay=1e-2, solver=RK4)
    return setting.network("normalised", images, lambda data: NormalisedOde(data.classes), training)


def latent_network(data: DataSet, setting: Setting, steps: int = 1500, batch: int = 64) -> LatentOde:
    """Return a latent ODE that is trained to reconstruct sequences."""
    inputs = data.train.inputs
    generator = torch.Generator().manual_seed(setting.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        network = LatentOde(*inputs.shape[1:])
    steps = 50 if setting.quick else steps
    # weights that are not held small learn the training sequences by heart, and no fewer units can do what they do
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=2.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        chosen = inputs[torch.randint(len(inputs), (batch,), generator=generator)]
        error = F.mse_loss(network(chosen), chosen)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def rate_network(sequences: DataSet, setting: Setting) -> nn.Module:
    """Return a trained classifier of sequences: a rate network of 256 units."""
    return _classifier("rates", sequences, setting, lambda p: RateFunction(p, 256), 256, slopes=False)


def controlled_network(sequences: DataSet, setting: Setting, units: int = 64, width: int = 256) -> nn.Module:
    """Return a trained classifier of sequences: a neural controlled differential equation."""
    return _classifier(
        "controlled", sequences, setting, lambda p: ControlledFunction(p, units, width), units, slopes=True
    )


def normalised(images: DataSet, setting: Setting) -> Outcome:
    """Reduce a network of the form of torchdiffeq's example for MNIST: three group normalisations, two convolutions."""
    full, start = normalised_network(images, setting), time.perf_counter()
    sizes: dict[str, Any] = {"state_dim": 32, "points": 128, "solver": MIDPOINT}
    small = reduce_network(full, LAYER, images.train.inputs[:CALIBRATION], **sizes, metric="agreement", progress=False)
    reduced = time.perf_counter()
    tuned = distill(
        solved_by(full, LAYER, RK4),
        small,
        images.train.inputs[:DISTILLED],
        validation=images.validation.inputs[:HELD_OUT],
        epochs=2 if setting.quick else 14,
        learning_rate=2e-2,
        seed=setting.seed,
        progress=False,
    )
    offline_s = {"reduction": reduced - start, "distillation": time.perf_counter() - reduced}
    arguments = layer_arguments(full, LAYER, images.validation.inputs[:BATCH])
    coarse = {f"full with {steps}": solved_by(full, LAYER, steps) for steps in (RK4, MIDPOINT)}
    return Outcome(
        "Images, 64 channels of 6 × 6",
        "norm(conv(relu(norm(conv(relu(norm(y)), t))), t))",
        _sizes(ode_layer(small)),
        *_differences(images, full, coarse | {"reduced": small, "distilled": tuned}),
        setting.gains(ode_layer(full), ode_layer(tuned), arguments, [RK4, MIDPOINT]),
        offline_s,
    )


def latent(sequences: DataSet, setting: Setting) -> Outcome:
    """Reduce the function of a latent ODE, which has a small state and wide layers."""
    full, start = latent_network(sequences, setting), time.perf_counter()
    small = reduce_network(full, LAYER, sequences.train.inputs, state_dim="full", points=32, progress=False)
    offline_s = {"reduction": time.perf_counter() - start}
    arguments = layer_arguments(full, LAYER, sequences.test.inputs)
    with torch.no_grad():
        exact, found = ode_layer(full)(*arguments), ode_layer(small)(*arguments)
    return Outcome(
        "Latent trajectories, 15 states",
        "three hidden layers of 100 units, tanh",
        _sizes(ode_layer(small)),
        "relative error of the trajectories",
        {"reduced": loss("relative", found, exact)},
        setting.gains(ode_layer(full), ode_layer(small), arguments),
        offline_s,
    )


def rates(sequences: DataSet, setting: Setting) -> Outcome:
    """Reduce a rate network of 256 units to the error of the best projection of its rank."""
    full = rate_network(sequences, setting)
    layer = copy.deepcopy(ode_layer(full))
    layer.output = "trajectory"
    calibration, held_out = (layer_arguments(full, LAYER, part.inputs) for part in (sequences.train, sequences.test))
    start = time.perf_counter()
    small = reduce_network(layer, "", calibration, state_dim=32, points=192, progress=False)
    offline_s = {"reduction": time.perf_counter() - start}
    with torch.no_grad():
        exact, found = layer(*held_out), small(*held_out)
    energies = torch.linalg.svdvals(exact.flatten(0, 1).double()).square()
    best = float((energies[32:].sum() / energies.sum()).sqrt())
    return Outcome(
        "Rates, 256 units driven by sequences",
        "−y + W tanh(y) + B u",
        _sizes(small),
        "relative error of the trajectories",
        {"best projection of rank 32": best, "reduced": loss("relative", found, exact)},
        setting.gains(layer, small, held_out),
        offline_s,
    )


def controlled(sequences: DataSet, setting: Setting) -> Outcome:
    """Reduce a neural controlled differential equation."""
    full, start = controlled_network(sequences, setting), time.perf_counter()
    sizes: dict[str, Any] = {"state_dim": 40, "points": 256}
    small = reduce_network(full, LAYER, sequences.train.inputs, **sizes, metric="agreement", progress=False)
    offline_s = {"reduction": time.perf_counter() - start}
    return Outcome(
        "Neural CDE, 64 units driven by sequences",
        "tanh(W₂ relu(W₁ y)) dX/dt",
        _sizes(ode_layer(small)),
        *_differences(sequences, full, {"reduced": small}),
        setting.gains(ode_layer(full), ode_layer(small), layer_arguments(full, LAYER, sequences.test.inputs)),
        offline_s,
    )


def enlarged(images: DataSet) -> DataSet:
    """Return images of 28 × 28 pixels, interpolated where they have fewer."""

    def part(labelled: Labelled) -> Labelled:
        return replace(labelled, inputs=F.interpolate(labelled.inputs, (PIXELS, PIXELS), mode="bilinear"))

    if images.train.inputs.shape[-1] >= PIXELS:
        return images
    return images.changed(f"{images.name}, enlarged to {PIXELS} × {PIXELS}", part)


def run_functions(images: DataSet, sequences: DataSet, setting: Setting, console: Console) -> list[Outcome]:
    """Train, reduce and compare all of them; writes functions.json.

    Parameters
    ----------
    images
        Images of at most 28 × 28 pixels.
    sequences
        Recordings with their classes.
    setting
        What all share.
    console
        Where to print to.
    """
    setting.folder.mkdir(parents=True, exist_ok=True)
    images, found = enlarged(images), []
    if setting.quick:
        images, sequences = images.shortened(200), sequences.shortened(200)
    for study, data in ((latent, sequences), (rates, sequences), (controlled, sequences), (normalised, images)):
        found.append(study(data, setting))
        print_outcome(console, found[-1])
    with atomic_path(setting.folder / "functions.json") as temporary:
        settings = {"images": images.name, "sequences": sequences.name, "seed": setting.seed, **surroundings()}
        temporary.write_text(json.dumps({**settings, "outcomes": [asdict(one) for one in found]}, indent=1) + "\n")
    return found


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what reducing one network gave."""
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left")
    table.title = f"{outcome.network}: y' = {outcome.function}"
    table.add_row("sizes", outcome.sizes)
    form = signed if outcome.measure.endswith("points") else "{:.3g}".format
    table.add_row(outcome.measure, ", ".join(f"{name} {form(value)}" for name, value in outcome.values.items()))
    gains = ", ".join(f"{ratio(gain)} × with {solver}" for solver, gain in outcome.gains.items())
    table.add_row("faster than the full layer", f"{gains} (batch {BATCH})")
    table.add_row("offline", ", ".join(f"{name} {wall_s:.0f} s" for name, wall_s in outcome.offline_s.items()))
    console.print(table, highlight=False)


def _differences(data: DataSet, full: nn.Module, others: Mapping[str, nn.Module]) -> tuple[str, dict[str, float]]:
    """Return what is measured, and by how many points of accuracy other networks differ on test data."""
    exact, *found = (
        accuracy(predict(network, data.test.inputs), data.test.labels) for network in (full, *others.values())
    )
    differences = {name: other - exact for name, other in zip(others, found, strict=True)}
    return f"difference from the accuracy of {exact:.1f} %, points", differences


def _sizes(layer: Any) -> str:
    parts = layer.explain().parts
    left = [part for part in parts if part.fate != "absorbed"]
    words = [f"{part.name} {part.full:,}" + f" → {part.reduced:,}" * (part.reduced != part.full) for part in left]
    return ", ".join(words) + f"; {len(parts) - len(left)} stages absorbed" * (len(left) < len(parts))


def _classifier(
    name: str, data: DataSet, setting: Setting, function: Callable[[int], nn.Module], units: int, slopes: bool
) -> nn.Module:
    """Return a trained classifier of sequences; `function` makes its ODE function for p inputs."""
    _, steps, channels = data.train.inputs.shape

    def build(data: DataSet) -> nn.Module:
        return DrivenClassifier(function(channels + slopes), (steps, channels), units, data.classes, slopes)

    training = Training(epochs=5, least_steps=1000, batch_size=32, learning_rate=5e-3, weight_decay=0.1)
    return setting.network(name, data, build, training)
