"""The reduction of an ODE layer's model: a basis for the states, points for every stage, and operators for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pymor.core.logger import log_levels

from torchmor.engine.balancing import BalancedBasis, balance
from torchmor.engine.bases import SPECTRUM, PodBasis, pod
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Part
from torchmor.engine.fitting import Training, without
from torchmor.engine.matching_pursuit import matching_pursuit
from torchmor.engine.models import OdeLayerModel
from torchmor.engine.points import (
    NESTED,
    CollateralBasis,
    collateral_basis,
    interpolate,
    oversample,
    too_many_points,
)
from torchmor.engine.reductors import FittedReductor, OdeLayerReductor
from torchmor.engine.sizes import Size, check_request, stage_sizes, too_large
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
        self._values: dict[str, np.ndarray] | None = None
        self._bases: dict[tuple, PodBasis] = {}
        self._balanced: BalancedBasis | None = None
        self._interpolations: dict[tuple[str, str], CollateralBasis] = {}
        self._pursuits: dict[tuple, np.ndarray] = {}
        self._spectra: dict[str, np.ndarray] = {}  # of the bases that the reduction at hand used

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
            above.
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
        if energy_rtol is None and None in (state_dim, *(points if isinstance(points, list) else [points])):
            raise SizeError(
                "expected sizes, or a tolerance to choose them by, got neither for some part: give state_dim and "
                "points, or energy_rtol=1e-3"
            )
        if isinstance(state_dim, int) and state_dim > self.chain.state_size:
            raise SizeError(too_large("state_dim", state_dim, self.chain.state_size))
        sizes = stage_sizes(points, len(stages), "points")
        if isinstance(points, int) and stages and points > max(stage.size for stage in stages):
            raise SizeError(too_large("points", points, max(stage.size for stage in stages)))
        for stage, size in zip(stages, sizes, strict=True):
            if isinstance(points, list) and isinstance(size, int) and size > stage.size:
                raise SizeError(too_large(f"points of stage '{stage.name}'", size, stage.size))
        vectors = dict(zip((s.name for s in stages), stage_sizes(modes, len(stages), "modes"), strict=True))

        self._spectra = {}
        with log_levels({"pymor": "WARNING"}):
            state, state_part = self._state(state_dim, basis, energy_rtol)
            counts = {s.name: self._points(s, m, energy_rtol) for s, m in zip(stages, sizes, strict=True)}
            counts = {name: m for name, m in counts.items() if m is not None}
            sampled: dict[str, np.ndarray] = {}
            interpolations: dict[str, CollateralBasis] = {}
            for stage in reversed(stages):  # what a stage has to serve is known when the later ones are done
                if stage.name not in counts:
                    continue
                try:
                    chosen = self._sample(
                        stage, counts[stage.name], vectors[stage.name], selection, fit, state, sampled
                    )
                except SizeError as error:
                    raise SizeError(f"stage '{stage.name}', {_words(stage)}: {error}") from None
                sampled[stage.name] = chosen.points if isinstance(chosen, CollateralBasis) else chosen
                if isinstance(chosen, CollateralBasis):
                    interpolations[stage.name] = chosen
            parts = [
                self._stage_part(stage, size, sampled, interpolations, selection, energy_rtol)
                for stage, size in zip(stages, sizes, strict=True)
            ]
            reductor = self._reductor(state, sampled, interpolations, fit)
            rom = reductor.reduce()
        bases = {name: found.basis for name, found in interpolations.items()}
        if state is not None:
            bases["state"] = state.trial
            if state.test is not state.trial:
                bases["test"] = state.test
        return Reduction(rom, reductor, bases, sampled, self._spectra, (state_part, *parts))

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
            found, name = self._pod("state", state_dim, energy_rtol), "POD"
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

    def _points(self, stage: Stage, size: Size, energy_rtol: float | None) -> int | None:
        """Return the number of points of a stage, None to keep it."""
        if size == "full" or stage.size == 1 or (isinstance(size, int) and size >= stage.size):
            return None
        if size is not None:
            return size
        basis = self._pod(stage.name, None, energy_rtol)
        m = basis.energy_rank(energy_rtol)
        return None if basis.rank == 0 or m >= stage.size else m

    def _sample(
        self,
        stage: Stage,
        m: int,
        d: int | None,
        selection: str,
        fit: str,
        state: _StateBasis | None,
        sampled: dict[str, np.ndarray],
    ) -> CollateralBasis | np.ndarray:
        """Choose m points of a stage, with an interpolation where d basis vectors or the fit ask for one."""
        d = m if d is None else d
        if d > m:
            raise SizeError(f"expected at most as many modes as points, got {d} modes for {m} points")
        if selection != "omp":
            basis = self._pod(stage.name, d, None)
            found = self._interpolation(stage.name, basis, d, selection)
            return found if d == m else oversample(found, m)
        points = self._pursuit(stage, m, state, sampled)
        if len(points) < m:
            raise SizeError(too_many_points(m, len(points)))
        if fit == "least_squares":
            return points
        basis = self._pod(stage.name, d, None)
        if d > basis.rank:
            raise SizeError(too_many_points(d, basis.rank))
        return collateral_basis(points, np.ascontiguousarray(basis.modes[:, :d]))

    def _pursuit(self, stage: Stage, m: int, state: _StateBasis | None, sampled: dict[str, np.ndarray]) -> np.ndarray:
        served = [(name, points.tobytes()) for name, points in sampled.items()]
        key = (stage.name, None if state is None else state.test.tobytes(), *served)
        known = self._pursuits.get(key)
        if known is None or len(known) < m:
            known = matching_pursuit(self._snapshots(stage.name), self._target(stage, state, sampled), m)
            self._pursuits[key] = known
        return known[:m]

    def _target(self, stage: Stage, state: _StateBasis | None, sampled: dict[str, np.ndarray]) -> np.ndarray:
        """Return what the points of a stage have to explain (q, k): its share of all that reads it.

        That is the projected derivative, weighted by how much it matters, and the arguments of later stages at their
        points, all of the same weight.
        """
        readers = []
        if stage.name in self.chain.output.sources:
            if state is None:
                readers.append(self.chain.output)
            else:
                readers.append(self.chain.output.project(state.test * state.weights))
        for later in self.chain.stages:
            if stage.name in later.argument.sources:
                rows = later.rows(sampled[later.name]) if later.name in sampled else None
                readers.append(later.argument if rows is None else later.argument.restrict(rows))
        values = {stage.name: self._snapshots(stage.name)}
        shares = [
            without(reader, [name for name in reader.sources if name != stage.name]).apply(values) for reader in readers
        ]
        shares = [share - share.mean(axis=1, keepdims=True) for share in shares]
        return np.concatenate([share / max(np.linalg.norm(share), np.finfo(float).tiny) for share in shares])

    def _stage_part(self, stage, size, sampled, interpolations, selection, energy_rtol) -> Part:
        what = _words(stage)
        if stage.name not in sampled:
            if size == "full":
                why = "as asked"
            elif size is not None or stage.size == 1:
                why = "no more components than points"
            else:
                zero = self._pod(stage.name, None, energy_rtol).rank == 0
                why = "zero on all calibration data" if zero else f"energy_rtol={energy_rtol:g}"
            return Part(stage.name, what, stage.size, stage.size, f"kept: {why}")
        m, found = len(sampled[stage.name]), interpolations.get(stage.name)
        why = f"{selection}, " + ("as asked" if size is not None else f"energy_rtol={energy_rtol:g}")
        if found is None:
            return Part(stage.name, what, stage.size, m, why)
        d = found.basis.shape[1]
        why += f", {d} modes" if d < m else ""
        error = self._pod(stage.name, d, energy_rtol if size is None else None).dropped_energy(d)
        return Part(stage.name, what, stage.size, m, why, error, found.constant, found.condition)

    def _reductor(self, state, sampled, interpolations, fit) -> OdeLayerReductor:
        space = self.fom.solution_space
        trial = test = offset = None
        if state is not None:
            trial = space.from_numpy(state.trial)
            test = None if state.test is state.trial else space.from_numpy(state.test)
            offset = None if state.offset is None else space.from_numpy(state.offset[:, np.newaxis])
        if fit == "interpolation":
            return OdeLayerReductor(self.fom, trial, interpolations, test, offset)
        training = Training(self.y, self.u, self.t, self._stage_values())
        return FittedReductor(self.fom, trial, sampled, training, test, offset)

    @cached_property
    def _mean(self) -> np.ndarray:
        return self.y.mean(axis=1)

    def _balance(self, rank: int | None) -> BalancedBasis:
        known = self._balanced
        if known is None or (rank or 0) > known.rank:
            if self._gradients is None:
                raise ValueError('expected gradients of the output for basis="balanced", got none')
            gradients = self._gradients()
            self._gradients = lambda: gradients
            key = ("centered state", BALANCING_MODES)
            if key not in self._bases:
                self._bases[key] = pod(self.y - self._mean[:, np.newaxis], BALANCING_MODES)
            self._balanced = balance(self._bases[key], gradients, max(rank or 0, SPECTRUM))
        self._spectra["state"] = self._balanced.singular_values
        return self._balanced

    def _pod(self, name: str, modes: int | None, energy_rtol: float | None) -> PodBasis:
        """Return the POD of the "state" or of a stage; every request up to 512 modes shares one."""
        key = (name, energy_rtol) if modes is None else (name, max(modes, SPECTRUM))
        if key not in self._bases:
            self._bases[key] = pod(self._snapshots(name), modes, energy_rtol)
        self._spectra[name] = self._bases[key].singular_values
        return self._bases[key]

    def _interpolation(self, name: str, basis: PodBasis, points: int, selection: str) -> CollateralBasis:
        known = self._interpolations.get((name, selection))
        if known is not None and len(known.points) >= points:
            return known.leading(points)
        found = interpolate(self._snapshots(name), basis, points, selection)
        if selection in NESTED:
            self._interpolations[name, selection] = found
        return found

    def _snapshots(self, name: str) -> np.ndarray:
        if name == "state":
            return self.y
        return np.ascontiguousarray(self._stage_values()[name])

    def _stage_values(self) -> dict[str, np.ndarray]:
        if self._values is None:
            self._values = self.chain.evaluate(self.y, self.u, self.t)
        return self._values


def _words(stage: Stage) -> str:
    return stage.expression.text([f"a{i + 1}" for i in range(stage.expression.arity)])
