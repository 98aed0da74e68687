"""What all reductions of a layer are made of: data to fit to, to choose by and to confirm on, and snapshots."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import copied, find_layer, with_layers
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.models.to_pymor import full_order_model
from torchmor.adapters.models.to_torch import reduced_layer
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.cost import run_cost
from torchmor.adapters.networks.first_states import FirstStates, first_states
from torchmor.adapters.reduction.adaptive_solves import bounded_evaluations
from torchmor.adapters.reduction.gradients import Objective, classes_objective, output_gradients, values_objective
from torchmor.adapters.reduction.metrics import Metric
from torchmor.adapters.reduction.snapshots import Snapshots, collect_snapshots
from torchmor.adapters.reduction.validation import Validation
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.steps import COARSE, FixedSteps, set_solver, solved_by, solver_name
from torchmor.engine.errors import SolverError
from torchmor.engine.explanation import CLASS_METRICS, Trial
from torchmor.engine.reduction import Reduction, SnapshotReductor
from torchmor.engine.sizes import ReductionRequest


class Small(NamedTuple):
    """A smaller copy of the network, its reduced layer, and the reduction that made it."""

    network: nn.Module
    layer: ReducedODELayer
    reduction: Reduction


@dataclass(frozen=True, eq=False)
class Material:
    """Data, and what all reductions of a layer share, which is computed when it is first needed.

    Parameters
    ----------
    network, name
        The network with an ODELayer, and its name. Nothing of it is changed.
    fit
        Data to fit to.
    lessons
        Data to tune to: more of them.
    held_out
        Data to measure errors on.
    choose, confirm
        Data to choose by, and data that nothing was chosen by. They may be `held_out` where nothing is chosen.
    metric, objective, seed, progress
        As in :func:`~torchmor.adapters.reduce_network`.
    """

    network: nn.Module
    name: str
    fit: Calibration
    lessons: Calibration
    held_out: Validation
    choose: Validation
    confirm: Validation
    metric: Metric
    objective: Objective | None
    seed: int
    progress: bool

    @cached_property
    def copy(self) -> nn.Module:
        """A copy of the network: calibration moves its counters and caches only."""
        return copied(self.network)

    @cached_property
    def layer(self) -> ODELayer:
        """The ODE layer of the copy."""
        return find_layer(self.copy, self.name)

    @cached_property
    def _collected(self) -> tuple[Snapshots, Example]:
        with first_states(self.layer) as found:
            snapshots = collect_snapshots(self.copy, self.name, self.fit, progress=self.progress)
        return snapshots, Example(*found[0])

    @property
    def snapshots(self) -> Snapshots:
        """Snapshots of the layer on the data to fit to."""
        return self._collected[0]

    @property
    def example(self) -> Example:
        """Some states of the layer."""
        return self._collected[1]

    @cached_property
    def reductor(self) -> SnapshotReductor:
        """The reductor of the layer's model."""
        example, snapshots = self.example, self.snapshots
        with evaluation(self.copy):
            fom = full_order_model(self.layer, example.y, example.u)
        u = None if example.u is None else snapshots.u
        return SnapshotReductor(fom, snapshots.y, u, snapshots.t, self._gradients, snapshots.sample)

    @cached_property
    def evaluations(self) -> int:
        """Most evaluations of the full layer in a forward pass."""
        return max(self.snapshots.nfe)

    def reduced(self, request: ReductionRequest, steps: FixedSteps | None = None) -> Small:
        """Return a copy of the network with the layer reduced as asked, and solved by these steps."""
        reduction = self.reductor.reduce_as(request)
        layer = _reduced_layer(self.layer, reduction, self.example)
        if steps is not None:
            set_solver(layer, steps)
        return Small(with_layers(self.network, {self.name: layer}), layer, reduction)

    def with_steps(self, steps: FixedSteps | None) -> nn.Module:
        """Return the full network with the layer solved by these steps."""
        return solved_by(self.copy, self.name, steps)

    def full_trial(self, steps: FixedSteps | None) -> Trial:
        """Return what the full network costs and loses with these steps; None for its own solver."""
        if steps not in self._full_trials and steps is None:
            loss = self.choose.own_loss(self.metric)
            self._full_trials[None] = Trial("full", solver_name(self.layer), self.cost(self.layer), loss)
        elif steps not in self._full_trials:
            self._full_trials[steps] = self.trial(self.with_steps(steps), "full")
        return self._full_trials[steps]

    @cached_property
    def _full_trials(self) -> dict[FixedSteps | None, Trial]:
        return {}

    def adequate_steps(self, max_loss: float) -> FixedSteps | None:
        """Return the cheapest coarse steps with which the full network loses at most so much; None if none do."""
        good = [steps for steps in COARSE if self.full_trial(steps).loss <= max_loss]
        return min(good, key=lambda steps: self.full_trial(steps).cost, default=None)

    def cost(self, layer: SolvingLayer) -> float:
        """Return what a forward pass of a layer, full or reduced, costs for a sample; infinity without a solution."""
        with suppress(*self._no_solution(layer)), bounded_evaluations(layer, layer, self.evaluations):
            return self.example.cost(layer)
        return math.inf

    def loss(self, network: nn.Module) -> float:
        """Return a network's loss on the data to choose by; infinity if there is no solution."""
        layer = cast(SolvingLayer, network.get_submodule(self.name))
        with suppress(*self._no_solution(layer)), bounded_evaluations(network, layer, self.evaluations):
            return self.choose.loss(self.metric, network)
        return math.inf

    def trial(self, network: nn.Module, sizes: str) -> Trial:
        """Return what a network with an ODE layer, full or reduced, costs and loses."""
        layer = cast(SolvingLayer, network.get_submodule(self.name))
        cost = self.cost(layer)
        return Trial(sizes, solver_name(layer), cost, self.loss(network) if cost < math.inf else math.inf)

    def operations(self, layer: ReducedODELayer) -> tuple[int, int]:
        """Return multiply–adds of one evaluation of the ODE function for one sample, full and reduced."""
        return _operations(self.layer.function, self.example), _operations(layer.ode, self.example, layer)

    def _no_solution(self, layer: Any) -> list[type[SolverError]]:
        return [SolverError] if isinstance(layer, ReducedODELayer) else []  # the full layer's error is the user's

    def _gradients(self) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.seed)
        classes = self.metric in CLASS_METRICS
        objective = self.objective or (classes_objective if classes else values_objective)(generator)
        return output_gradients(self.copy, self.name, self.fit, objective, progress=self.progress)


