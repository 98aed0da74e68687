"""The demo: a convolutional Neural ODE on digits is trained, reduced, compared with coarse solvers, and reported."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from torchmor.adapters import save
from torchmor.adapters.solve_request import SolvingLayer
from torchmor.engine.errors import NonFiniteError
from torchmor.experiments.comparison import (
    ADEQUATE_POINTS,
    Candidate,
    Row,
    best_reduced,
    compare,
    full_candidates,
    layer_input,
    reduced_candidate,
    validation_accuracy,
    with_solver,
)
from torchmor.experiments.data import DataSet, digits
from torchmor.experiments.figures import accuracy_against_time, interpolation_points, singular_values, trajectories
from torchmor.experiments.networks import ConvolutionalOde, digits_network
from torchmor.experiments.progress import progress
from torchmor.experiments.report import (
    Comparison,
    Listing,
    Paragraph,
    Picture,
    Points,
    Settings,
    write_report,
    write_rows,
)
from torchmor.experiments.solvers import Steps
from torchmor.experiments.surroundings import surroundings, threads_in_words
from torchmor.experiments.table import print_table
from torchmor.experiments.training import train
from torchmor.experiments.verdict import verdict

#: Dopri5 makes training three times as long; these steps solve the ODE to about the same tolerance.
TRAINING_SOLVER = Steps("rk4", 2)


@dataclass(frozen=True)
class Scale:
    """How much the demo does.

    Parameters
    ----------
    epochs
        Passes over the training data.
    sizes
        Arguments of `reduce_network`, one reduction each.
    companions
        Coarse solvers that the reduced layers of the best validation accuracy are shown with.
    most_accurate
        Number of those layers.
    repeats
        Calls of which the median time is taken.
    """

    epochs: int
    sizes: tuple[dict, ...]
    companions: tuple[Steps, ...]
    most_accurate: int
    repeats: int


FULL = Scale(
    epochs=20,
    sizes=(*({"state_dim": r, "points": 2 * r} for r in (8, 16, 32, 64, 128)), {"energy_rtol": 0.05}),
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
    network = digits_network(seed)
    with progress("training", scale.epochs) as bar:
        history = train(network, data, epochs=scale.epochs, solver=TRAINING_SOLVER, seed=seed, progress=bar)
    clock.tell("trained", f"the network: {validation_accuracy(network, data):.1f} % on validation data")

    reduced, failures = _reductions(network, data, scale, seed)
    clock.tell("reduced", f"its ODE layer to {len(reduced)} sizes, on the {len(data.train):,} training images")

    ranked = sorted(reduced, key=lambda candidate: -validation_accuracy(candidate.network, data))[: scale.most_accurate]
    coarse = [with_solver(candidate, "ode", steps) for candidate in ranked for steps in scale.companions]
    candidates = [*full_candidates(network, "ode", data.validation.images[:2]), *reduced, *coarse]
    rows = compare(candidates, "ode", data, repeats=scale.repeats, seed=seed)
    clock.tell("measured", f"{len(rows)} networks on {len(data.test)} test images")

    best = candidates[rows.index(best_reduced(rows))]
    findings = verdict(rows)
    before, after = best.network.ode.explain().operations
    if after > before:
        findings.append(
            f"One evaluation of this reduced ODE function takes {after:,} multiply-adds, more than the {before:,} of "
            "the full one: a convolution is cheap for its size, its reduction is a dense matrix product."
        )
    findings += [f"Left out, because the reduced ODE is unstable: {failure}." for failure in failures]
    settings = _settings(command, seed, quick, data, network) | surroundings()
    report, raw, saved = (out / name for name in ("report.html", "rows.jsonl", "reduced.safetensors"))
    save(best.network, saved)
    write_rows(raw, rows, settings)
    story = _story(data, rows, best, history[-1].loss)
    pictures = _pictures(data, network, rows, best, reduced)
    sections = {"": [Points(findings)], "What was done": story, "The table": [Comparison(rows)], **pictures}
    sections["What the reduction says of itself"] = [
        Paragraph(f"The explanation of the marked layer, {_words(best)}. It was reduced with its own solver."),
        Listing(str(best.network.ode.explain())),
    ]
    walls = {f"{part} in": f"{wall:.1f} s" for part, wall in clock.wall_s.items()}
    sections["Settings"] = [
        Paragraph("The same command repeats it; wall times differ from run to run."),
        Settings(settings | walls),
        Paragraph(f"Beside this file: {raw.name} has the raw numbers, {saved.name} the marked network."),
    ]
    if quick:
        sections[""].insert(0, Paragraph("A quick run, to see that everything works: its numbers mean little."))
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


def _reductions(network: ConvolutionalOde, data: DataSet, scale: Scale, seed: int) -> tuple[list[Candidate], list[str]]:
    """Return the reduced networks, and the sizes in words at which the reduced ODE is unstable."""
    reduced, failures = [], []
    with progress("reducing", len(scale.sizes)) as bar:
        for sizes in scale.sizes:
            try:
                reduced.append(reduced_candidate(network, "ode", data.train.images, seed=seed, **sizes))
            except NonFiniteError:
                failures.append(", ".join(f"{name} {value}" for name, value in sizes.items()))
            bar.advance()
    return reduced, failures


def _settings(command: str, seed: int, quick: bool, data: DataSet, network: ConvolutionalOde) -> dict[str, str | int]:
    scale = QUICK if quick else FULL
    return {
        "command": command,
        "seed": seed,
        "data": f"{data.name}; {len(data.train):,} to train and calibrate, {len(data.validation)} to validate, "
        f"{len(data.test)} to test",
        "ODE layer": f"y' = tanh(K * y + b) on 16 x 8 x 8; {network.ode.settings}",
        "training": f"AdamW, {scale.epochs} epochs, batches of 64, weight decay 1, label smoothing 0.1, one cycle "
        f"of the learning rate up to 0.01, the ODE layer with {TRAINING_SOLVER}",
        "reduction": "basis pod, selection deim, fit interpolation",
    }


def _story(data: DataSet, rows: list[Row], best: Candidate, loss: float) -> list[Paragraph]:
    full = rows[0]
    return [
        Paragraph(
            f"A small network was trained on {len(data.train):,} images of {data.name}. A convolution with ReLU makes "
            f"16 channels of an image, the ODE layer moves these {full.state:,} numbers from t = 0 to t = 1 by "
            "y' = tanh(K ∗ y + b) with another convolution K, and a linear map reads the class off the result. While "
            f"training, the ODE layer took {TRAINING_SOLVER}, since its adaptive solver would make training three "
            f"times as long (last loss: {loss:.2g}). From then on the reference is the network with its own solver, "
            f"{full.solver} with tolerance 0.001, which evaluates the ODE function {full.evaluations} times in a "
            "forward pass."
        ),
        Paragraph(
            "The trained network was then reduced, without training it again, by the classic method: the state is "
            "projected onto the directions in which it varies most along trajectories of the training images (POD), "
            "and tanh is evaluated at a few points only, from which the rest is interpolated (DEIM). In the pictures r "
            "is the size of the reduced state, and m the number of points."
        ),
        Paragraph(
            "Nothing was chosen on test data. Validation data decide which reduced layers are also shown with coarse "
            "solvers, which one is marked, and which solver of the full layer is the one to beat: the fastest within "
            f"{ADEQUATE_POINTS} points of the full network. All this is one network on one small data set with one "
            "seed."
        ),
    ]


def _pictures(
    data: DataSet, network: ConvolutionalOde, rows: list[Row], best: Candidate, reduced: list[Candidate]
) -> dict[str, list[Picture]]:
    layer = best.network.ode
    ((stage, points),) = layer.points.items()
    sizes = {"state": [candidate.state for candidate in reduced], stage: [candidate.points[0] for candidate in reduced]}
    curves = _curves(network.ode, layer, layer_input(network, "ode", data.validation.images[:1]))
    return {
        "Accuracy against time": [
            Picture(
                accuracy_against_time(rows),
                "Up and to the left is better. A reduction is worth its while only where it lies left of the full "
                "layer's coarse solvers at the same height. r: reduced state, m: points.",
            )
        ],
        "How much state and nonlinearity vary": [
            Picture(
                singular_values(layer.singular_values, sizes),
                "Singular values of the snapshots of the state and of tanh (stage g1). The faster they fall, the "
                "smaller a layer can be: what lies right of a dot is left out at that size.",
            )
        ],
        "Where tanh is evaluated": [
            Picture(
                interpolation_points(points, layer.state_shape, data.train.images.mean(dim=(0, 1)).numpy()),
                f"The {len(points)} points of the marked layer among the {rows[0].state:,} components of the state.",
            )
        ],
        "Trajectories": [
            Picture(
                trajectories(*curves),
                "The six components of the state that move most, for the first validation image: the full layer, and "
                f"the marked one (r {best.state}, m {best.points[0]}), both solved by {network.ode.method} here.",
            )
        ],
    }


def _words(candidate: Candidate) -> str:
    return f"of {candidate.state} states, {candidate.points[0]} points and {candidate.solver}"


def _curves(full: SolvingLayer, reduced: SolvingLayer, state: Tensor, count: int = 6):
    """Return times, both layers' states (times, n) from one initial state, and the components that move most."""
    t = torch.linspace(full.t[0], full.t[-1], 41)
    states = []
    for layer in (full, reduced):
        own = layer.settings
        layer.output, layer.method, layer.options = "trajectory", full.method, full.options
        with torch.no_grad():
            states.append(layer(state, t=t)[:, 0].flatten(1).numpy())
        layer.settings = own
    moving = np.argsort(-np.ptp(states[0], axis=0), kind="stable")[:count]
    places = zip(*np.unravel_index(moving, state.shape[1:]), strict=True)
    words = (f"channel {channel}, pixel ({row}, {column})" for channel, row, column in places)
    return t.numpy(), *states, dict(zip(words, map(int, moving), strict=True))


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
