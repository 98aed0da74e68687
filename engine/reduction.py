"""The reduction of an ODE layer's model: a basis for the states, points for every stage, and operators for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pymor.core.logger import log_levels

from torchmor.engine.balancing import BalancedBasis, balance
from torchmor.engine.bases import SPECTRUM, PodBasis, pod
from torchmor.engine.domains import bounded
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Part
from torchmor.engine.models import OdeLayerModel
from torchmor.engine.operators import OdeFunctionOperator
from torchmor.engine.planning import StagePlan, plan_stages
from torchmor.engine.reductors import FittedReductor, OdeLayerReductor
from torchmor.engine.sampling import StageSampler
from torchmor.engine.sizes import ReductionRequest, Size, check_sizes
from torchmor.engine.stages import Interpolation

#: Balanced bases are computed within so many leading POD modes of the states.
BALANCING_MODES = 1024


@dataclass(frozen=True, eq=False)
class Reduction:
    """What :meth:`SnapshotReductor.reduce` returns.

    Parameters
    ----------
    rom
        The reduced-order model.
    reductor
        The reductor that built it; its `reconstruct` lifts solutions.
    bases
        "state" → V (n, r), "test" → W (n, r) where it is another; stage name → collateral basis (size, d), where there
        is one. Kept parts have no entry.
    points
        Stage name → evaluated components (m,).
    singular_values
        Of "state" and of the stages, as far as they were computed: of POD, or of balancing.
    parts
        What became of the state and of the stages.
    """

    rom: OdeLayerModel
    reductor: OdeLayerReductor
    bases: dict[str, np.ndarray]
    points: dict[str, np.ndarray]
    singular_values: dict[str, np.ndarray]
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class _StateBasis:
    """Bases V and W (n, r), offset c (n,) or None, and how much a derivative of each coordinate matters (r,)."""

    trial: np.ndarray
    test: np.ndarray
    offset: np.ndarray | None
    weights: np.ndarray


class SnapshotReductor:
    """Reduces the model of an ODE layer, by snapshots of its states.

    What does not depend on sizes is computed once and serves all of them.

    Parameters
    ----------
    fom
        Model of :func:`~torchmor.engine.models.ode_layer_model`.
    y, u, t
        Snapshots: states (n, k), inputs (p, k), times (k,).
    gradients
        Called at most once, for balanced bases: returns gradients (n, l) of the output with respect to states.
    samples
        Index (k,) of the sample of each snapshot: whole samples are held out of fits. By default each snapshot is a
        sample of its own.

    References
    ----------
    Lehtimäki, Paunonen, Linne: Accelerating Neural ODEs Using Model Order Reduction, IEEE TNNLS 2022.
    """

    def __init__(
        self,
        fom: OdeLayerModel,
        y: np.ndarray,
        u: np.ndarray | None = None,
        t: np.ndarray | float = 0.0,
        gradients: Callable[[], np.ndarray] | None = None,
        samples: np.ndarray | None = None,
    ):
        self.fom, self.y, self.u, self.t = fom, y, u, np.asarray(t, dtype=np.float64)
        self.chain = -fom.operator.chain
        self._gradients = gradients
        self._sampler = StageSampler(self.chain, y, u, self.t, samples)
        self._balanced: BalancedBasis | None = None

    def reduce(
        self,
        *,
        state_dim: Size = None,
        points: Size | Sequence[Size] = None,
        modes: Size | Sequence[Size] = None,
        basis: str = "pod",
        selection: str = "deim",
        fit: str = "interpolation",
        energy_rtol: float | None = None,
    ) -> Reduction:
        """Reduce the model to some sizes.

        Law: the result depends on these arguments and the snapshots alone, not on reductions before it.

        Parameters
        ----------
        state_dim
            Reduced size r, "full" to keep the state, or None for the smallest r that `energy_rtol` allows.
        points
            Evaluated points of each stage: one size for all, or one for each; a size is an int, "full" or None as
            above. With one size for all, fits absorb normalisations (:mod:`torchmor.engine.normalisation`), and what
            depends on the time alone is kept.
        modes
            Collateral basis vectors of each stage, at most as many as points; None for as many.
        basis
            'pod', or 'balanced' (:mod:`torchmor.engine.balancing`).
        selection
            'deim', 'qdeim', 'ei_greedy', or 'omp' (:mod:`torchmor.engine.matching_pursuit`).
        fit
            'interpolation', or 'least_squares' (:mod:`torchmor.engine.fitting`).
        energy_rtol
            Relative tolerance of the energy rule ``Σ_{i>r} σ_i² ≤ energy_rtol² Σ σ_i²``.

        Raises
        ------
        SizeError
            A size is impossible, or missing without `energy_rtol`.
        """
        return self.reduce_as(ReductionRequest(state_dim, points, modes, basis, selection, fit, energy_rtol))

    def reduce_as(self, request: ReductionRequest) -> Reduction:
        """Reduce the model as :meth:`reduce` does, for a request that is checked already."""
        self._sampler.spectra = {}
        with log_levels({"pymor": "WARNING", "torchmor.engine": "WARNING"}):  # these are details of our own log
            sizes = check_sizes(self.chain, request)
            state, state_part = self._state(request)
            r = self.chain.state_size if state is None else state.trial.shape[1]
            plans = plan_stages(
                self.chain, request, sizes, r, lambda name: self._sampler.pod(name, None, request.energy_rtol)
            )
            matters = None if state is None else state.test * state.weights
            for name, plan in reversed(list(plans.items())):  # what a stage serves is known when the later ones are
                if plan.fate == "reduced":
                    try:
                        plans[name] = self._sampler.sample(plan, plans, request, matters)
                    except SizeError as error:
                        raise SizeError(f"stage '{name}', {plan.words}: {error}") from None
            reductor = self._reductor(state, plans, request.fit)
            rom = reductor.reduce()
            parts = [replace(state_part, **_measures("output", rom, reductor))]
            parts += [self._part(plan, request.selection, rom, reductor) for plan in plans.values()]
        inwards = list(reversed(plans.items()))
        points = {name: plan.points for name, plan in inwards if plan.points is not None}
        bases = {name: plan.interpolation.basis for name, plan in inwards if plan.interpolation is not None}
        if state is not None:
            bases["state"] = state.trial
            if state.test is not state.trial:
                bases["test"] = state.test
        return Reduction(rom, reductor, bases, points, self._sampler.spectra, tuple(parts))

    def _state(self, request: ReductionRequest) -> tuple[_StateBasis | None, Part]:
        n, state_dim, balanced = len(self.y), request.state_dim, request.basis == "balanced"
        if state_dim == "full" or state_dim == n:
            return None, Part("state", "y", n, n, "kept", request.how(state_dim) if state_dim == "full" else "r = n")
        found: BalancedBasis | PodBasis = (
            self._balance(state_dim) if balanced else self._sampler.pod("state", state_dim, request.energy_rtol)
        )
        if found.rank == 0:
            raise SizeError(
                "expected calibration states that are not all zero, got nothing else: calibrate with data that moves "
                'the state, or state_dim="full"'
            )
        r = request.energy_rank(found) if state_dim is None else state_dim
        if r > found.rank:
            raise SizeError(
                f"expected state_dim at most the numerical rank {found.rank} of the calibration states, got {r}: ask "
                f'for {found.rank} or fewer, or state_dim="full", or calibrate with more varied data'
            )
        if r >= n:
            return None, Part("state", "y", n, n, "kept", request.how(None))
        how = f"{'balanced' if balanced else 'POD'}, {request.how(state_dim)}"
        part = Part("state", "y", n, r, "reduced", how, found.dropped_energy(r))
        if isinstance(found, PodBasis):
            modes = found.modes[:, :r]
            return _StateBasis(modes, modes, None, np.ones(r)), part
        known = found.singular_values[:r] if len(found.singular_values) else np.ones(1)  # no gradients: as POD
        weights = np.sqrt(np.append(known, np.full(r - len(known), known[-1])))
        return _StateBasis(found.trial[:, :r], found.test[:, :r], self._mean, weights), part

    def _part(self, plan: StagePlan, selection: str, rom: OdeLayerModel, reductor: OdeLayerReductor) -> Part:
        """Return what became of a stage, in words and numbers."""
        stage = plan.stage
        part = Part(stage.name, plan.words, stage.size, 0, plan.fate, plan.how, reads=stage.argument.sources)
        if plan.fate == "absorbed":
            return replace(part, operations=0)
        size = next((one.size for one in rom.operator.chain.stages if one.name == stage.name), 0)
        part = replace(part, reduced=size, **_measures(stage.name, rom, reductor))
        if plan.points is None:
            return part if size == stage.size else replace(part, how="exact, as few squares")
        taken, m, found = len(plan.points), plan.size, plan.interpolation
        if not taken:
            return replace(part, how=f"{selection}, {plan.how}, but its mean says all")
        how = f"{selection}, {plan.how}" + (f", but {taken} of {m} say all" if taken < m else "")
        if found is None:
            return replace(part, reduced=taken, how=how)
        d = found.basis.shape[1]
        dropped = self._sampler.pod(stage.name, d, None).dropped_energy(d)
        how += f", {d} modes" if d < m else ""
        return replace(
            part, reduced=taken, how=how, dropped_energy=dropped, constant=found.constant, condition=found.condition
        )

    def _reductor(self, state: _StateBasis | None, plans: Mapping[str, StagePlan], fit: str) -> OdeLayerReductor:
        space, sampler = self.fom.solution_space, self._sampler
        points = {name: plan.points for name, plan in plans.items() if plan.points is not None}
        absorbed = [name for name, plan in plans.items() if plan.fate == "absorbed"]
        chain = bounded(self.chain, sampler.training.sources, points, absorbed)
        fom = self.fom
        if chain is not self.chain:
            fom = fom.with_(operator=OdeFunctionOperator(-chain, name=fom.operator.name))
        trial = test = offset = None
        if state is not None:
            trial = space.from_numpy(state.trial)
            test = None if state.test is state.trial else space.from_numpy(state.test)
            offset = None if state.offset is None else space.from_numpy(state.offset[:, np.newaxis])
        if fit == "interpolation":
            found = {name: self._interpolation(plan) for name, plan in plans.items() if plan.points is not None}
            return OdeLayerReductor(fom, trial, found, test, offset)
        return FittedReductor(fom, trial, points, sampler.training, test, offset, absorbed=absorbed)

    def _interpolation(self, plan: StagePlan) -> Interpolation:
        if plan.interpolation is not None:
            return plan.interpolation
        mean = self._sampler.snapshots(plan.stage.name).mean(axis=1)
        return Interpolation(np.zeros(0, dtype=np.int64), np.zeros((plan.stage.size, 0)), offset=mean)

    @cached_property
    def _mean(self) -> np.ndarray:
        return self.y.mean(axis=1)

    @cached_property
    def _centred(self) -> PodBasis:
        return pod(self.y - self._mean[:, np.newaxis], BALANCING_MODES)

    def _balance(self, rank: int | None) -> BalancedBasis:
        known = self._balanced
        if known is None or (rank or 0) > known.rank:
            if self._gradients is None:
                raise ValueError('expected gradients of the output for basis="balanced", got none')
            gradients = self._gradients()
            self._gradients = lambda: gradients
            self._balanced = known = balance(self._centred, gradients, max(rank or 0, SPECTRUM))
        self._sampler.spectra["state"] = known.singular_values
        return known


def _measures(name: str, rom: OdeLayerModel, reductor: OdeLayerReductor) -> dict[str, Any]:
    """Return the error of what reads a stage, or of the "output" itself, and the operations of its own map."""
    maps, errors = rom.operator.chain.named_maps, getattr(reductor, "errors", {})
    readers = [other for other, affine in maps.items() if name in affine.sources] or [name]
    known = [errors[other] for other in readers if other in errors]
    own = int(np.prod(maps[name].linear.shape)) if name in maps else 0
    return {"error": max(known, default=None), "operations": own}
