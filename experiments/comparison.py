"""An honest comparison: the full network, its coarse solvers and its reductions, measured alike."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters import reduce_network
from torchmor.adapters.files import with_layers
from torchmor.adapters.reduced_layer import ReducedODELayer
from torchmor.experiments.accuracy import accuracy, paired_interval, predict
from torchmor.experiments.data import DataSet
from torchmor.experiments.progress import progress
from torchmor.experiments.solvers import COARSE, Steps, set_solver, solver_name
from torchmor.experiments.timing import WARM_UP, Timing, compare_times

#: A network is adequate if its validation accuracy is at most this many points below the full network's.
ADEQUATE_POINTS = 0.3

BATCHES = (1, 256)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that is compared.

    Parameters
    ----------
    kind
        "full", "skipped" or "reduced".
    solver
        Its solver in words.
    own_solver
        Whether that is the layer's own.
    network
        The network.
    state
        Size of the state that is integrated.
    points
        Evaluated components of each stage of the ODE function; empty without stages.
    """

    kind: str
    solver: str
    own_solver: bool
    network: nn.Module
    state: int
    points: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What is measured of a candidate. Accuracies are in percent, times of a forward pass in seconds.

    Parameters
    ----------
    kind, solver, own_solver, state, points
        As in :class:`Candidate`.
    evaluations
        Evaluations of the ODE function in a forward pass of the largest batch.
    validation_accuracy, accuracy
        Of the network on validation and test data.
    agreement
        Test samples that get the same class as from the full network with its own solver.
    difference_interval
        95 % interval of the difference of test accuracies to the full network with its own solver, in points.
    layer, network
        Times of the ODE layer, encoding and decoding included, and of the whole network, by batch size.
    """

    kind: str
    solver: str
    own_solver: bool
    state: int
    points: tuple[int, ...]
    evaluations: int
    validation_accuracy: float
    accuracy: float
    agreement: float
    difference_interval: tuple[float, float]
    layer: dict[int, Timing]
    network: dict[int, Timing]

    @property
    def name(self) -> str:
        """The row in words."""
        return "ODE layer skipped" if self.kind == "skipped" else f"{self.kind}, {self.solver}"

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def full_candidates(network: nn.Module, name: str, images: Tensor) -> list[Candidate]:
    """Return the network with its own solver first, then with coarse steps, and last with its ODE layer skipped.

    Parameters
    ----------
    network
        The trained network.
    name
        Name of its ODE layer.
    images
        A few inputs (batch, …).
    """
    layer = network.get_submodule(name)
    state = layer_input(network, name, images)[0].numel()
    candidates = [Candidate("full", solver_name(layer), True, network, state, (state,))]
    candidates += [with_solver(candidates[0], name, steps) for steps in COARSE]
    skipped = with_layers(network, {name: nn.Identity()})
    return [*candidates, Candidate("skipped", "none", False, skipped, state, ())]


def reduced_candidate(network: nn.Module, name: str, calibration: Tensor, **sizes) -> Candidate:
    """Return the network reduced to some sizes, as `reduce_network` takes them, with the layer's own solver."""
    small = reduce_network(network, name, calibration, progress=False, **sizes)
    layer = small.get_submodule(name)
    state, *stages = layer.explain().parts
    points = tuple(part.reduced for part in stages)
    return Candidate("reduced", solver_name(layer), True, small, state.reduced, points)


def with_solver(candidate: Candidate, name: str, steps: Steps) -> Candidate:
    """Return a candidate with coarse steps in the place of its own solver."""
    network = copy.deepcopy(candidate.network)
    set_solver(network.get_submodule(name), steps)
    return Candidate(candidate.kind, str(steps), False, network, candidate.state, candidate.points)


