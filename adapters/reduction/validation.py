"""Held-out data: what a full network makes of it, and how far a smaller one is from that."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.calibration import Batch, Calibration
from torchmor.adapters.networks.evaluation import call_network, evaluation, recorded_calls
from torchmor.adapters.reduction.adaptive_solves import TooManyEvaluationsError
from torchmor.adapters.reduction.metrics import Metric, loss
from torchmor.engine.errors import CalibrationError, NonFiniteError, SolverError, UnsupportedOperationError

#: Of held-out calibration data, at most this many samples are used.
HELD_OUT_SAMPLES = 512


@dataclass(frozen=True, eq=False)
class _Outputs:
    """What a network makes of a batch: its output, and the states and outputs of its ODE layer in all calls."""

    network: Any
    layer: Tensor
    states: tuple[Tensor, ...]


class Validation:
    """Data on which a network's smaller copies are compared with it.

    Parameters
    ----------
    network
        The full network.
    name
        Name of its ODE layer, and of the layer in its place.
    batches
        Batches of arguments, each with its labels or None.
    limit
        At most about this many samples.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        batches: Iterable[tuple[Batch, Tensor | None]],
        limit: float = float("inf"),
    ):
        self.network, self.name = network, name
        self._batches, self._limit = batches, limit

    @cached_property
    def full(self) -> list[tuple[Batch, Tensor | None, _Outputs]]:
        """Batches with their labels, and with what the full network makes of them."""
        results, samples = [], 0
        with evaluation(self.network):
            for batch, labels in self._batches:
                results.append((batch, labels, self._run(self.network, batch)))
                samples += batch.size
                if samples >= self._limit:
                    break
        return results

    def errors(self, small: nn.Module) -> dict[str, float]:
        """Return relative errors ``‖small − full‖ / ‖full‖`` of the outputs of layer and network.

        Raises
        ------
        NonFiniteError
            The smaller network has no finite solution.
        TooManyEvaluationsError
            Its solver was stopped.
        """
        sums: dict[str, list[float]] = {}
        with evaluation(small):
            for batch, _, full in self.full:
                try:
                    reduced = self._run(small, batch)
                except TooManyEvaluationsError:
                    raise
                except SolverError as error:
                    raise unstable() from error
                for key, exact, value in (
                    ("layer output", full.layer, reduced.layer),
                    ("network output", full.network, reduced.network),
                ):
                    if isinstance(exact, Tensor) and exact.is_floating_point():
                        known = exact.isfinite()  # a network may mask its output with infinity
                        exact, value = exact[known].double(), value[known].double()
                        entry = sums.setdefault(key, [0.0, 0.0])
                        entry[0] += float((value - exact).square().sum())
                        entry[1] += float(exact.square().sum())
        errors = {key: (error / max(norm, 1e-300)) ** 0.5 for key, (error, norm) in sums.items()}
        if not all(error < float("inf") for error in errors.values()):
            raise unstable()
        return errors

    def usual_distance(self, layer: ReducedODELayer) -> float | None:
        """Return the largest distance of the layer's initial states from its reduced space; None without data."""
        found = [float(layer.distance(state).max()) for _, _, full in self.full for state in full.states if len(state)]
        return max(found, default=None)

    def loss(self, metric: Metric, small: nn.Module) -> float:
        """Return the loss of a smaller network against the full one; infinity where it has no finite solution."""
        outputs = []
        with evaluation(small):
            try:
                for batch, _, _ in self.full:
                    outputs.append(call_network(small, batch))
            except SolverError:
                return float("inf")
        labels = [labels for _, labels, _ in self.full if labels is not None]
        counts = [batch.size for batch, _, _ in self.full]
        reference = _samples_first([full.network for _, _, full in self.full], counts)
        return loss(metric, _samples_first(outputs, counts), reference, torch.cat(labels) if labels else None)

    def _run(self, network: nn.Module, batch: Batch) -> _Outputs:
        with recorded_calls(network.get_submodule(self.name)) as calls:
            output = call_network(network, batch)
        layer = torch.cat([value.flatten() for _, value in calls])
        return _Outputs(output, layer, tuple(arguments[0] for arguments, _ in calls))


class UnlabelledBatches:
    """Batches of calibration data, with no labels."""

    def __init__(self, calibration: Calibration):
        self._calibration = calibration

    def __iter__(self) -> Iterator[tuple[Batch, None]]:
        return ((batch, None) for batch in self._calibration)


class LabelledBatches:
    """Batches (inputs, labels) as pairs of network arguments and labels, that can be read again and again.

    Parameters
    ----------
    data
        A tuple (inputs, labels) of Tensors, or a re-iterable of batches (inputs, labels); inputs are a Tensor, or a
        tuple or list of arguments.
    batch_size
        Samples of a batch, for Tensors.
    batch_to_inputs
        Maps a batch to the network's arguments.

    Raises
    ------
    CalibrationError
        A batch is no pair.
    """

    def __init__(self, data: Any, batch_size: int, batch_to_inputs: Callable[[Any], Any] | None):
        self._pairs = Calibration(data, batch_size)
        self._to_inputs = batch_to_inputs or (lambda batch: batch[0])

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        for pair in self._pairs:
            if len(pair.arguments) != 2 or not isinstance(pair.arguments[1], Tensor):
                raise CalibrationError(
                    'expected validation batches (inputs, labels) for metric="accuracy", got a batch of '
                    f"{', '.join(type(part).__name__ for part in pair.arguments)}"
                )
            inputs = self._to_inputs(pair.arguments)
            inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
            yield Batch(inputs, pair.samples, pair.index), pair.arguments[1]


def _samples_first(outputs: list[Any], counts: list[int]) -> Tensor:
    """Put outputs of batches of so many samples together; those of trajectories have the samples second.

    Sequences of several lengths become one vector of all entries.
    """
    if not all(isinstance(output, Tensor) for output in outputs):
        kinds = sorted({type(output).__name__ for output in outputs})
        raise UnsupportedOperationError(
            f"expected a network whose output is one Tensor, to compare by, got {', '.join(kinds)}: give state_dim and "
            "points, or wrap the network in a module that returns the part that counts"
        )
    moved = [
        output.movedim(1, 0) if output.dim() > 1 and output.shape[0] != count == output.shape[1] else output
        for output, count in zip(outputs, counts, strict=True)
    ]
    alike = len({output.shape[1:] for output in moved}) == 1
    return torch.cat(moved if alike else [output.flatten() for output in moved])


def unstable() -> NonFiniteError:
    """Return the error of a reduced layer without a finite solution."""
    return NonFiniteError(
        "expected a finite solution of the reduced layer on held-out calibration data, got one that grows without "
        "bound: its ODE is unstable at these sizes; ask for a larger state_dim, or other points"
    )
