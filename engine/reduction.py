"""The classic reduction of an ODE layer's model: POD of the states, empirical interpolation of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from pymor.core.logger import log_levels

from torchmor.engine.bases import SPECTRUM, PodBasis, pod
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Part
from torchmor.engine.models import OdeLayerModel
from torchmor.engine.points import NESTED, SELECTIONS, CollateralBasis, interpolate
from torchmor.engine.reductors import OdeLayerReductor
from torchmor.engine.stages import Stage

Size = int | str | None


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
        "state" → V (n, r); stage name → collateral basis (size, m). Kept parts have no entry.
    interpolations
        Stage name → interpolation.
    singular_values
        POD singular values of "state" and of each stage that is not kept.
    parts
        What became of the state and of the stages.
    """

    rom: OdeLayerModel
    reductor: OdeLayerReductor
    bases: dict[str, np.ndarray]
    interpolations: dict[str, CollateralBasis]
    singular_values: dict[str, np.ndarray]
    parts: tuple[Part, ...]


class SnapshotReductor:
    """Reduces the model of an ODE layer by POD–Galerkin with interpolated stages.

    The PODs of the snapshots are computed once and serve reductions of all sizes.

    Parameters
    ----------
    fom
        Model of :func:`~torchmor.engine.models.ode_layer_model`.
    y, u, t
        Snapshots: states (n, k), inputs (p, k), times (k,).

    References
    ----------
    Lehtimäki, Paunonen, Linne: Accelerating Neural ODEs Using Model Order Reduction, IEEE TNNLS 2022.
    """

    def __init__(self, fom: OdeLayerModel, y: np.ndarray, u: np.ndarray | None = None, t: np.ndarray | float = 0.0):
        self.fom, self.y, self.u, self.t = fom, y, u, t
        self.chain = -fom.operator.chain
        self._values: dict[str, np.ndarray] | None = None
        self._bases: dict[tuple, PodBasis] = {}
        self._interpolations: dict[tuple[str, str], CollateralBasis] = {}

    def reduce(
        self,
        *,
        state_dim: Size = None,
        points: Size | Sequence[Size] = None,
        modes: Size | Sequence[Size] = None,
        selection: str = "deim",
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
            Collateral basis vectors of each stage; interpolation needs as many as points.
        selection
            'deim', 'qdeim' or 'ei_greedy'.
        energy_rtol
            Relative tolerance of the energy rule ``Σ_{i>r} σ_i² ≤ energy_rtol² Σ σ_i²``.

        Raises
        ------
        SizeError
            A size is impossible, or missing without `energy_rtol`.
        """
        stages = self.chain.stages
        state_dim, points, modes = check_sizes(state_dim, points, modes, selection, energy_rtol)
        if isinstance(state_dim, int) and state_dim > self.chain.state_size:
            raise SizeError(_too_large("state_dim", state_dim, self.chain.state_size))
        sizes = stage_sizes(points, len(stages), "points")
        for m, d in zip(sizes, stage_sizes(modes, len(stages), "modes"), strict=True):
            if d is not None and d != m:
                raise SizeError(f"expected as many modes as points for interpolation, got {d} modes for {m} points")
        if isinstance(points, int) and stages and points > max(stage.size for stage in stages):
            raise SizeError(_too_large("points", points, max(stage.size for stage in stages)))

        bases, interpolations, singular_values = {}, {}, {}
        with log_levels({"pymor": "WARNING"}):
            r, basis, part = self._state(state_dim, energy_rtol)
            parts = [part]
            if r is not None:
                bases["state"], singular_values["state"] = basis.modes[:, :r], basis.singular_values
            for stage, size in zip(stages, sizes, strict=True):
                if isinstance(points, list) and isinstance(size, int) and size > stage.size:
                    raise SizeError(_too_large(f"points of stage '{stage.name}'", size, stage.size))
                sampled, basis, part = self._stage(stage, size, selection, energy_rtol)
                parts.append(part)
                if basis is not None:
                    singular_values[stage.name] = basis.singular_values
                if sampled is not None:
                    interpolations[stage.name], bases[stage.name] = sampled, sampled.basis
            trial = None if r is None else self.fom.solution_space.from_numpy(bases["state"])
            reductor = OdeLayerReductor(self.fom, trial, interpolations)
            rom = reductor.reduce()
        return Reduction(rom, reductor, bases, interpolations, singular_values, tuple(parts))

    def _state(self, state_dim: Size, energy_rtol: float | None) -> tuple[int | None, PodBasis | None, Part]:
        n = len(self.y)
        if state_dim == "full" or state_dim == n:
            why = "kept: as asked" if state_dim == "full" else "kept: r = n"
            return None, None, Part("state", "y", n, n, why)
        basis = self._pod("state", state_dim, energy_rtol)
        if basis.rank == 0:
            raise SizeError(
                "expected calibration states that are not all zero, got nothing else: calibrate with data that moves "
                'the state, or state_dim="full"'
            )
        r = basis.energy_rank(energy_rtol) if state_dim is None else state_dim
        if r > basis.rank:
            raise SizeError(
                f"expected state_dim at most the numerical rank {basis.rank} of the calibration states, got {r}: ask "
                f'for {basis.rank} or fewer, or state_dim="full", or calibrate with more varied data'
            )
        if r >= n:
            return None, None, Part("state", "y", n, n, f"kept: energy_rtol={energy_rtol:g}")
        why = "POD, " + ("as asked" if state_dim is not None else f"energy_rtol={energy_rtol:g}")
        return r, basis, Part("state", "y", n, r, why, basis.dropped_energy(r))

    def _stage(
        self, stage: Stage, size: Size, selection: str, energy_rtol: float | None
    ) -> tuple[CollateralBasis | None, PodBasis | None, Part]:
        what = stage.expression.text([f"a{i + 1}" for i in range(stage.expression.arity)])

        def kept(why):
            return Part(stage.name, what, stage.size, stage.size, f"kept: {why}")

        if size == "full" or stage.size == 1 or (isinstance(size, int) and size >= stage.size):
            return None, None, kept("as asked" if size == "full" else "no more components than points")
        basis = self._pod(stage.name, size, energy_rtol)
        if size is None and basis.rank == 0:
            return None, None, kept("zero on all calibration data")
        m = basis.energy_rank(energy_rtol) if size is None else size
        if m >= stage.size:
            return None, basis, kept(f"energy_rtol={energy_rtol:g}")
        try:
            sampled = self._interpolation(stage.name, basis, m, selection)
        except SizeError as error:
            raise SizeError(f"stage '{stage.name}', {what}: {error}") from None
        why = f"{selection}, " + ("as asked" if size is not None else f"energy_rtol={energy_rtol:g}")
        error, constant, condition = basis.dropped_energy(m), sampled.constant, sampled.condition
        return sampled, basis, Part(stage.name, what, stage.size, m, why, error, constant, condition)

    def _pod(self, name: str, modes: int | None, energy_rtol: float | None) -> PodBasis:
        """Return the POD of the "state" or of a stage; every request up to 512 modes shares one."""
        key = (name, energy_rtol) if modes is None else (name, max(modes, SPECTRUM))
        if key not in self._bases:
            self._bases[key] = pod(self._snapshots(name), modes, energy_rtol)
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
        if self._values is None:
            self._values = self.chain.evaluate(self.y, self.u, self.t)
        sizes = {stage.name: stage.size for stage in self.chain.stages}
        return np.ascontiguousarray(np.broadcast_to(self._values[name], (sizes[name], self.y.shape[1])))


def check_sizes(state_dim, points, modes, selection, energy_rtol) -> tuple[Size, Size | list, Size | list]:
    """Return state_dim, points and modes as plain ints and lists.

    Raises
    ------
    SizeError, ValueError
        What is asked for is impossible whatever the data.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"expected selection to be one of {', '.join(SELECTIONS)}, got {selection!r}")
    if energy_rtol is not None and not (isinstance(energy_rtol, Real) and 0 <= energy_rtol < 1):
        raise SizeError(f"expected 0 ≤ energy_rtol < 1, got {energy_rtol!r}")
    state_dim, points, modes = _plain_size(state_dim), _plain(points), _plain(modes)
    if energy_rtol is None and None in (state_dim, *(points if isinstance(points, list) else [points])):
        raise SizeError(
            "expected sizes, or a tolerance to choose them by, got neither for some part: give state_dim and points, "
            "or energy_rtol=1e-3"
        )
    return state_dim, points, modes


def _plain(sizes):
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return [_plain_size(size) for size in sizes]
    return _plain_size(sizes)


def _plain_size(size) -> Size:
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 1:
        return int(size)
    if size is None or (isinstance(size, str) and size == "full"):
        return size
    raise SizeError(f'expected sizes to be positive ints, "full" or None, got {size!r}')


def stage_sizes(sizes: Size | Sequence[Size], count: int, name: str) -> list[Size]:
    """Return one size for each stage."""
    if not isinstance(sizes, list):
        return [sizes] * count
    if len(sizes) != count:
        raise SizeError(f"expected one entry of {name} for each of the {count} stages, got {len(sizes)}: {sizes}")
    return sizes


def _too_large(name, size, full):
    return f"expected {name} of at most {full}, the full size, got {size}: ask for fewer"