class Example(FirstStates):
    """Some states to measure the layer's costs with."""

    def cost(self, layer: nn.Module) -> float:
        """Return what a forward pass of the layer costs for a sample, with an input that stays as it is."""
        return run_cost(layer, self.y) if self.u is None else run_cost(layer, self.y, lambda t: self.u)


def _reduced_layer(layer: ODELayer, reduction: Reduction, example: Example) -> ReducedODELayer:
    rom, y = reduction.rom, example.y
    projected = "state" in reduction.bases
    return reduced_layer(
        layer.settings,
        tuple(y.shape[1:]),
        -rom.operator.chain,
        rom.initial_data.encode if projected else None,
        rom.output_functional.chain.output if projected else None,
        "none" if example.u is None else "required",
        y.dtype,
        y.device,
    )


def _operations(f: Callable[..., Any], example: Example, reduced: ReducedODELayer | None = None) -> int:
    """Multiply–adds of the matrix products and convolutions of one evaluation for one sample."""
    y, u = example.y[:1], None if example.u is None else example.u[:1]
    with evaluation(f), FlopCounterMode(display=False) as counter:
        if reduced is None:
            f(example.t, y, u)
        else:
            f(y.new_zeros(1, reduced.ode.state_size), u, example.t)
    return counter.get_total_flops() // 2
