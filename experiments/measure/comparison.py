"""An honest comparison: networks are candidates, and every candidate is measured alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.evaluation import recorded_calls
from torchmor.adapters.networks.timing import Timing, compare_times
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.steps import Steps, solved_by, solver_name
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.accuracy import accuracy, packed, paired_interval, predict
from torchmor.experiments.measure.contradictions import MOST_MEASUREMENTS, SkippedLayer, contradictions
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.measure.surroundings import threads

#: A network is adequate if its validation accuracy is at most this many points below the full network's.
ADEQUATE_POINTS = 0.3

#: Times are measured at these batch sizes.
BATCHES = (1, 256)

#: Every time is measured in turns with the full layer's at these steps: a yardstick against a machine that is now fast
#: and now slow.
YARDSTICK = Steps("midpoint", 1)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that is compared.

    Parameters
    ----------
    method
        How it was made: a key of :data:`~torchmor.experiments.measure.methods.METHODS`.
    sizes
        What its size is: "n" states, "r" reduced states, "m" points, "kept" neurons, "rank" of weights.
    network
        The network.
    solver
        Solver of its ODE layer; None is the layer's own.
    offline_s
        Seconds that it took to make the network.
    """

    method: str
    sizes: Mapping[str, int]
    network: nn.Module
    solver: Steps | None = None
    offline_s: float = 0.0

    @property
    def size(self) -> str:
        """The size in words."""
        return size_words(self.sizes)


@dataclass(frozen=True)
class Row:
    """What is measured of a candidate. Accuracies are in percent, times of a forward pass in seconds.

    Parameters
    ----------
    method, sizes
        As in :class:`Candidate`.
    solver
        The solver in words; "none" without an ODE layer.
    own_solver
        Whether that is the layer's own.
    evaluations
        Evaluations of the ODE function in a forward pass of the largest batch.
    parameters
        Numbers that the ODE layer holds.
    validation_accuracy, accuracy
        Of the network on validation and test data.
    agreement
        Test samples that get the same class as from the full network with its own solver.
    difference_interval
        95 % interval of the difference of test accuracies to the full network with its own solver, in points.
    layer, network
        Times of the ODE layer, encoding and decoding included, and of the whole network, by batch size; empty if not
        measured.
    correct
        Which test samples get the right class, :func:`~torchmor.experiments.measure.accuracy.packed`: to compare rows
        in pairs.
    offline_s
        Seconds that it took to make the network; what several networks share counts for the first of them.
    impossible
        What is impossible about the times, in words, although they were measured again: no speed follows from them.
    """

    method: str
    sizes: dict[str, int]
    solver: str
    own_solver: bool
    evaluations: int
    parameters: int
    validation_accuracy: float
    accuracy: float
    agreement: float
    difference_interval: tuple[float, float]
    layer: dict[int, Timing]
    network: dict[int, Timing]
    correct: str = ""
    offline_s: float = 0.0
    impossible: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether the method reduces the model's order."""
        return METHODS[self.method].ours

    @property
    def size(self) -> str:
        """The size in words."""
        return size_words(self.sizes)

    @property
    def name(self) -> str:
        """The row in words."""
        words = METHODS[self.method].words
        return words if self.method == "skipped" else f"{words}, {self.solver}"

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Row":
        """Return the row that `to_json` made the data of."""
        times = {
            key: {int(batch): Timing(**timing) for batch, timing in data[key].items()} for key in ("layer", "network")
        }
        pairs = {key: tuple(data.get(key, ())) for key in ("difference_interval", "impossible")}
        return cls(**{**data, **times, **pairs})


