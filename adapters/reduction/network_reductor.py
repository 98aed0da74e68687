"""Reductions of an ODE layer of a trained network, to any sizes, with one offline stage for all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import copied, find_layer, find_module, uncompiled, with_layers
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.layers.solved_block import SolvedBlock
from torchmor.adapters.models.to_pymor import full_order_model
from torchmor.adapters.models.to_torch import reduced_layer
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.cost import run_cost
from torchmor.adapters.networks.first_states import FirstStates, first_states
from torchmor.adapters.networks.stand_in import with_ode_layer
from torchmor.adapters.networks.timing import now
from torchmor.adapters.reduction.adaptive_solves import (
    TooManyEvaluationsError,
    bounded_evaluations,
    equal_steps,
    steps_to_try,
)
from torchmor.adapters.reduction.advice import (
    LEAST_GAIN,
    tell_of_evaluations,
    tell_of_few_samples,
    tell_of_little_gain,
)
from torchmor.adapters.reduction.clock import clocked
from torchmor.adapters.reduction.gradients import Objective, classes_objective, output_gradients, values_objective
from torchmor.adapters.reduction.metrics import Metric, check_metric
from torchmor.adapters.reduction.size_search import Candidate, choices, choose, solvers
from torchmor.adapters.reduction.snapshots import Snapshots, collect_snapshots
from torchmor.adapters.reduction.validation import (
    HELD_OUT_SAMPLES,
    LabelledBatches,
    UnlabelledBatches,
    Validation,
    unstable,
)
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.steps import COARSE, FixedSteps, Steps, fixed_steps, set_solver, solved_by, solver_name
from torchmor.engine.errors import (
    CalibrationError,
    NonFiniteError,
    NotReducedWarning,
    SizeError,
    SolverError,
    UnknownLayerError,
)
from torchmor.engine.explanation import Explanation, Trial
from torchmor.engine.findings import Clock
from torchmor.engine.reduction import Reduction, SnapshotReductor
from torchmor.engine.sizes import ReductionRequest, Size

#: The share of the offline time in which the result is timed, and how many seconds at least and at most.
CLOCK_SHARE, CLOCK_LEAST_S, CLOCK_MOST_S = 0.1, 0.3, 5.0

#: Calibration data of fewer samples is refused.
LEAST_SAMPLES = 4


class NetworkReductor:
    """Reduces an ODE layer of a trained network to several sizes, with one offline stage for all.

    Law: ``NetworkReductor(network, name, calibration, …).reduce(…)`` equals ``reduce_network(network, name,
    calibration, …)``, whatever was reduced before. Snapshots, gradients and bases are computed when they are first
    needed.

    Parameters
    ----------
    network, name, calibration, metric, objective, validation, batch_to_inputs, batch_size, seed, progress,
    input_attribute, batched
        As in :func:`~torchmor.adapters.reduce_network`.

    Raises
    ------
    UnknownLayerError, CalibrationError, UnsupportedOperationError
        As in :func:`~torchmor.adapters.reduce_network`.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        calibration: Any,
        *,
        metric: Metric = "relative",
        objective: Objective | None = None,
        validation: Any = None,
        batch_to_inputs: Callable[[Any], Any] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool = True,
        input_attribute: str | None = None,
        batched: Sequence[bool] | None = None,
    ):
        _check_not_reduced(network, name)
        network = uncompiled(network)
        find_module(network, name)
        _check_finite(network)
        full = copied(network)  # the user's own network: what all losses and errors are measured against
        calibration = Calibration(calibration, batch_size, batch_to_inputs, seed, batched=batched)
        calibration = with_batched(calibration, full, name, input_attribute)
        network, layer_name = with_ode_layer(network, name, calibration, input_attribute)
        self.network, self.name, self.seed, self.progress = network, layer_name, seed, progress
        self.metric, self.objective = check_metric(metric), objective
        self._calibration, held_out = calibration.split(seed)
        self._check_samples()
        if metric == "accuracy" and validation is None:
            raise ValueError(
                'expected validation batches (inputs, labels) for metric="accuracy", got none: pass '
                'validation=(inputs, labels), or use metric="agreement", which needs no labels'
            )
        self._full_trials: dict[Steps | None, Candidate] = {}
        self._held_out = Validation(full, name, layer_name, UnlabelledBatches(held_out), HELD_OUT_SAMPLES)
        self._validation = self._held_out
        if validation is not None:
            other = Calibration(validation, batch_size, batch_to_inputs, seed, batched=calibration.batched)
            batches = (
                LabelledBatches(validation, batch_size, batch_to_inputs, calibration.batched)
                if metric == "accuracy"
                else UnlabelledBatches(other)
            )
            self._validation = Validation(full, name, layer_name, batches)

    def reduce(
        self,
        *,
        state_dim: Size = None,
        points: Size | Sequence[Size] = None,
        modes: Size | Sequence[Size] = None,
        basis: str = "balanced",
        selection: str = "omp",
        fit: str = "least_squares",
        energy_rtol: float | None = None,
        max_loss: float | None = 0.005,
        speedup: float | None = None,
        solver: FixedSteps | Sequence[Any] | None = None,
    ) -> nn.Module:
        """Return a copy of the network with the layer reduced, as :func:`~torchmor.adapters.reduce_network` does.

        Parameters
        ----------
        solver
            Fixed steps of the reduced layer: None for the full layer's solver, or what the search finds; a method's
            name, for steps from output time to output time, or for 1, 2 and 4 steps where sizes are searched; a pair
            (method, number of steps) or :class:`~torchmor.adapters.solving.steps.Steps`.

        All other parameters are those of :func:`~torchmor.adapters.reduce_network`.
        """
        steps, self._began = fixed_steps(solver), now()
        request = ReductionRequest(state_dim, points, modes, basis, selection, fit, energy_rtol)
        if not request.is_complete:
            return self._searched(request, max_loss, speedup, steps)
        small = self._reduced(request)
        if steps is not None:
            set_solver(small.layer, steps)
        return self._finished(small, request)

    def _searched(
        self, request: ReductionRequest, max_loss: float | None, speedup: float | None, solver: FixedSteps | None
    ) -> nn.Module:
        """Return the cheapest copy within a loss, or the best of those that are so much cheaper."""
        for value, words, possible in ((max_loss, "max_loss", 0), (speedup, "speedup", 1)):
            if value is not None and not value >= possible:
                raise ValueError(f"expected {words} to be at least {possible}, got {value!r}")
        tried = solvers(solver)
        full = [self._full_trial(steps) for steps in dict.fromkeys((None, *COARSE, *tried))]
        affordable = float("inf") if speedup is None else full[0].trial.cost / speedup
        trials: list[Candidate] = []
        for state_dim, points, least_cost in choices(request.state_dim, request.points, self._offline.reductor.chain):
            if least_cost > affordable:
                break
            try:
                small = self._reduced(replace(request, state_dim=state_dim, points=points))
            except SizeError:  # more than the calibration data spans
                continue
            for steps in tried:
                trials.append(self._trial(small.network, steps, state_dim, points))
                if speedup is None and (max_loss is None or trials[-1].trial.loss <= max_loss):
                    affordable = min(affordable, trials[-1].trial.cost)
        chosen = choose(trials, full, max_loss, speedup, self.metric)
        small = self._reduced(replace(request, state_dim=chosen.state_dim, points=chosen.points))
        if chosen.steps is not None:
            set_solver(small.layer, chosen.steps)
        curve = tuple(candidate.trial for candidate in (*full, *trials))
        adequate = [
            (one.trial.cost, steps)
            for steps, one in self._full_trials.items()
            if steps is not None and one.trial.loss <= (chosen.trial.loss if max_loss is None else max_loss)
        ]
        coarse = min(adequate, key=lambda pair: pair[0], default=(math.inf, None))[1]
        return self._finished(small, request, curve, chosen.trial, coarse)

    def _full_trial(self, steps: Steps | None) -> Candidate:
        if steps not in self._full_trials:
            self._full_trials[steps] = self._trial(self._copy, steps, None, None)
        return self._full_trials[steps]

    def _trial(self, network: nn.Module, steps: Steps | None, state_dim: Size, points: Any) -> Candidate:
        network = solved_by(network, self.name, steps)
        layer = cast(SolvingLayer, network.get_submodule(self.name))
        cost = loss = math.inf
        with suppress(*([] if state_dim is None else [SolverError])):  # a reduced layer without a solution is no choice
            with bounded_evaluations(layer, layer, self._evaluations):
                cost = self._offline.example.cost(layer)
            with bounded_evaluations(network, layer, self._evaluations):
                loss = self._validation.loss(self.metric, network)
        return Candidate(state_dim, points, steps, Trial(_words(state_dim, points), solver_name(layer), cost, loss))

    def _reduced(self, request: ReductionRequest) -> _Small:
        """Return a copy of the network with the layer reduced as asked."""
        reduction = self._offline.reductor.reduce_as(request)
        layer = _reduced_layer(self._offline.layer, reduction, self._offline.example)
        return _Small(with_layers(self.network, {self.name: layer}), layer, reduction)

    def _finished(
        self,
        small: _Small,
        request: ReductionRequest,
        curve: tuple[Trial, ...] = (),
        chosen: Trial | None = None,
        coarse: Steps | None = None,
    ) -> nn.Module:
        """Give a reduced network its explanation and record; `coarse` are steps of the full layer that would do."""
        layer, example, snapshots = self._offline.layer, self._offline.example, self._offline.snapshots
        reduced, reduction = small.layer, small.reduction
        operations = (_operations(layer.function, example), _operations(reduced.ode, example, reduced))
        (errors, distance), evaluations = self._measured(small)
        useless = all(part.reduced >= part.full for part in reduction.parts)
        if useless:
            warnings.warn(
                f"nothing was reduced: state and stages keep their sizes {[part.full for part in reduction.parts]}; "
                "ask for smaller state_dim or points, or a larger energy_rtol",
                NotReducedWarning,
                stacklevel=4,
            )
        if chosen is None:
            coarse = self._steps_within(errors.get("network output", 0.0))
        clock = self._timed(small.network, coarse)
        reduced.explanation = Explanation(
            parts=reduction.parts,
            method=request.method,
            solver=str(reduced.settings),
            snapshots=len(snapshots),
            samples=len(set(snapshots.sample)),
            evaluations=self._evaluations,
            operations=operations,
            errors=errors,
            metric=self.metric if isinstance(self.metric, str) else "a function",
            curve=curve,
            chosen=chosen,
            steps=equal_steps(small.network, reduced, [batch for batch, _, _ in self._held_out.full]),
            fingerprint=reduced.fingerprint(),
            clock=clock,
        )
        if not useless:
            tell_of_little_gain(operations, clock)
        tell_of_few_samples(reduction.parts, snapshots.sample)
        tell_of_evaluations(evaluations, self._evaluations, reduced)
        reduced.usual_distance = distance
        reduced.record(
            fom=self._offline.reductor.fom,
            bases=reduction.bases,
            singular_values=reduction.singular_values,
            points=reduction.points,
        )
        return small.network

    def _check_samples(self) -> None:
        mask = self._calibration.mask
        if mask is not None and len(mask) < LEAST_SAMPLES:
            raise CalibrationError(
                f"expected at least {LEAST_SAMPLES} calibration samples, to fit to most and to measure errors on the "
                f"others, got {len(mask)}: give more data like that which the network will see"
            )

    def _measured(self, small: _Small) -> tuple[tuple[dict[str, float], float | None], int]:
        """Return what is measured on held-out data, and the most evaluations of an adaptive solver in a pass there.

        Raises
        ------
        SolverError
            They would be many more than the full layer's; the message has steps that were tried instead.
        NonFiniteError
            There is no finite solution.
        """
        try:
            with bounded_evaluations(small.network, small.layer, self._evaluations) as counts:
                return self._held_out.measured(small.network), max(counts, default=0)
        except TooManyEvaluationsError as error:
            found: list[tuple[float, Steps]] = []
            for steps in steps_to_try(len(small.layer.t)):
                with suppress(NonFiniteError):
                    errors = self._held_out.errors(solved_by(small.network, self.name, steps))
                    found.append((errors["layer output"], steps))
            least = min([one for one, _ in found], default=math.inf)
            if least >= 1:
                raise unstable() from error
            best, steps = next((one, steps) for one, steps in found if one <= LEAST_GAIN * least)
            raise SolverError(
                f"{error}; take solver=({steps.method!r}, {steps.count}), of relative error {best:.2g} in the layer's "
                "output on held-out calibration data, or other sizes"
            ) from error

    @cached_property
    def _evaluations(self) -> int:
        """Most evaluations of the full layer in a forward pass."""
        return max(self._offline.snapshots.nfe)

    def _timed(self, network: nn.Module, coarse: Steps | None) -> Clock:
        """Return times of a reduced network beside those of the full one, with its own solver and with coarse steps."""
        batch = next(iter(replace(self._calibration, mask=None)))
        budget_s = min(max(CLOCK_SHARE * (now() - self._began), CLOCK_LEAST_S), CLOCK_MOST_S)
        return clocked(self._copy, network, self.name, batch, coarse, budget_s, self.seed)

    def _steps_within(self, error: float) -> Steps | None:
        """Return the cheapest coarse steps of the full layer whose error of the network's output is not larger."""
        return next((steps for steps, one in self._coarse_errors if one <= error), None)

    @cached_property
    def _coarse_errors(self) -> list[tuple[Steps, float]]:
        """Coarse steps of the full layer that are cheaper than its own solver, and their errors, the cheapest first."""
        found = []
        for steps in sorted(COARSE, key=lambda steps: steps.evaluations):
            if steps.evaluations < self._evaluations:
                with suppress(NonFiniteError):
                    errors = self._held_out.errors(solved_by(self._copy, self.name, steps))
                    found.append((steps, errors.get("network output", math.inf)))
        return found

    @cached_property
    def _copy(self) -> nn.Module:
        return copied(self.network)  # calibration moves counters and caches of a copy only

    @cached_property
    def _offline(self) -> _Offline:
        layer = find_layer(self._copy, self.name)
        with first_states(layer) as found:
            snapshots = collect_snapshots(self._copy, self.name, self._calibration, progress=self.progress)
        example = _Example(*found[0])
        with evaluation(self._copy):
            fom = full_order_model(layer, example.y, example.u)
        u = None if example.u is None else snapshots.u
        reductor = SnapshotReductor(fom, snapshots.y, u, snapshots.t, self._gradients, snapshots.sample)
        return _Offline(layer, example, snapshots, reductor)

    def _gradients(self) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.seed)
        classes = self.metric in ("agreement", "accuracy")
        objective = self.objective or (classes_objective if classes else values_objective)(generator)
        return output_gradients(self._copy, self.name, self._calibration, objective, progress=self.progress)