def compare(
    candidates: Sequence[Candidate], name: str, data: DataSet, *, repeats: int = 15, seed: int = 0
) -> list[Row]:
    """Measure candidates; the first one is the reference, the full network with its own solver.

    Parameters
    ----------
    candidates
        What to compare.
    name
        Name of the ODE layer in all of them.
    data
        Its test part is used here, once.
    repeats
        Calls of which the median time is taken.
    seed
        Of the bootstrap and of the order of timed calls.
    """
    networks = {str(i): candidate.network for i, candidate in enumerate(candidates)}
    images = data.validation.images
    images = images.repeat(-(-max(BATCHES) // len(images)), *[1] * (images.ndim - 1))
    states = layer_input(candidates[0].network, name, images)
    layers, whole = {}, {}
    with progress("measuring", 2 * len(BATCHES) * (repeats + WARM_UP)) as bar:
        for batch in BATCHES:
            calls = {i: _call(network.get_submodule(name), states[:batch]) for i, network in networks.items()}
            layers[batch] = compare_times(calls, repeats=repeats, seed=seed, progress=bar)
            calls = {i: _call(network, images[:batch]) for i, network in networks.items()}
            whole[batch] = compare_times(calls, repeats=repeats, seed=seed, progress=bar)

    reference = predict(candidates[0].network, data.test.images)
    rows = []
    for i, candidate in enumerate(candidates):
        predicted = predict(candidate.network, data.test.images)
        rows.append(
            Row(
                kind=candidate.kind,
                solver=candidate.solver,
                own_solver=candidate.own_solver,
                state=candidate.state,
                points=candidate.points,
                evaluations=evaluations(candidate.network, name, images[: max(BATCHES)]),
                validation_accuracy=validation_accuracy(candidate.network, data),
                accuracy=accuracy(predicted, data.test.labels),
                agreement=accuracy(predicted, reference),
                difference_interval=paired_interval(predicted, reference, data.test.labels, seed=seed),
                layer={batch: layers[batch][str(i)] for batch in BATCHES},
                network={batch: whole[batch][str(i)] for batch in BATCHES},
            )
        )
    return rows


def validation_accuracy(network: nn.Module, data: DataSet) -> float:
    """Return the accuracy on validation data, in percent: what choices are made by."""
    return accuracy(predict(network, data.validation.images), data.validation.labels)


def layer_input(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return the states (batch, …) that a network hands to its ODE layer."""
    seen: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    try:
        with torch.no_grad():
            network(images)
    finally:
        hook.remove()
    return seen[0]


def evaluations(network: nn.Module, name: str, images: Tensor) -> int:
    """Count the evaluations of the ODE function in one forward pass."""
    layer = network.get_submodule(name)
    if isinstance(layer, nn.Identity):
        return 0
    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    function = layer.ode if isinstance(layer, ReducedODELayer) else layer.func
    hook = function.register_forward_hook(counted)
    try:
        with torch.no_grad():
            network(images)
    finally:
        hook.remove()
    return count


def adequate(row: Row, reference: Row) -> bool:
    """Whether a row's validation accuracy is within 0.3 points of the full network's."""
    return row.validation_accuracy >= reference.validation_accuracy - ADEQUATE_POINTS


def cheapest_full(rows: Sequence[Row]) -> Row:
    """Return the fastest adequate full network at the largest batch: what a reduction has to beat."""
    return min((r for r in rows if r.kind == "full" and adequate(r, rows[0])), key=lambda r: layer_wall_s(r))


def best_reduced(rows: Sequence[Row]) -> Row:
    """Return the fastest adequate reduced network; without one, the most accurate on validation data."""
    reduced = [row for row in rows if row.kind == "reduced"]
    good = [row for row in reduced if adequate(row, rows[0])]
    return min(good, key=layer_wall_s) if good else max(reduced, key=lambda row: row.validation_accuracy)


def layer_wall_s(row: Row, batch: int = max(BATCHES)) -> float:
    """Return the median time of a row's ODE layer."""
    return row.layer[batch].wall_s


def _call(module: nn.Module, argument: Tensor) -> Callable[[], Tensor]:
    return lambda: module(argument)
