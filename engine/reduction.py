"""The reduction of an ODE layer's model: a basis for the states, points for every stage, and operators for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from pymor.core.logger import log_levels

from torchmor.engine.balancing import BalancedBasis, balance
from torchmor.engine.bases import SPECTRUM, PodBasis, pod
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Part
from torchmor.engine.models import OdeLayerModel
from torchmor.engine.normalisation import absorbed_stages
from torchmor.engine.points import CollateralBasis
from torchmor.engine.quadratics import factors, squares_needed
from torchmor.engine.reductors import FittedReductor, OdeLayerReductor
from torchmor.engine.sampling import StageSampler
from torchmor.engine.sizes import Size, check_request, check_sizes, stage_sizes
from torchmor.engine.stages import Stage

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
        Snapshots: states (n, k), inputs (p, k), times (k,); those of a sample are neighbours.
    gradients
        Called at most once, for balanced bases: returns gradients (n, l) of the output with respect to states.

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
    ):
        self.fom, self.y, self.u, self.t = fom, y, u, np.asarray(t, dtype=np.float64)
        self.chain = -fom.operator.chain
        self._gradients = gradients
        self._sampler = StageSampler(self.chain, y, u, self.t)
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
        stages = self.chain.stages
        state_dim, points, modes = check_request(state_dim, points, modes, basis, selection, fit, energy_rtol)
        sizes = check_sizes(self.chain, state_dim, points, energy_rtol)
        vectors = dict(zip((s.name for s in stages), stage_sizes(modes, len(stages), "modes"), strict=True))

        self._sampler.spectra = {}
        with log_levels({"pymor": "WARNING"}):
            state, state_part = self._state(state_dim, basis, energy_rtol)
            counts, kept = self._plan(sizes, isinstance(points, int), energy_rtol, state)
            together = fit == "least_squares" and not isinstance(points, list)
            absorbed = absorbed_stages(self.chain, kept) if together else frozenset()
            sampled: dict[str, np.ndarray] = {}
            interpolations: dict[str, CollateralBasis] = {}
            matters = None if state is None else state.test * state.weights
            for stage in reversed(stages):  # what a stage has to serve is known when the later ones are done
                if stage.name in kept or stage.name in absorbed:
                    continue
                try:
                    chosen = self._sampler.sample(
                        stage, counts[stage.name], vectors[stage.name], selection, fit, matters, sampled, absorbed
                    )
                except SizeError as error:
                    raise SizeError(f"stage '{stage.name}', {_words(stage)}: {error}") from None
                sampled[stage.name] = chosen.points if isinstance(chosen, CollateralBasis) else chosen
                if isinstance(chosen, CollateralBasis):
                    interpolations[stage.name] = chosen
            reductor = self._reductor(state, sampled, interpolations, fit, absorbed)
            rom = reductor.reduce()
            parts = [replace(state_part, **self._measures("output", rom, reductor))]
            for stage, size in zip(stages, sizes, strict=True):
                if stage.name in absorbed:
                    parts.append(_absorbed_part(stage))
                    continue
                asked = "as asked" if size is not None else f"energy_rtol={energy_rtol:g}"
                part = (
                    self._kept_part(stage, kept[stage.name], rom)
                    if stage.name in kept
                    else self._sampled_part(stage, counts[stage.name], sampled, interpolations, selection, asked)
                )
                parts.append(replace(part, **self._measures(stage.name, rom, reductor)))
        bases = {name: found.basis for name, found in interpolations.items()}
        if state is not None:
            bases["state"] = state.trial
            if state.test is not state.trial:
                bases["test"] = state.test
        return Reduction(rom, reductor, bases, sampled, self._sampler.spectra, tuple(parts))

    def _state(self, state_dim: Size, basis: str, energy_rtol: float | None) -> tuple[_StateBasis | None, Part]:
        n = len(self.y)
        if state_dim == "full" or state_dim == n:
            why = "kept: as asked" if state_dim == "full" else "kept: r = n"
            return None, Part("state", "y", n, n, why)
        asked = "as asked" if state_dim is not None else f"energy_rtol={energy_rtol:g}"
        rank = None
        if basis == "balanced":
            balanced = self._balance(state_dim)
            found, rank, name = balanced, balanced.rank, "balanced"
        else:
            found, name = self._sampler.pod("state", state_dim, energy_rtol), "POD"
            rank = found.rank
        if rank == 0:
            raise SizeError(
                "expected calibration states that are not all zero, got nothing else: calibrate with data that moves "
                'the state, or state_dim="full"'
            )
        r = found.energy_rank(energy_rtol) if state_dim is None else state_dim
        if r > rank:
            raise SizeError(
                f"expected state_dim at most the numerical rank {rank} of the calibration states, got {r}: ask "
                f'for {rank} or fewer, or state_dim="full", or calibrate with more varied data'
            )
        if r >= n:
            return None, Part("state", "y", n, n, f"kept: energy_rtol={energy_rtol:g}")
        part = Part("state", "y", n, r, f"{name}, {asked}", found.dropped_energy(r))
        if basis == "pod":
            modes = found.modes[:, :r]
            return _StateBasis(modes, modes, None, np.ones(r)), part
        padding = np.full(max(0, r - len(found.singular_values)), found.singular_values[-1:].sum())
        weights = np.sqrt(np.append(found.singular_values[:r], padding))
        return _StateBasis(found.trial[:, :r], found.test[:, :r], self._mean, weights), part

    def _plan(
        self, sizes: list[Size], same: bool, energy_rtol: float | None, state: _StateBasis | None
    ) -> tuple[dict[str, int], dict[str, str]]:
        """Return the numbers of points of the stages, and for those that are kept, in all their components, why."""
        counts, kept = {}, {}
        for stage, size in zip(self.chain.stages, sizes, strict=True):
            counts[stage.name] = stage.size
            if size == "full":
                kept[stage.name] = "as asked"
            elif stage.size == 1 or (size is not None and size >= stage.size):
                kept[stage.name] = "no more components than points"
            elif same and stage.name in self.chain.time_stages:
                kept[stage.name] = "depends on the time alone"
            elif size is not None:
                counts[stage.name] = size
            else:
                basis = self._sampler.pod(stage.name, None, energy_rtol)
                m = basis.energy_rank(energy_rtol)
                if basis.rank == 0:
                    kept[stage.name] = "zero on all calibration data"
                elif m >= stage.size:
                    kept[stage.name] = f"energy_rtol={energy_rtol:g}"
                else:
                    counts[stage.name] = m
        r = self.chain.state_size if state is None else state.trial.shape[1]
        for stage in self.chain.stages:
            if stage.name not in kept and self._needs_few_squares(
                stage, {"y": r, "u": self.chain.input_size, **counts}
            ):
                counts[stage.name] = stage.size
                kept[stage.name] = "exact, as few squares"
        return counts, kept

    def _needs_few_squares(self, stage: Stage, counts: dict[str, int]) -> bool:
        """Whether a stage of products is exact with no more squares than it gets points."""
        if factors(stage) is None:
            return False
        rows = counts["y"] if stage.name in self.chain.output.sources else 0
        rows += sum(
            counts[later.name] * later.expression.arity
            for later in self.chain.stages
            if stage.name in later.argument.sources
        )
        width = sum(counts.get(source, 1) for source in stage.argument.sources)
        return squares_needed(rows, width) <= counts[stage.name]

    def _kept_part(self, stage: Stage, why: str, rom: OdeLayerModel) -> Part:
        size = next(one.size for one in rom.operator.chain.stages if one.name == stage.name)
        if size < stage.size:
            why = "exact, as few squares"
        return Part(stage.name, _words(stage), stage.size, size, f"kept: {why}", reads=stage.argument.sources)

    def _sampled_part(self, stage: Stage, m: int, sampled, interpolations, selection: str, asked: str) -> Part:
        taken, found = len(sampled[stage.name]), interpolations.get(stage.name)
        why = f"{selection}, {asked}" + (f", but {taken} of {m} say all" if taken < m else "")
        part = Part(stage.name, _words(stage), stage.size, taken, why, reads=stage.argument.sources)
        if found is None:
            return part
        d = found.basis.shape[1]
        dropped = self._sampler.pod(stage.name, d, None).dropped_energy(d)
        why += f", {d} modes" if d < m else ""
        return replace(part, why=why, dropped_energy=dropped, constant=found.constant, condition=found.condition)

    def _measures(self, name: str, rom: OdeLayerModel, reductor: OdeLayerReductor) -> dict[str, float | None]:
        """Return the error of what reads a stage, or of the "output" itself, and the operations of its own map."""
        chain, errors = rom.operator.chain, getattr(reductor, "errors", {})
        maps = dict(zip([*(stage.name for stage in chain.stages), "output"], chain.maps, strict=True))
        readers = [other for other, affine in maps.items() if name in affine.sources] or [name]
        known = [errors[other] for other in readers if other in errors]
        return {"error": max(known, default=None), "operations": int(np.prod(maps[name].linear.shape))}

    def _reductor(self, state, sampled, interpolations, fit, absorbed) -> OdeLayerReductor:
        space = self.fom.solution_space
        trial = test = offset = None
        if state is not None:
            trial = space.from_numpy(state.trial)
            test = None if state.test is state.trial else space.from_numpy(state.test)
            offset = None if state.offset is None else space.from_numpy(state.offset[:, np.newaxis])
        if fit == "interpolation":
            return OdeLayerReductor(self.fom, trial, interpolations, test, offset)
        return FittedReductor(self.fom, trial, sampled, self._sampler.training, test, offset, absorbed=absorbed)

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
            self._balanced = balance(self._centred, gradients, max(rank or 0, SPECTRUM))
        self._sampler.spectra["state"] = self._balanced.singular_values
        return self._balanced


def _absorbed_part(stage: Stage) -> Part:
    why = "absorbed by the fit after it"
    return Part(stage.name, _words(stage), stage.size, 0, why, reads=stage.argument.sources, operations=0)


def _words(stage: Stage) -> str:
    return stage.expression.text([f"a{i + 1}" for i in range(stage.expression.arity)])
