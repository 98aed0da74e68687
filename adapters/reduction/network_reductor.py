"""Reductions of an ODE layer of a trained network, to any sizes, with one offline stage for all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.layers.placing import copied, find_module, uncompiled
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.layers.solved_block import SolvedBlock
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import HELD_OUT_SAMPLES, Calibration
from torchmor.adapters.networks.progress import phases
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
    callers_level,
    pays,
    tell_of_evaluations,
    tell_of_few_samples,
    tell_of_little_gain,
)
from torchmor.adapters.reduction.clock import clocked
from torchmor.adapters.reduction.confidence import CONFIDENCE
from torchmor.adapters.reduction.gradients import Objective
from torchmor.adapters.reduction.material import Material, Small
from torchmor.adapters.reduction.metrics import Metric, check_metric
from torchmor.adapters.reduction.nothing_found import not_confirmed, nothing_found
from torchmor.adapters.reduction.search import LAST, Candidate, Search, Tune
from torchmor.adapters.reduction.validation import (
    LabelledBatches,
    UnlabelledBatches,
    Validation,
    unstable,
)
from torchmor.adapters.reduction.wish import Wish
from torchmor.adapters.solving.steps import FixedSteps, Steps, fixed_steps, solved_by
from torchmor.adapters.tuning.lessons import Augment, Lessons
from torchmor.adapters.tuning.training import tune as tuned_in_place
from torchmor.engine.errors import (
    CalibrationError,
    NonFiniteError,
    NotReducedWarning,
    SolverError,
    UnknownLayerError,
)
from torchmor.engine.explanation import CLASS_METRICS, MOST_SINGULAR_VALUES, Explanation, Trial
from torchmor.engine.findings import Clock, Tuning
from torchmor.engine.sizes import ReductionRequest, Size

#: The share of the offline time in which the result is timed, and how many seconds at least and at most.
CLOCK_SHARE, CLOCK_LEAST_S, CLOCK_MOST_S = 0.1, 0.3, 5.0

#: Snapshots and gradients are of at most so many samples; tuning takes more.
FIT_SAMPLES = 2048

#: Samples in a batch that operators are tuned to, and most passes: small data is learnt by heart in more.
LESSON_SAMPLES, MOST_PASSES = 128, 200

#: Calibration data of fewer samples is refused.
LEAST_SAMPLES = 4

#: Data to choose by, and to confirm on, has at most so many samples.
MOST_SAMPLES = 4096

#: So many networks are tuned to the end and timed, before there is said to be none; so many are confirmed.
MOST_TIMED, MOST_CONFIRMED = 3, 4


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
        self._calibration, self._compared = calibration, partial(Validation, full, name, layer_name)
        self._check_samples()
        if metric == "accuracy" and validation is None:
            raise ValueError(
                'expected validation batches (inputs, labels) for metric="accuracy", got none: pass '
                'validation=(inputs, labels), or use metric="agreement", which needs no labels'
            )
        self._given: LabelledBatches | UnlabelledBatches | None = None
        if metric == "accuracy":
            self._given = LabelledBatches(validation, batch_size, batch_to_inputs, calibration.batched)
        elif validation is not None:
            other = Calibration(validation, batch_size, batch_to_inputs, seed, batched=calibration.batched)
            self._given = UnlabelledBatches(other)
        self._material: dict[bool, Material] = {}

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
        max_loss: float | None = None,
        speedup: float | None = None,
        solver: FixedSteps | Sequence[Any] | None = None,
        tune: bool | None = None,
        effort: int = 1,
        confidence: float | None = None,
        augment: Augment | None = None,
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
        wish = Wish.of(max_loss, speedup, self.metric)
        _check_effort(effort, confidence)
        with phases(self.progress):
            if not request.is_complete:
                tuned = tune if tune is not None else self._can_be_tuned()
                return self._searched(request, wish, steps, tuned, effort, confidence, augment)
            return self._as_asked(request, steps, bool(tune), effort, augment)

    def _as_asked(
        self, request: ReductionRequest, steps: FixedSteps | None, tune: bool, effort: int, augment: Augment | None
    ) -> nn.Module:
        """Return the copy with given sizes."""
        material = self._with(chosen=tune)
        small, tuning = material.reduced(request, steps), None
        if tune:
            tuning = self._tuner(material, augment, effort)(small.network, LAST * effort, None)
        rival = None
        if material.choose.has_loss(self.metric):
            rival = material.adequate_steps(material.loss(small.network))
        return self._finished(material, small, request, tuning=tuning, rival=rival)

    def _searched(
        self,
        request: ReductionRequest,
        wish: Wish,
        solver: FixedSteps | None,
        tuned: bool,
        effort: int,
        confidence: float | None,
        augment: Augment | None,
    ) -> nn.Module:
        """Return the cheapest copy within a loss, or the best of those that are so much cheaper."""
        material = self._with(chosen=True)
        tune = self._tuner(material, augment, effort) if tuned else None
        search = Search(material, request, wish, solver, tune, effort, thorough=effort > 1 or confidence is not None)
        good = search.run()
        nearest = search.nearest()
        if not good and nearest is not None:
            search.polished(nearest)
            good = search.good()
        if confidence is not None and good:
            good = self._confirmed(search, good, confidence)
        passed_over: list[Clock] = []
        for one in good[:MOST_TIMED]:
            one = search.polished(one) if confidence is None else one
            times = self._clock(material, search.small(one), search.rival)
            if pays(times):
                return self._found(search, one, times, confidence)
            passed_over.append(times)
        nearest = search.nearest()
        best = None if nearest is None else self._found(search, nearest, None, confidence)
        raise nothing_found(search, best, passed_over)

    def _confirmed(self, search: Search, good: Sequence[Candidate], confidence: float) -> list[Candidate]:
        """Return the cheapest candidate whose loss is confirmed to be as wished, with all that were tested before it.

        They are tested from the safest on, until one fails: so the bound holds for each that passed (fixed-sequence
        testing).
        """
        nearest = search.nearest()
        safest = [nearest] if nearest is not None and nearest not in good else []
        polished = [search.polished(one) for one in (*good[:MOST_CONFIRMED], *safest)]
        polished = sorted((one for one in polished if one in search.good()), key=lambda one: -one.trial.cost)
        passed: list[Candidate] = []
        for one in polished:
            found = search.material.confirm.confirmed(self.metric, search.network(one), confidence)
            if found.bound is None or found.bound > search.wish.max_loss:
                if not passed:
                    raise not_confirmed(search, found, self._found(search, one, None, confidence))
                break
            passed.append(one)
        return passed[::-1]

    def _found(self, search: Search, one: Candidate, times: Clock | None, confidence: float | None) -> nn.Module:
        return self._finished(
            search.material,
            search.small(one),
            one.request,
            curve=search.curve,
            chosen=one.trial,
            tuning=one.tuning,
            times=times,
            rival=search.rival,
            confidence=confidence,
        )

    def _finished(
        self,
        material: Material,
        small: Small,
        request: ReductionRequest,
        *,
        curve: tuple[Trial, ...] = (),
        chosen: Trial | None = None,
        tuning: Tuning | None = None,
        times: Clock | None = None,
        rival: FixedSteps | None = None,
        confidence: float | None = None,
    ) -> nn.Module:
        """Give a reduced network its explanation and record."""
        reduced, reduction, snapshots = small.layer, small.reduction, material.snapshots
        operations = material.operations(reduced)
        (errors, distance), evaluations = self._measured(material, small)
        useless = all(part.reduced >= part.full for part in reduction.parts)
        if useless:
            warnings.warn(
                f"nothing was reduced: state and stages keep their sizes {[part.full for part in reduction.parts]}; "
                "ask for smaller state_dim or points, or a larger energy_rtol",
                NotReducedWarning,
                stacklevel=callers_level(),
            )
        times, confirmed = times or self._clock(material, small, rival), None
        if material.confirm.has_loss(self.metric):
            confirmed = material.confirm.confirmed(self.metric, small.network, confidence or CONFIDENCE)
        explanation = Explanation(
            parts=reduction.parts,
            method=request.method,
            solver=str(reduced.settings),
            snapshots=len(snapshots),
            samples=len(set(snapshots.sample)),
            evaluations=material.evaluations,
            operations=operations,
            errors=errors,
            metric=self.metric if isinstance(self.metric, str) else "a function",
            curve=curve,
            chosen=chosen,
            steps=equal_steps(small.network, reduced, [batch for batch, _, _ in material.held_out.full]),
            fingerprint=reduced.fingerprint(),
            singular_values={
                name: tuple(values[:MOST_SINGULAR_VALUES].tolist())
                for name, values in reduction.singular_values.items()
            },
            points={name: tuple(values.tolist()) for name, values in reduction.points.items()},
            state_shape=reduced.state_shape,
            confirmed=confirmed,
            tuning=tuning,
            clock=times,
        )
        learnt = tuning is not None and tuning.after < tuning.before
        reduced.explanation = explanation.without_fits() if learnt else explanation
        if not useless:
            tell_of_little_gain(operations, times)
        tell_of_few_samples(reduction.parts, snapshots.sample)
        tell_of_evaluations(evaluations, material.evaluations, reduced)
        reduced.usual_distance = distance
        reduced.record(
            fom=material.reductor.fom,
            bases=reduction.bases,
            singular_values=reduction.singular_values,
            points=reduction.points,
        )
        return small.network

    def _check_samples(self) -> None:
        count = self._calibration.count()
        if any(self._calibration.batched or (True,)) and count < LEAST_SAMPLES:
            raise CalibrationError(
                f"expected at least {LEAST_SAMPLES} calibration samples, to fit to most and to measure errors on the "
                f"others, got {count}: give more data like that which the network will see"
            )

    def _with(self, *, chosen: bool) -> Material:
        """Return what to reduce with: where something is chosen, the loss is confirmed on data that had no part in it.

        Of calibration data that is a fifth for each, of validation data a half; nothing is chosen for given sizes.
        """
        if chosen not in self._material:
            fit, rest = self._calibration.split(self.seed, 0.4 if chosen and self._given is None else 0.2)
            held_out = confirm = choose = self._compared(UnlabelledBatches(rest), HELD_OUT_SAMPLES)
            if self._given is not None:
                confirm = choose = self._compared(self._given)
            if chosen:
                parts = (self._given or UnlabelledBatches(rest)).split(self.seed, 0.5)
                choose, confirm = (self._compared(part, MOST_SAMPLES) for part in parts)
                held_out = held_out if self._given is not None else confirm
            self._material[chosen] = Material(
                self.network,
                self.name,
                fit.first(FIT_SAMPLES, self.seed),
                fit,
                held_out,
                choose,
                confirm,
                self.metric,
                self.objective,
                self.seed,
                self.progress,
            )
        return self._material[chosen]

    def _measured(self, material: Material, small: Small) -> tuple[tuple[dict[str, float], float | None], int]:
        """Return what is measured on held-out data, and the most evaluations of an adaptive solver in a pass there.

        Raises
        ------
        SolverError
            They would be many more than the full layer's; the message has steps that were tried instead.
        NonFiniteError
            There is no finite solution.
        """
        try:
            with bounded_evaluations(small.network, small.layer, material.evaluations) as counts:
                return material.held_out.measured(small.network), max(counts, default=0)
        except TooManyEvaluationsError as error:
            found: list[tuple[float, Steps]] = []
            for steps in steps_to_try(len(small.layer.t)):
                with suppress(NonFiniteError):
                    errors = material.held_out.errors(solved_by(small.network, self.name, steps))
                    found.append((errors["layer output"], steps))
            least = min([one for one, _ in found], default=math.inf)
            if least >= 1:
                raise unstable() from error
            best, steps = next((one, steps) for one, steps in found if one <= LEAST_GAIN * least)
            raise SolverError(
                f"{error}; take solver=({steps.method!r}, {steps.count}), of relative error {best:.2g} in the layer's "
                "output on held-out calibration data, or other sizes"
            ) from error

    def _clock(self, material: Material, small: Small, rival: FixedSteps | None) -> Clock:
        """Return times beside the full network's, measured in at most a tenth of the time that has passed."""
        batch = next(iter(self._calibration))
        budget = min(max(CLOCK_SHARE * (now() - self._began), CLOCK_LEAST_S), CLOCK_MOST_S)
        return clocked(material.copy, small.network, self.name, batch, rival, budget, self.seed)

    def _tuner(self, material: Material, augment: Augment | None, effort: int) -> Tune:
        """Return what tunes networks, to outputs that are computed once, when they are first needed."""

        @cache
        def lessons() -> Lessons:
            exam = [batch for batch, _, _ in material.choose.full]
            fit = replace(material.lessons, batch_size=LESSON_SAMPLES)
            classes = self.metric in CLASS_METRICS
            return Lessons(
                material.copy, fit, exam, layers=(self.name,), augment=augment, classes=classes, seed=self.seed
            )

        def tune(network: nn.Module, batches: int, like: Tuning | None) -> Tuning:
            epochs = min(max(1, round(batches / lessons().size)), MOST_PASSES * effort)
            return tuned_in_place(network, lessons(), epochs=epochs, seed=self.seed, like=like)

        return tune

    def _can_be_tuned(self) -> bool:
        """Whether the output is one Tensor."""
        return isinstance(self._with(chosen=True).choose.full[0][2].network, Tensor)


def _check_effort(effort: Any, confidence: Any) -> None:
    if not isinstance(effort, Integral) or isinstance(effort, bool) or effort < 1:
        raise ValueError(f"expected effort to be an integer, 1 or more, got {effort!r}")
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"expected confidence to be None or between 0 and 1, as 0.95, got {confidence!r}")


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
