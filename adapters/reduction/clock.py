"""How long a reduced network takes beside the full one, on the user's machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import recorded_calls
from torchmor.adapters.networks.timing import compare_times
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.steps import FixedSteps, solved_by, solver_name
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.findings import Clock, TimedCall

#: Calls of which the median time is taken, at most; and how many there are of slow ones.
REPEATS = 51
FEWEST = 1

_Who = tuple[Literal["reduced", "full"], str]
_Part = Literal["layer", "network"]


def clocked(
    full: nn.Module,
    small: nn.Module,
    name: str,
    batch: Batch,
    coarse: FixedSteps | None,
    budget_s: float,
    seed: int = 0,
) -> Clock:
    """Return the times of a reduced network, and of the full one with its own solver and with coarse steps.

    They run in turns, in eval mode without gradients, on one sample and on the whole batch; the layer alone gets what
    its network gives it. A network that cannot take one sample alone has no row there. All networks stay as they are.

    Parameters
    ----------
    full, small
        The full network and the reduced one.
    name
        Name of the ODE layer in both.
    batch
        Arguments of the networks.
    coarse
        Steps of the full layer; None for its own solver only.
    budget_s
        About how long the measurement may take, in seconds; each call is made at least twice.
    seed
        Of the order of calls.
    """
    networks: dict[_Who, nn.Module] = {("reduced", _solver(small, name)): small, ("full", _solver(full, name)): full}
    if coarse is not None:
        other = solved_by(full, name, coarse)
        networks.setdefault(("full", _solver(other, name)), other)
    batches = [batch.select(np.arange(batch.size) == 0), batch] if batch.size > 1 else [batch]
    found = []
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluation(network))
        for one in batches:
            calls: dict[_Part, dict[_Who, Callable[[], Any]]] = {"layer": {}, "network": {}}
            for who, network in networks.items():
                with suppress(Exception):  # of any kind, where a single sample does not do for the user's code
                    for part, call in _calls(network, name, one).items():
                        calls[part][who] = call
            for part, of_part in calls.items():
                share_s = budget_s / (len(batches) * len(calls))
                settings = {"repeats": REPEATS, "fewest": FEWEST, "warm_up": 0}  # all ran once above
                times = compare_times(of_part, **settings, budget_s=share_s, seed=seed)
                found += [TimedCall(*who, part, one.size, timing.wall_s) for who, timing in times.items()]
    devices = {leaf.device.type for leaf in tree_leaves(batch.arguments) if isinstance(leaf, Tensor)}
    return Clock(tuple(found), torch.get_num_threads(), ", ".join(sorted(devices)))


def _solver(network: nn.Module, name: str) -> str:
    return solver_name(cast(SolvingLayer, network.get_submodule(name)))


def _calls(network: nn.Module, name: str, batch: Batch) -> dict[_Part, Callable[[], Any]]:
    """Return calls of a network's layer alone, and of the network; the first one is made here."""
    layer = network.get_submodule(name)
    with recorded_calls(layer) as recorded:
        network(*batch.arguments)

    def alone() -> None:
        for call in recorded:
            layer(*call.arguments, **call.named)

    whole: dict[_Part, Callable[[], Any]] = {"network": lambda: network(*batch.arguments)}
    return {"layer": alone, **whole} if recorded else whole
