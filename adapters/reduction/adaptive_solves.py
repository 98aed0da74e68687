"""Adaptive solves of reduced layers: how often they evaluate, a bound on that, and equal steps that do the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import RecordedCall, call_network, recorded_calls
from torchmor.adapters.solving.runge_kutta import is_fixed_step
from torchmor.adapters.solving.steps import Steps, set_solver
from torchmor.engine.errors import SolverError
from torchmor.engine.explanation import EqualSteps

#: A reduced layer may evaluate its ODE function so many times as often as the full layer does.
MOST = 10

#: It is told of from so many times on.
NOTICED = 2

#: Equal steps that are tried, and of how many samples.
METHODS = ("midpoint", "rk4")
COUNTS = (1, 2, 4, 8, 16, 32, 64)
SAMPLES = 128


class TooManyEvaluationsError(SolverError):
    """An adaptive solver was stopped: it would evaluate much more often than that of the full layer."""


@contextmanager
def bounded_evaluations(network: nn.Module, layer: nn.Module, full: int) -> Iterator[list[int]]:
    """Yield a list of the evaluations of a reduced layer in each call of its network, which are bounded.

    Layers with fixed steps, and full layers, are not counted.

    Parameters
    ----------
    network, layer
        The network, and the reduced layer in it.
    full
        Evaluations of the full layer in a call.

    Raises
    ------
    TooManyEvaluationsError
        In the context, beyond `MOST` times `full`.
    """
    counts: list[int] = []
    if not isinstance(layer, ReducedODELayer) or is_fixed_step(layer.method):
        yield counts
        return

    def begin(*_: Any) -> None:
        counts.append(0)

    def count(*_: Any) -> None:
        counts[-1] += 1
        if counts[-1] > MOST * full:
            raise TooManyEvaluationsError(
                f"the reduced layer's {layer.method} was stopped after {counts[-1] - 1:,} evaluations of the ODE "
                f"function in a forward pass, where the full layer takes {full:,}: the reduced ODE is stiff or "
                "unstable at these sizes"
            )

    hooks = [network.register_forward_pre_hook(begin), layer.ode.register_forward_pre_hook(count)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def equal_steps(network: nn.Module, layer: ReducedODELayer, batches: Iterable[Batch]) -> EqualSteps | None:
    """Return the cheapest equal steps that do what a reduced layer's adaptive solver does, to its tolerances.

    Parameters
    ----------
    network, layer
        The network, and the reduced layer in it.
    batches
        Held-out data.

    Returns
    -------
    EqualSteps, or None where the layer has fixed steps, or none that were tried come as near.
    """
    if is_fixed_step(layer.method):
        return None
    calls = _calls(network, layer, batches)
    if not calls:
        return None
    exact = torch.cat([call.output.flatten() for call in calls]).double()
    allowed = float(exact.norm()) * _mean(layer.rtol) + exact.numel() ** 0.5 * _mean(layer.atol)
    for steps in steps_to_try(len(layer.t)):
        fixed = copy.deepcopy(layer)
        set_solver(fixed, steps)
        with torch.no_grad():
            found = torch.cat([fixed(*call.arguments, **call.named).flatten() for call in calls]).double()
        difference = float((found - exact).norm())
        if difference <= allowed:  # not if it is NaN
            return EqualSteps(steps.method, steps.count, difference / max(float(exact.norm()), 1e-300))
    return None


def steps_to_try(times: int) -> list[Steps]:
    """Return the steps to try for a layer of so many times, the cheapest first: they end at its times if these do."""
    steps = [Steps(method, (times - 1) * count) for method in METHODS for count in COUNTS]
    return sorted((one for one in steps if one.evaluations <= 4 * COUNTS[-1] * 2), key=lambda one: one.evaluations)


def _calls(network: nn.Module, layer: nn.Module, batches: Iterable[Batch]) -> list[RecordedCall]:
    samples = 0
    with evaluation(network), recorded_calls(layer) as calls:
        for batch in batches:
            call_network(network, batch)
            samples += batch.size
            if samples >= SAMPLES:
                break
    return calls


def _mean(tolerance: Any) -> float:
    """A tolerance as a number; torchdiffeq takes one for each component too."""
    return float(torch.as_tensor(tolerance).double().mean())
