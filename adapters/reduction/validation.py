"""Held-out data: what a full network makes of it, and how far a smaller one is from that."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.batching import sample_dims
from torchmor.adapters.networks.calibration import Batch, Calibration, Flags
from torchmor.adapters.networks.difference import Difference
from torchmor.adapters.networks.evaluation import call_network, recorded_calls
from torchmor.adapters.reduction.adaptive_solves import TooManyEvaluationsError
from torchmor.adapters.reduction.confidence import confirmed_loss
from torchmor.adapters.reduction.metrics import Metric, loss
from torchmor.adapters.solving.torch_private import tree_flatten, tree_leaves, tree_unflatten
from torchmor.engine.errors import CalibrationError, NonFiniteError, SolverError
from torchmor.engine.findings import ConfirmedLoss


@dataclass(frozen=True, eq=False)
class _Outputs:
    """What a network makes of a batch: its output, and that of what solves the ODE in it, in all calls."""

    network: Any
    layer: Any


class Validation:
    """Data on which a network's smaller copies are compared with it.

    Parameters
    ----------
    network
        The full network, as its user has it.
    name
        Name of its module that solves the ODE, and of what stands in its place in smaller copies.
    layer_name
        Name of the ODE layer in smaller copies: `name`, or inside of that.
    batches
        Batches of arguments, each with its labels or None.
    limit
        At most about this many samples.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        layer_name: str,
        batches: Iterable[tuple[Batch, Tensor | None]],
        limit: float = float("inf"),
    ):
        self.network, self.name, self.layer_name = network, name, layer_name
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
        return self.measured(small)[0]

    def measured(self, small: nn.Module) -> tuple[dict[str, float], float | None]:
        """Return :meth:`errors`, and the largest distance of initial states from the layer's reduced space.

        That is None without data.

        Raises
        ------
        NonFiniteError, TooManyEvaluationsError
            As :meth:`errors`.
        """
        layer = small.get_submodule(self.layer_name)
        found: dict[str, Difference] = {}
        with evaluation(small), recorded_calls(layer) as calls:
            for batch, _, full in self.full:
                try:
                    reduced = self._run(small, batch)
                except TooManyEvaluationsError:
                    raise
                except SolverError as error:
                    raise unstable() from error
                pairs = {"layer output": (full.layer, reduced.layer), "network output": (full.network, reduced.network)}
                for key, outputs in pairs.items():
                    for exact, value in zip(*map(_real_parts, outputs), strict=True):
                        found.setdefault(key, Difference()).add(exact, value)
            states = [call.arguments[0] for call in calls if len(call.arguments[0])]
            distances = [float(layer.distance(y).max()) for y in states] if isinstance(layer, ReducedODELayer) else []
        errors = {key: difference.relative for key, difference in found.items()}
        if not all(error < float("inf") for error in errors.values()):
            raise unstable()
        return errors, max(distances, default=None)

    def loss(self, metric: Metric, small: nn.Module) -> float:
        """Return the loss of a smaller network against the full one; infinity where it has no finite solution."""
        found = self._outputs(small)
        return float("inf") if found is None else loss(metric, found, self._exact, self._labels)

    def has_loss(self, metric: Metric) -> bool:
        """Whether there are outputs that the metric can compare; classes alone have no relative error."""
        return metric != "relative" or bool(_real_parts(self._exact))

    def own_loss(self, metric: Metric) -> float:
        """Return the loss of the full network against itself, in a metric of somebody's own."""
        return loss(metric, self._exact, self._exact, self._labels)

    def confirmed(self, metric: Metric, small: nn.Module, confidence: float) -> ConfirmedLoss:
        """Return the loss of a smaller network against the full one, with a bound of that on all data like this."""
        found = self._outputs(small)
        if found is None:
            return ConfirmedLoss(math.inf, math.inf, confidence, self.samples)
        return confirmed_loss(metric, found, self._exact, self._labels, self.samples, confidence)

    def _outputs(self, small: nn.Module) -> Any:
        """Return the joined outputs of a smaller network; None where it has no finite solution."""
        with evaluation(small), suppress(SolverError):
            return self._joined([call_network(small, batch) for batch, _, _ in self.full])
        return None

    @cached_property
    def _exact(self) -> Any:
        """The joined outputs of the full network."""
        return self._joined([full.network for _, _, full in self.full])

    @cached_property
    def _labels(self) -> Tensor | None:
        labels = [labels for _, labels, _ in self.full if labels is not None]
        return torch.cat(labels) if labels else None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(batch.size for batch, _, _ in self.full)

    def _run(self, network: nn.Module, batch: Batch) -> _Outputs:
        with recorded_calls(network.get_submodule(self.name)) as calls:
            output = call_network(network, batch)
        return _Outputs(output, [call.output for call in calls])

    @cached_property
    def _sample_dims(self) -> list[int]:
        """Where samples lie in each tensor of the output; 0 where batches stay whole."""
        batch, _, full = self.full[0]
        flags = batch.batched or ()
        found = sample_dims(self.network, batch.arguments, flags) if any(flags) else []
        return [dim or 0 for dim in found or [0] * len(_tensors(full.network))]

    def _joined(self, outputs: list[Any]) -> Any:
        """Put outputs of batches together, samples first; what has several lengths becomes one vector."""
        leaves, form = tree_flatten(outputs[0])
        columns = zip(*(_tensors(output) for output in outputs), strict=True)
        joined = iter([_cat(column, dim) for column, dim in zip(columns, self._sample_dims, strict=True)])
        return tree_unflatten([next(joined) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    moved = [part.movedim(dim, 0) if part.ndim else part[None] for part in parts]
    alike = len({part.shape[1:] for part in moved}) == 1
    return torch.cat(moved if alike else [part.flatten() for part in moved])


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _real_parts(output: Any) -> list[Tensor]:
    return [leaf for leaf in _tensors(output) if leaf.is_floating_point()]


class UnlabelledBatches:
    """Batches of calibration data, with no labels."""

    def __init__(self, calibration: Calibration):
        self._calibration = calibration

    def __iter__(self) -> Iterator[tuple[Batch, None]]:
        return ((batch, None) for batch in self._calibration)

    def split(self, seed: int, fraction: float) -> tuple["UnlabelledBatches", "UnlabelledBatches"]:
        """Return two parts, by sample."""
        first, second = self._calibration.split(seed, fraction)
        return UnlabelledBatches(first), UnlabelledBatches(second)


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
    batched
        Which of these hold a batch.

    Raises
    ------
    CalibrationError
        A batch is no pair.
    """

    def __init__(
        self, data: Any, batch_size: int, batch_to_inputs: Callable[[Any], Any] | None, batched: Flags | None = None
    ):
        self._pairs, self._batched = Calibration(data, batch_size), batched
        self._to_inputs = batch_to_inputs or (lambda batch: batch[0])

    def split(self, seed: int, fraction: float) -> tuple["LabelledBatches", "LabelledBatches"]:
        """Return two parts, by sample."""
        parts = copy.copy(self), copy.copy(self)
        parts[0]._pairs, parts[1]._pairs = self._pairs.split(seed, fraction)
        return parts

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        for pair in self._pairs:
            if len(pair.arguments) != 2 or not isinstance(pair.arguments[1], Tensor):
                raise CalibrationError(
                    'expected validation batches (inputs, labels) for metric="accuracy", got a batch of '
                    f"{', '.join(type(part).__name__ for part in pair.arguments)}"
                )
            inputs = self._to_inputs(pair.arguments)
            inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
            yield Batch(inputs, pair.samples, pair.index, self._batched), pair.arguments[1]


def unstable() -> NonFiniteError:
    """Return the error of a reduced layer without a finite solution."""
    return NonFiniteError(
        "expected a finite solution of the reduced layer on held-out calibration data, got one that grows without "
        "bound: its ODE is unstable at these sizes; ask for a larger state_dim, or other points"
    )