@dataclass(frozen=True, eq=False)
class _Offline:
    """What all reductions of a layer share: the layer, some of its states, its snapshots, and the model's reductor."""

    layer: ODELayer
    example: _Example
    snapshots: Snapshots
    reductor: SnapshotReductor


class _Small(NamedTuple):
    """A smaller copy of the network, its reduced layer, and the reduction that made it."""

    network: nn.Module
    layer: ReducedODELayer
    reduction: Reduction


def _words(state_dim: Size, points: Any) -> str:
    if state_dim is None:
        return "full"
    size = ", ".join(map(str, points)) if isinstance(points, list) else str(points)
    return f"state {state_dim}, points {size}"


def _check_not_reduced(network: nn.Module, name: str) -> None:
    for value, kind in ((network, nn.Module), (name, str)):
        if not isinstance(value, kind):
            raise TypeError(
                "expected reduce_network(network, name, calibration) with a module and the name of its ODE layer as "
                f"in network.named_modules(), got {value!r}"
            )
    module = dict(network.named_modules(remove_duplicate=False)).get(name)
    if isinstance(module.layer if isinstance(module, SolvedBlock) else module, ReducedODELayer):
        raise UnknownLayerError(
            f"expected an ODELayer as {name!r}, got a layer that is reduced already: reduce the original network "
            "again, with other sizes"
        )


def _check_finite(network: nn.Module) -> None:
    for key, value in network.named_parameters():
        if not value.isfinite().all():
            raise NonFiniteError(f"expected a network with finite weights, got NaN or infinity in {key!r}")


class _Example(FirstStates):
    """Some states to measure the layer's costs with."""

    def cost(self, layer: nn.Module) -> float:
        """Return what a forward pass of the layer costs for a sample, with an input that stays as it is."""
        return run_cost(layer, self.y) if self.u is None else run_cost(layer, self.y, lambda t: self.u)


def _reduced_layer(layer: ODELayer, reduction: Reduction, example: _Example) -> ReducedODELayer:
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


def _operations(f: nn.Module, example: _Example, reduced: ReducedODELayer | None = None) -> int:
    """Multiply–adds of the matrix products and convolutions of one evaluation for one sample."""
    y, u = example.y[:1], None if example.u is None else example.u[:1]
    with evaluation(f), FlopCounterMode(display=False) as counter:
        if reduced is None:
            f(example.t, y, u)
        else:
            f(y.new_zeros(1, reduced.ode.state_size), u, example.t)
    return counter.get_total_flops() // 2
