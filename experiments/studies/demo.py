"""The demo: a convolutional Neural ODE on digits is trained, reduced by one call, and compared with coarse steps."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from torchmor.adapters import reduce_network, save
from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.reduction.metrics import Metric
from torchmor.adapters.solving.steps import COARSE, Steps
from torchmor.engine.explanation import Explanation
from torchmor.experiments.architectures.convolutional_ode import ConvolutionalOde
from torchmor.experiments.data.images import digits
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.comparison import (
    ADEQUATE_POINTS,
    Candidate,
    Measurement,
    Row,
    on_one_yardstick,
    validation_accuracy,
)
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.measure.progress import progress
from torchmor.experiments.measure.surroundings import surroundings
from torchmor.experiments.report.accuracy_figure import accuracy_against_time
from torchmor.experiments.report.figures import interpolation_points, singular_values
from torchmor.experiments.report.report import (
    Comparison,
    Listing,
    Paragraph,
    Part,
    Picture,
    Points,
    Settings,
    write_report,
    write_rows,
)
from torchmor.experiments.report.table import print_table
from torchmor.experiments.report.verdict import gained_and_lost, verdict
from torchmor.experiments.studies.candidates import method_of
from torchmor.experiments.studies.experiment import layer_size
from torchmor.experiments.studies.networks import LAYER, Training, digits_network, ode_layer
from torchmor.experiments.studies.training import train

#: How the network is trained; dopri5 would take three times as long, these steps solve the ODE to about its tolerance.
TRAINING = Training(
    epochs=20,
    least_steps=0,
    batch_size=64,
    learning_rate=1e-2,
    weight_decay=1.0,
    label_smoothing=0.1,
    solver=Steps("rk4", 2),
)

#: Passes over the training data, and timed calls of which the median is taken; in a quick run fewer of both.
EPOCHS, REPEATS = TRAINING.epochs, 15
QUICK_EPOCHS, QUICK_REPEATS = 3, 3

#: What the reduction is chosen by: the share of images that get another class, for which no labels are needed.
METRIC: Metric = "agreement"


@dataclass(frozen=True)
class Outcome:
    """What a run of the demo measured and wrote.

    Parameters
    ----------
    rows
        The table.
    findings
        What it says.
    files
        Report, raw rows, and the saved reduced network.
    wall_s
        Duration of each part of the run, in seconds.
    """

    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    files: tuple[Path, ...]
    wall_s: dict[str, float]


def run_demo(out: Path, seed: int = 0, *, quick: bool = False, console: Console | None = None) -> Outcome:
    """Train, reduce, compare and report.

    Parameters
    ----------
    out
        Folder for report.html, rows.jsonl and reduced.safetensors; it is made if it is missing.
    seed
        Of the split, the weights, the order of the samples, the held-out samples and the bootstrap.
    quick
        A run of seconds that shows that everything works; its numbers mean little.
    console
        Where to print to.
    """
    console = Console() if console is None else console
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    command = f"torchmor demo --seed {seed} --threads {torch.get_num_threads()}" + (" --quick" if quick else "")

    data = digits(seed)
    network = digits_network(seed)
    training = replace(TRAINING, epochs=QUICK_EPOCHS if quick else EPOCHS)
    with progress("training", training.epochs) as bar:
        history = train(network, data, seed=seed, progress=bar, **training.arguments(len(data.train)))
    clock.tell("trained", f"the network: {validation_accuracy(network, data):.1f} % on validation data")

    small = reduce_network(
        network, LAYER, data.train.inputs, metric=METRIC, validation=data.validation.inputs, seed=seed
    )
    clock.tell("reduced", f"its ODE layer by one call, on the {len(data.train):,} training images")

    rows = _measured(_candidates(network, small, data), network, data, QUICK_REPEATS if quick else REPEATS, seed)
    clock.tell("measured", f"{len(rows)} networks on {len(data.test)} test images")

    explanation: Explanation = ode_layer(small).explain()
    findings = [gained_and_lost(rows, explanation), *verdict(rows), _size(network, small)]
    settings = _settings(command, seed, training, data, network, small) | surroundings()
    report, raw, saved = (out / name for name in ("report.html", "rows.jsonl", "reduced.safetensors"))
    save(small, saved)
    write_rows(raw, rows, settings)
    introduction: list[Part] = [Points(findings)]
    if quick:
        introduction.insert(0, Paragraph("A quick run, to see that everything works: its numbers mean little."))
    sections: dict[str, Sequence[Part]] = {
        "": introduction,
        "What was done": _story(data, network, small, rows, history[-1].loss),
        "The table": [Comparison(rows)],
        **_pictures(data, small, rows),
        "What the reduction says of itself": [Listing(str(explanation))],
    }
    walls = {f"{part} in": f"{wall:.1f} s" for part, wall in clock.wall_s.items()}
    sections["Settings"] = [
        Paragraph("The same command repeats it; wall times differ from run to run."),
        Settings(settings | walls),
        Paragraph(f"Beside this file: {raw.name} has the raw numbers, {saved.name} the reduced network."),
    ]
    write_report(report, "torchmor demo: a convolutional Neural ODE on digits, reduced by one call", sections)
    clock.tell("wrote", f"the report ({sum(clock.wall_s.values()):.0f} s before that)")

    first, *others = findings
    console.print(first, style="bold", highlight=False, soft_wrap=True)
    print_table(console, rows)
    console.print()
    for finding in others:
        console.print(f"• {finding}", highlight=False)
    console.print(f"\nReport with pictures: {report}", highlight=False, soft_wrap=True)
    console.print(f"The reduced layer in words: torchmor info {saved}", highlight=False, soft_wrap=True)
    return Outcome(tuple(rows), tuple(findings), (report, raw, saved), clock.wall_s)


def _candidates(network: ConvolutionalOde, small: nn.Module, data: DataSet) -> list[Candidate]:
    """Return the network with its own solver and with coarse steps, with its layer skipped, and reduced."""
    full = [Candidate("full", {"n": layer_size(network, data)}, network, steps) for steps in (None, *COARSE)]
    explanation = ode_layer(small).explain()
    state, stage = explanation.parts
    reduced = Candidate(_method(explanation), {"r": state.reduced, "m": stage.reduced}, small)
    return [*full, Candidate("skipped", {}, with_layers(network, {LAYER: nn.Identity()})), reduced]


def _method(explanation: Explanation) -> str:
    return "distilled" if explanation.tuning else method_of(explanation.method)


def _measured(
    candidates: list[Candidate], network: ConvolutionalOde, data: DataSet, repeats: int, seed: int
) -> list[Row]:
    threads = torch.get_num_threads()
    measurement = Measurement(
        network, LAYER, data, repeats=repeats, budget_s=math.inf, timing_threads=threads, seed=seed
    )
    rows = []
    with progress("measuring", len(candidates)) as bar:
        for candidate in candidates:
            rows.append(measurement.row(candidate))
            bar.advance()
    return on_one_yardstick(rows)


def _size(network: ConvolutionalOde, small: nn.Module) -> str:
    numbers, fewer = (sum(p.numel() for p in ode_layer(net).parameters()) for net in (network, small))
    before, after = ode_layer(small).explain().operations
    text = (
        f"This reduced layer holds {fewer:,} numbers, the full one {numbers:,}; one evaluation of its ODE function "
        f"takes {after:,} multiply-adds, of the full one {before:,}."
    )
    if after < before:
        return text
    return text + " A convolution is small and cheap for the size of its state, its reduction is a dense matrix."


def _settings(
    command: str, seed: int, training: Training, data: DataSet, network: ConvolutionalOde, small: nn.Module
) -> dict[str, str | int]:
    return {
        "command": command,
        "seed": seed,
        "data": f"{data.name}; {len(data.train):,} to train and calibrate, {len(data.validation)} to validate, "
        f"{len(data.test)} to test",
        "ODE layer": f"{_equation(small)}; {network.ode.settings}",
        "training": training.words(len(data.train)),
        "reduction": ", ".join(f"{name} {value}" for name, value in ode_layer(small).explain().method.items()),
    }


def _equation(network: nn.Module) -> str:
    """Return the stages of the full ODE function, and the shape of its state."""
    _, *stages = ode_layer(network).explain().parts
    shape = " x ".join(map(str, ode_layer(network).state_shape))
    return f"{', '.join(f'{stage.name} = {stage.what}' for stage in stages)}, with a state of {shape}"


def _story(data: DataSet, network: ConvolutionalOde, small: nn.Module, rows: list[Row], loss: float) -> list[Paragraph]:
    full, ode, explanation = rows[0], network.ode, ode_layer(small).explain()
    channels = ode_layer(small).state_shape[0]
    assert TRAINING.solver is not None
    return [
        Paragraph(
            f"A small network was trained on {len(data.train):,} images of {data.name}. A convolution makes {channels} "
            f"channels of an image, the ODE layer moves these {full.sizes['n']:,} numbers from t = {ode.t[0]:g} to "
            f"t = {ode.t[-1]:g} by an ODE function of one convolution and tanh, and a linear map reads the class off "
            f"the result. While training, the ODE layer took {TRAINING.solver}, {TRAINING.solver.evaluations} "
            f"evaluations of the ODE function in a forward pass (last loss: {loss:.2g}). From then on the reference is "
            f"the network with its own solver, {full.solver} with tolerance {ode.rtol:g}, which takes "
            f"{full.evaluations}."
        ),
        Paragraph(
            f"The trained network was then reduced by one call of `reduce_network` with {explanation.samples:,} of "
            f"these images, without labels. The method is {METHODS[_method(explanation)].words}: "
            f"{METHODS[_method(explanation)].explanation} Sizes and solver were searched. In the pictures r is the "
            "size of the reduced state, and m the number of points."
        ),
        Paragraph(
            "Nothing was chosen on test data. Validation data decide which reduction is chosen, and which solver of "
            f"the full layer is the one to beat: the fastest within {ADEQUATE_POINTS} points of the full network. All "
            "this is one network on one small data set with one seed."
        ),
    ]


#: Singular values of the state in words, by the basis.
_SPECTRA = {
    "balanced": "how much it varies in a direction, times how much the output sees of it",
    "pod": "how much it varies in a direction",
}


def _pictures(data: DataSet, small: nn.Module, rows: list[Row]) -> dict[str, list[Picture]]:
    layer, state = ode_layer(small), ode_layer(small).explain().parts[0]
    pictures = {
        "Accuracy against time": [
            Picture(
                accuracy_against_time(rows),
                "Up and to the left is better. A reduction is worth its while only where it lies left of the full "
                "layer's coarse solvers at the same height. r: reduced state, m: points.",
            )
        ],
        "How much of the state counts": [
            Picture(
                singular_values(layer.singular_values, {"state": [state.reduced]}),
                f"Singular values of the state: {_SPECTRA[layer.explain().method['basis']]}. The faster they fall, the "
                "smaller a layer can be: what lies right of the dot is left out.",
            )
        ],
    }
    for points in layer.points.values():
        pictures["Where the nonlinearity is evaluated"] = [
            Picture(
                interpolation_points(points, layer.state_shape, data.train.inputs.mean(dim=(0, 1)).numpy()),
                f"The {len(points)} points of the layer among the {rows[0].sizes['n']:,} components of the state.",
            )
        ]
    return pictures


class _Clock:
    """Tells on standard error what was done and how long it took: what is printed begins with what came out."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.wall_s: dict[str, float] = {}
        self.start = time.perf_counter()

    def tell(self, verb: str, what: str) -> None:
        now = time.perf_counter()
        self.wall_s[verb], self.start = now - self.start, now
        self.console.print(f"{verb} {what} [dim]({self.wall_s[verb]:.1f} s)[/dim]", highlight=False, soft_wrap=True)
