"""The demo: a convolutional Neural ODE on digits is trained, reduced, compared with coarse solvers, and reported."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from torchmor.adapters import NetworkReductor, save
from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.solving.steps import COARSE, Steps
from torchmor.engine.errors import NonFiniteError, SolverError
from torchmor.experiments.architectures.convolutional_ode import ConvolutionalOde
from torchmor.experiments.data.images import digits
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.comparison import (
    ADEQUATE_POINTS,
    Candidate,
    Measurement,
    Row,
    best_reduced,
    layer_arguments,
    on_one_yardstick,
    validation_accuracy,
)
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.measure.progress import progress
from torchmor.experiments.measure.surroundings import surroundings, threads_in_words
from torchmor.experiments.report.accuracy_figure import accuracy_against_time
from torchmor.experiments.report.figures import interpolation_points, singular_values, trajectories
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
from torchmor.experiments.report.verdict import size_in_words, verdict
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


@dataclass(frozen=True)
class Scale:
    """How much the demo does.

    Parameters
    ----------
    epochs
        Passes over the training data.
    sizes
        Arguments of `NetworkReductor.reduce`, one reduction each.
    companions
        Coarse solvers that the reduced layers of the best validation accuracy are shown with.
    most_accurate
        Number of those layers.
    repeats
        Calls of which the median time is taken.
    """

    epochs: int
    sizes: tuple[dict[str, Any], ...]
    companions: tuple[Steps, ...]
    most_accurate: int
    repeats: int


FULL = Scale(
    epochs=TRAINING.epochs,
    sizes=tuple({"state_dim": r, "points": 2 * r} for r in (4, 8, 16, 32, 64, 128)),
    companions=(Steps("midpoint", 1), Steps("euler", 2)),
    most_accurate=2,
    repeats=15,
)
QUICK = Scale(
    epochs=3,
    sizes=({"state_dim": 8, "points": 16}, {"state_dim": 32, "points": 64}),
    companions=(Steps("midpoint", 1),),
    most_accurate=1,
    repeats=3,
)


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
    scale = QUICK if quick else FULL
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock(console)
    command = f"torchmor demo --seed {seed} --threads {torch.get_num_threads()}" + (" --quick" if quick else "")
    console.print(f"[bold]{command}[/bold]: a convolutional Neural ODE on digits, {threads_in_words()}")

    data = digits(seed)
    network, training = digits_network(seed), replace(TRAINING, epochs=scale.epochs)
    with progress("training", scale.epochs) as bar:
        history = train(network, data, seed=seed, progress=bar, **training.arguments(len(data.train)))
    clock.tell("trained", f"the network: {validation_accuracy(network, data):.1f} % on validation data")

    reductor = NetworkReductor(network, LAYER, data.train.inputs, metric="agreement", seed=seed, progress=False)
    reduced, failures = _reductions(reductor, scale)
    clock.tell("reduced", f"its ODE layer to {len(reduced)} sizes, on the {len(data.train):,} training images")

    ranked = sorted(reduced, key=lambda candidate: -validation_accuracy(candidate.network, data))[: scale.most_accurate]
    coarse = [replace(candidate, solver=steps) for candidate in ranked for steps in scale.companions]
    candidates = [*_unreduced(network, data), *reduced, *coarse]
    rows = _measured(candidates, network, data, scale, seed)
    clock.tell("measured", f"{len(rows)} networks on {len(data.test)} test images")

    best_row = best_reduced(rows)
    marked = _marked(reductor, candidates[rows.index(best_row)])
    findings = verdict(rows)
    findings.append(_size(network, marked))
    findings += [f"Left out: {failure}." for failure in failures]
    settings = _settings(command, seed, training, data, network, marked) | surroundings()
    report, raw, saved = (out / name for name in ("report.html", "rows.jsonl", "reduced.safetensors"))
    save(marked, saved)
    write_rows(raw, rows, settings)
    story = _story(data, network, marked, rows, history[-1].loss)
    pictures = _pictures(data, network, rows, best_row, marked)
    introduction: list[Part] = [Points(findings)]
    if quick:
        introduction.insert(0, Paragraph("A quick run, to see that everything works: its numbers mean little."))
    sections: dict[str, Sequence[Part]] = {"": introduction, "What was done": story, "The table": [Comparison(rows)]}
    sections |= pictures
    sections["What the reduction says of itself"] = [
        Paragraph(f"The explanation of the marked layer, of {size_in_words(best_row)} and {best_row.solver}."),
        Listing(str(ode_layer(marked).explain())),
    ]
    walls = {f"{part} in": f"{wall:.1f} s" for part, wall in clock.wall_s.items()}
    sections["Settings"] = [
        Paragraph("The same command repeats it; wall times differ from run to run."),
        Settings(settings | walls),
        Paragraph(f"Beside this file: {raw.name} has the raw numbers, {saved.name} the marked network."),
    ]
    write_report(report, "torchmor demo: a convolutional Neural ODE on digits, and its reductions", sections)
    clock.tell("wrote", f"the report ({sum(clock.wall_s.values()):.0f} s before that)")

    console.print()
    print_table(console, rows)
    console.print()
    for finding in findings:
        console.print(f"• {finding}", highlight=False)
    console.print(f"\nReport with pictures: {report}", highlight=False, soft_wrap=True)
    console.print(f"The reduced layer in words: torchmor info {saved}", highlight=False, soft_wrap=True)
    return Outcome(tuple(rows), tuple(findings), (report, raw, saved), clock.wall_s)


def _reductions(reductor: NetworkReductor, scale: Scale) -> tuple[list[Candidate], list[str]]:
    """Return the reduced networks, and the sizes in words at which there is none, with the reason."""
    reduced, failures = [], []
    with progress("reducing", len(scale.sizes)) as bar:
        for sizes in scale.sizes:
            try:
                small = reductor.reduce(**sizes)
                explanation = ode_layer(small).explain()
                state, stage = explanation.parts
                found = {"r": state.reduced, "m": stage.reduced}
                reduced.append(Candidate(method_of(explanation.method), found, small))
            except (NonFiniteError, SolverError) as error:
                words = ", ".join(f"{name} {value}" for name, value in sizes.items())
                failures.append(f"{words} ({str(error).rstrip('.')})")
            bar.advance()
    return reduced, failures


def _marked(reductor: NetworkReductor, best: Candidate) -> nn.Module:
    """Return a candidate's network, whose explanation is of the candidate's solver too."""
    if best.solver is None:
        return best.network
    return reductor.reduce(state_dim=best.sizes["r"], points=best.sizes["m"], solver=best.solver)


def _unreduced(network: ConvolutionalOde, data: DataSet) -> list[Candidate]:
    """Return the network with its own solver first, then with coarse steps, and last with its ODE layer skipped."""
    full = [Candidate("full", {"n": layer_size(network, data)}, network, steps) for steps in (None, *COARSE)]
    return [*full, Candidate("skipped", {}, with_layers(network, {LAYER: nn.Identity()}))]


def _measured(
    candidates: list[Candidate], network: ConvolutionalOde, data: DataSet, scale: Scale, seed: int
) -> list[Row]:
    threads = torch.get_num_threads()
    measurement = Measurement(
        network, LAYER, data, repeats=scale.repeats, budget_s=math.inf, timing_threads=threads, seed=seed
    )
    rows = []
    with progress("measuring", len(candidates)) as bar:
        for candidate in candidates:
            rows.append(measurement.row(candidate))
            bar.advance()
    return on_one_yardstick(rows)


def _size(network: ConvolutionalOde, marked: nn.Module) -> str:
    full, small = (sum(p.numel() for p in ode_layer(net).parameters()) for net in (network, marked))
    before, after = ode_layer(marked).explain().operations
    text = (
        f"This reduced layer holds {small:,} numbers, the full one {full:,}; one evaluation of its ODE function takes "
        f"{after:,} multiply-adds, of the full one {before:,}."
    )
    if after < before:
        return text
    return text + " A convolution is small and cheap for the size of its state, its reduction is a dense matrix."


def _settings(
    command: str, seed: int, training: Training, data: DataSet, network: ConvolutionalOde, marked: nn.Module
) -> dict[str, str | int]:
    return {
        "command": command,
        "seed": seed,
        "data": f"{data.name}; {len(data.train):,} to train and calibrate, {len(data.validation)} to validate, "
        f"{len(data.test)} to test",
        "ODE layer": f"{_equation(marked)}; {network.ode.settings}",
        "training": training.words(len(data.train)),
        "reduction": ", ".join(f"{name} {value}" for name, value in ode_layer(marked).explain().method.items()),
    }


def _equation(network: nn.Module) -> str:
    """Return the stages of the full ODE function, and the shape of its state."""
    _, *stages = ode_layer(network).explain().parts
    shape = " x ".join(map(str, ode_layer(network).state_shape))
    return f"{', '.join(f'{stage.name} = {stage.what}' for stage in stages)}, with a state of {shape}"


def _story(
    data: DataSet, network: ConvolutionalOde, marked: nn.Module, rows: list[Row], loss: float
) -> list[Paragraph]:
    full, ode, explanation = rows[0], network.ode, ode_layer(marked).explain()
    channels = ode_layer(marked).state_shape[0]
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
            f"The trained network was then reduced with {explanation.samples:,} of these images, without training it "
            f"again. The method is {METHODS[method_of(explanation.method)].words}: "
            f"{METHODS[method_of(explanation.method)].explanation} In the pictures r is the size of the reduced state, "
            "and m the number of points."
        ),
        Paragraph(
            "Nothing was chosen on test data. Validation data decide which reduced layers are also shown with coarse "
            "solvers, which one is marked, and which solver of the full layer is the one to beat: the fastest within "
            f"{ADEQUATE_POINTS} points of the full network. All this is one network on one small data set with one "
            "seed."
        ),
    ]


#: Singular values of the state in words, by the basis.
_SPECTRA = {
    "balanced": "how much it varies in a direction, times how much the output sees of it",
    "pod": "how much it varies in a direction",
}


def _pictures(
    data: DataSet, network: ConvolutionalOde, rows: list[Row], best: Row, marked: nn.Module
) -> dict[str, list[Picture]]:
    layer = ode_layer(marked)
    ((_, points),) = layer.points.items()
    reduced = [row for row in rows if row.ours]
    sizes = {"state": [row.sizes["r"] for row in reduced]}
    arguments = layer_arguments(network, LAYER, data.validation.inputs[:1])
    return {
        "Accuracy against time": [
            Picture(
                accuracy_against_time(rows),
                "Up and to the left is better. A reduction is worth its while only where it lies left of the full "
                "layer's coarse solvers at the same height. r: reduced state, m: points.",
            )
        ],
        "How much of the state counts": [
            Picture(
                singular_values(layer.singular_values, sizes),
                f"Singular values of the state: {_SPECTRA[layer.explain().method['basis']]}. The faster they fall, the "
                "smaller a layer can be: what lies right of a dot is left out at that size.",
            )
        ],
        "Where the nonlinearity is evaluated": [
            Picture(
                interpolation_points(points, layer.state_shape, data.train.inputs.mean(dim=(0, 1)).numpy()),
                f"The {len(points)} points of the marked layer among the {rows[0].sizes['n']:,} components of the "
                "state.",
            )
        ],
        "Trajectories": [
            Picture(
                trajectories(network.ode, layer, arguments),
                "The components of the state that move most, for the first validation image: the full layer, and "
                f"the marked one ({best.size}), both solved by {network.ode.method} here. "
                "Pixels: (row, column).",
            )
        ],
    }


class _Clock:
    """Tells what was done and how long it took."""

    def __init__(self, console: Console):
        self.console = console
        self.wall_s: dict[str, float] = {}
        self.start = time.perf_counter()

    def tell(self, verb: str, what: str) -> None:
        now = time.perf_counter()
        self.wall_s[verb], self.start = now - self.start, now
        self.console.print(f"{verb} {what} [dim]({self.wall_s[verb]:.1f} s)[/dim]", highlight=False, soft_wrap=True)
