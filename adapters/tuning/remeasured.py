"""What reduced layers say of themselves, measured again after their parameters were changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.layers.solved_block import SolvedBlock
from torchmor.adapters.networks.calibration import HELD_OUT_SAMPLES, Batch
from torchmor.adapters.networks.difference import Difference
from torchmor.adapters.networks.evaluation import RecordedCall, call_network, recorded_calls


def describe_again(network: nn.Module, reduced: nn.Module, held_out: Iterable[Batch], since: str) -> None:
    """Measure errors and usual distances of a network's reduced layers again, against the full network.

    What is true of the earlier parameters only is left out of their explanations. The error of a layer's own output is
    measured where the full network has a module of its name, whose outputs are alike.

    Parameters
    ----------
    network, reduced
        The full network, and the one with the reduced layers.
    held_out
        Batches that were not trained on.
    since
        What was done, in words.
    """
    layers = {name: module for name, module in reduced.named_modules() if isinstance(module, ReducedODELayer)}
    in_full = {name: _place_in(network, reduced, name) for name in layers}
    places = [*layers, *(place for place in in_full.values() if place is not None)]
    whole = _Errors()
    own = {name: _Errors() for name in layers}
    distances: dict[str, list[float]] = {name: [] for name in layers}
    samples = 0
    for batch in held_out:
        exact, full = _run(network, batch, places)
        value, small = _run(reduced, batch, places)
        whole.add([exact], [value])
        for name, layer in layers.items():
            distances[name] += [float(layer.distance(call.arguments[0]).max()) for call in small[name]]
            place = in_full[name]
            if place is not None:
                own[name].add(_outputs(full[place]), _outputs(small[place]))
        samples += batch.size
        if samples >= HELD_OUT_SAMPLES:
            break
    for name, layer in layers.items():
        layer.usual_distance = max(distances[name], default=None)
        if layer.explanation is None:
            continue
        found = {
            "layer output": None if in_full[name] is None else own[name].relative,
            "network output": whole.relative,
        }
        layer.explanation = replace(
            layer.explanation.without_fits(),
            solver=str(layer.settings),
            errors={key: error for key, error in found.items() if error is not None},
            steps=None,
            since=since,
            fingerprint=layer.fingerprint(),
        )


class _Errors:
    """The relative error of outputs over several batches; None if they cannot be compared."""

    def __init__(self) -> None:
        self._alike, self._difference = True, Difference()

    def add(self, exact: Sequence[Any], values: Sequence[Any]) -> None:
        self._alike = self._alike and len(exact) == len(values)
        for one, other in zip(exact, values, strict=False):
            tensors = isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point()
            if not tensors or one.shape != other.shape:
                self._alike = False
                return
            self._difference.add(one, other)

    @property
    def relative(self) -> float | None:
        return self._difference.relative if self._alike else None


def _place_in(network: nn.Module, reduced: nn.Module, name: str) -> str | None:
    """Return where in the full network that is which a reduced layer, or the block around it, stands for."""
    known = dict(network.named_modules(remove_duplicate=False))
    if name in known:
        return name
    block, _, _ = name.rpartition(".")
    return block if block in known and isinstance(reduced.get_submodule(block), SolvedBlock) else None


def _run(network: nn.Module, batch: Batch, places: Sequence[str]) -> tuple[Any, dict[str, list[RecordedCall]]]:
    """Return a network's output, and the calls of its modules in these places."""
    modules = dict(network.named_modules(remove_duplicate=False))
    with ExitStack() as stack:
        stack.enter_context(evaluation(network))
        calls = {
            place: stack.enter_context(recorded_calls(modules[place])) for place in set(places) if place in modules
        }
        return call_network(network, batch), calls


def _outputs(calls: Sequence[RecordedCall]) -> list[Any]:
    return [call.output for call in calls]
