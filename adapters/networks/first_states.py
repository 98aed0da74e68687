"""The first states at which a layer's solver evaluates its ODE function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.models.to_pymor import full_order_model
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import call_network
from torchmor.engine.stages import StageChain

#: States that are kept.
MOST = 4


class FirstStates(NamedTuple):
    """The time, some states, and their inputs, of an evaluation of the ODE function."""

    t: Tensor
    y: Tensor
    u: Tensor | None


@contextmanager
def first_states(layer: ODELayer) -> Iterator[list[FirstStates]]:
    """Yield a list that gets the states of the first evaluation, while the context lasts."""
    found: list[FirstStates] = []

    def observe(t: Tensor, y: Tensor, u: Tensor | None) -> None:
        if not found:
            found.append(FirstStates(t.clone(), y[:MOST].clone(), None if u is None else u[:MOST].clone()))

    with layer.observe(observe):
        yield found


def check_traceable(network: nn.Module, layer: ODELayer, batch: Batch) -> StageChain:
    """Trace the ODE function of a layer at the first states that its solver takes on a batch; returns its stages.

    Raises
    ------
    UnsupportedOperationError
        It cannot be traced.
    """
    with evaluation(network), first_states(layer) as found:
        call_network(network, batch)
    return full_order_model(layer, found[0].y, found[0].u).operator.chain