class Measurement:
    """Measures candidates against one full network, on one data set.

    Parameters
    ----------
    full
        The trained network with its own solver.
    name
        Name of the ODE layer in all networks.
    data
        Its test part is used here only.
    repeats, budget_s
        Of the timed calls, as in :func:`~torchmor.adapters.networks.timing.compare_times`.
    timing_threads
        Threads of the timed calls; everything else uses what torch is set to.
    seed
        Of the bootstrap and of the order of timed calls.
    """

    def __init__(
        self,
        full: nn.Module,
        name: str,
        data: DataSet,
        *,
        repeats: int = 15,
        budget_s: float = 1.0,
        timing_threads: int = 1,
        seed: int = 0,
    ):
        self.full, self.name, self.data, self.seed = full, name, data, seed
        self._timing: dict[str, Any] = {"repeats": repeats, "budget_s": budget_s, "seed": seed}
        self._threads = timing_threads
        inputs = data.validation.inputs
        self._inputs = inputs.repeat(-(-max(BATCHES) // len(inputs)), *[1] * (inputs.ndim - 1))[: max(BATCHES)]
        self._yardstick = solved_by(full, name, YARDSTICK)
        self._reference = predict(full, data.test.inputs)

    def row(self, candidate: Candidate, *, timed: bool = True) -> Row:
        """Measure a candidate.

        Raises
        ------
        SolverError
            Its ODE has no solution.
        """
        network = solved_by(candidate.network, self.name, candidate.solver)
        layer = network.get_submodule(self.name)
        solver = str(candidate.solver or solver_name(layer)) if isinstance(layer, SolvingLayer) else None
        predicted = self._reference if network is self.full else predict(network, self.data.test.inputs)
        labels = self.data.test.labels
        layer_times, network_times, impossible = self._timed(network) if timed else ({}, {}, ())
        return Row(
            method=candidate.method,
            sizes=dict(candidate.sizes),
            solver=solver or "none",
            own_solver=solver is not None and candidate.solver is None,
            evaluations=evaluations(network, self.name, self._inputs),
            parameters=sum(parameter.numel() for parameter in layer.parameters()),
            validation_accuracy=validation_accuracy(network, self.data),
            accuracy=accuracy(predicted, labels),
            agreement=accuracy(predicted, self._reference),
            difference_interval=paired_interval(predicted, self._reference, labels, seed=self.seed),
            layer=layer_times,
            network=network_times,
            correct=packed(predicted == labels),
            offline_s=candidate.offline_s,
            impossible=impossible,
        )

    def _timed(self, network: nn.Module) -> tuple[dict[int, Timing], dict[int, Timing], tuple[str, ...]]:
        """Return the times of layer and network, measured again while they contradict each other, and what still does.

        The network without its layer is timed in turns with the network.
        """
        layer: dict[int, Timing] = {}
        network_times: dict[int, Timing] = {}
        impossible: tuple[str, ...] = ()
        for _ in range(MOST_MEASUREMENTS):
            layer = self._layer_times(network)
            network_times, without = self._network_times(network)
            impossible = contradictions(layer, network_times, without)
            if not impossible:
                break
        return layer, network_times, impossible

    def _network_times(self, network: nn.Module) -> tuple[dict[int, Timing], dict[int, Timing]]:
        """Return the times of a network, and of it without its ODE layer where it can do without."""
        others = {}
        if not isinstance(network.get_submodule(self.name), nn.Identity):
            without = with_layers(network, {self.name: SkippedLayer()})
            with suppress(RuntimeError, IndexError):  # what follows may need a trajectory
                predict(without, self._inputs[:1])
                others["without"] = without
        found = self._times(network, (self._inputs,), self._yardstick, (self._inputs,), others)
        of = [
            {batch: times[name] for batch, times in found.items() if name in times} for name in ("candidate", "without")
        ]
        return of[0], of[1]

    def _layer_times(self, network: nn.Module) -> dict[int, Timing]:
        layer, yardstick = (whole.get_submodule(self.name) for whole in (network, self._yardstick))
        arguments, its_arguments = (layer_arguments(w, self.name, self._inputs) for w in (network, self._yardstick))
        found = self._times(layer, arguments, yardstick, its_arguments, {})
        return {batch: times["candidate"] for batch, times in found.items()}

    def _times(
        self,
        module: nn.Module,
        arguments: Sequence[Tensor],
        yardstick: nn.Module,
        its_arguments: Sequence[Tensor],
        others: Mapping[str, nn.Module],
    ) -> dict[int, dict[str, Timing]]:
        """Return times by batch size: of the "candidate", and of others with the same arguments."""
        times = {}
        with threads(self._threads):
            for batch in BATCHES:
                calls = {
                    "candidate": _call(module, arguments, batch),
                    "yardstick": _call(yardstick, its_arguments, batch),
                    **{name: _call(other, arguments, batch) for name, other in others.items()},
                }
                found = compare_times(calls, **self._timing)
                reference = found.pop("yardstick")
                times[batch] = {name: timing.against(reference) for name, timing in found.items()}
        return times


def size_words(sizes: Mapping[str, int]) -> str:
    """Return the sizes of a candidate in words, like "r 16, m 32"."""
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())


def validation_accuracy(network: nn.Module, data: DataSet) -> float:
    """Return the accuracy on validation data, in percent: what choices are made by."""
    return accuracy(predict(network, data.validation.inputs), data.validation.labels)


def layer_arguments(network: nn.Module, name: str, inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what a network hands to its ODE layer: the states (batch, …), and its inputs if it has any."""
    with torch.no_grad(), recorded_calls(network.get_submodule(name)) as calls:
        network(inputs)
    return calls[0][0]


def evaluations(network: nn.Module, name: str, inputs: Tensor) -> int:
    """Count the evaluations of the ODE function in one forward pass."""
    layer = network.get_submodule(name)
    if isinstance(layer, nn.Identity):
        return 0
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    function: Any = layer.ode if isinstance(layer, ReducedODELayer) else layer.func
    hook = function.register_forward_hook(counted)
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        hook.remove()
    return count


def adequate(row: Row, reference: Row) -> bool:
    """Whether a row's validation accuracy is within 0.3 points of the full network's."""
    return row.validation_accuracy >= reference.validation_accuracy - ADEQUATE_POINTS


def cheapest_full(rows: Sequence[Row]) -> Row:
    """Return the fastest adequate full network at the largest batch: what a reduction has to beat.

    Impossible times do not count.
    """
    good = [row for row in rows if row.method == "full" and adequate(row, rows[0]) and not row.impossible]
    return min(good or rows[:1], key=layer_wall_s)


def best_reduced(rows: Sequence[Row]) -> Row:
    """Return the fastest adequate reduced network; without one, the most accurate on validation data.

    Impossible times do not count.
    """
    reduced = [row for row in rows if row.ours]
    good = [row for row in reduced if adequate(row, rows[0]) and not row.impossible]
    return min(good, key=layer_wall_s) if good else max(reduced, key=lambda row: row.validation_accuracy)


def on_one_yardstick(rows: Sequence[Row]) -> list[Row]:
    """Return timed rows with their times scaled to one time of the yardstick, the median of all.

    A machine that is slower for a while is slower for the yardstick too. Rows whose times are impossible on it are
    marked: the whole faster than its ODE layer, or than the network without it, which has a row.
    """

    def scaled(key: str, row: Row) -> dict[int, Timing]:
        return {batch: timing.scaled(medians[key][batch]) for batch, timing in getattr(row, key).items()}

    medians = {
        key: {batch: statistics.median(getattr(row, key)[batch].yardstick_s for row in rows) for batch in BATCHES}
        for key in ("layer", "network")
    }
    found = [replace(row, layer=scaled("layer", row), network=scaled("network", row)) for row in rows]
    without = next((row.network for row in found if row.method == "skipped"), {})
    return [
        replace(
            row, impossible=tuple(dict.fromkeys((*row.impossible, *contradictions(row.layer, row.network, without))))
        )
        for row in found
    ]


def layer_wall_s(row: Row, batch: int = max(BATCHES)) -> float:
    """Return the time of a row's ODE layer."""
    return row.layer[batch].wall_s


def _call(module: nn.Module, arguments: Sequence[Tensor], batch: int) -> Callable[[], Tensor]:
    part = [argument[:batch] for argument in arguments]
    return lambda: module(*part)
