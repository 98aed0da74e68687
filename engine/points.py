"""Points where the stages of a chain are evaluated, and interpolation there, with pyMOR's algorithms."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg as spla
from pymor.algorithms.ei import deim, ei_greedy, qdeim
from pymor.vectorarrays.numpy import NumpyVectorSpace

from torchmor.engine.bases import PodBasis
from torchmor.engine.errors import SizeError
from torchmor.engine.stages import Interpolation
from torchmor.engine.thinning import thinned

#: Selections that find points for a collateral basis.
INTERPOLATING = ("deim", "qdeim", "ei_greedy")

SELECTIONS = (*INTERPOLATING, "omp")

#: Selections whose first m points and basis vectors are those that they would find for m.
NESTED = ("deim", "ei_greedy")

#: EI-greedy works on at most this many snapshots: every step passes over all of them.
GREEDY_SNAPSHOTS = 1000


@dataclass(frozen=True, eq=False)
class CollateralBasis(Interpolation):
    """Interpolation, or with more points than vectors regression: ``g ≈ U U[points]⁺ g[points]``.

    Parameters
    ----------
    points
        Integer array (m,).
    lift
        Array (size, m): ``U U[points]⁺``, with the pseudo-inverse.
    basis
        Array (size, d), d ≤ m: the collateral basis U.
    """

    basis: np.ndarray

    @property
    def constant(self) -> float:
        """Interpolation constant ‖lift‖₂: the error is at most this factor times the best error in the span.

        For an orthonormal U it is ``‖U[points]⁺‖₂`` [ChaSor10]_.
        """
        return float(np.linalg.norm(self.lift, 2))

    @property
    def condition(self) -> float:
        """Condition number of the interpolation matrix ``U[points]``."""
        return float(np.linalg.cond(self.basis[self.points]))

    def leading(self, points: int) -> "CollateralBasis":
        """Return the interpolation by the first m points and basis vectors."""
        return collateral_basis(self.points[:points], np.ascontiguousarray(self.basis[:, :points]))


def collateral_basis(points: np.ndarray, basis: np.ndarray) -> CollateralBasis:
    """Return the interpolation, or with more points than basis vectors the regression, at given points.

    Raises
    ------
    SizeError
        The points do not determine the coefficients.
    """
    values = basis[points]
    if values.shape[0] == values.shape[1]:
        known = np.linalg.cond(values) < 1 / np.finfo(np.float64).eps
    else:
        known = np.linalg.matrix_rank(values) == values.shape[1]
    if not known:
        raise SizeError(
            f"expected points that tell {values.shape[1]} basis vectors apart, got {len(points)} that do not: ask for "
            'fewer modes than points, for fit="least_squares", or for selection="qdeim"'
        )
    lift = spla.solve(values.T, basis.T).T if values.shape[0] == values.shape[1] else basis @ spla.pinv(values)
    return CollateralBasis(points=points, lift=lift, basis=basis)


def interpolate(snapshots: np.ndarray, pod_basis: PodBasis, points: int, selection: str = "deim") -> CollateralBasis:
    """Choose interpolation points and a collateral basis of a stage.

    Law: the interpolation is exact at its points, and on the span of its basis.

    Parameters
    ----------
    snapshots
        Array (size, k): values of the stage.
    pod_basis
        Their POD; the collateral basis of 'deim' and 'qdeim' are its first modes.
    points
        Number m of points and basis vectors.
    selection
        'deim' [ChaSor10]_, 'qdeim' [DrmGug16]_ or 'ei_greedy' [BarMadNguPat04]_, which takes snapshots as its basis.

    Raises
    ------
    SizeError
        The snapshots do not span m dimensions, numerically.
    """
    space = NumpyVectorSpace(len(snapshots))
    if points > pod_basis.rank:
        raise SizeError(too_many_points(points, pod_basis.rank))
    if selection == "ei_greedy":
        chosen = thinned(snapshots.shape[1], GREEDY_SNAPSHOTS)
        dofs, basis, _ = ei_greedy(space.from_numpy(snapshots[:, chosen]), max_interpolation_dofs=points)
    else:
        algorithm = {"deim": deim, "qdeim": qdeim}[selection]
        dofs, basis, _ = algorithm(space.from_numpy(pod_basis.modes[:, :points].copy()), pod=False)
    if len(dofs) < points:
        raise SizeError(too_many_points(points, len(dofs)))
    return collateral_basis(np.asarray(dofs, dtype=np.int64), np.ascontiguousarray(basis.to_numpy()))


def oversample(sampled: CollateralBasis, points: int) -> CollateralBasis:
    """Add points until there are so many, each the one that raises a bound of the smallest singular value most.

    Law: no point is taken twice, and ``‖U[points]⁺‖`` does not grow.

    Parameters
    ----------
    sampled
        The first points, and d basis vectors.
    points
        Number m ≥ d of points.

    References
    ----------
    Peherstorfer, Drmač, Gugercin: Stability of discrete empirical interpolation and gappy proper orthogonal
    decomposition with randomized and deterministic sampling points, SIAM J. Sci. Comput. 2020 (GappyPOD+E).
    """
    basis, chosen = sampled.basis, list(sampled.points)
    norms = np.sum(basis**2, axis=1)
    while len(chosen) < points:
        _, values, right = spla.svd(basis[chosen], full_matrices=False)
        gap = values[-2] ** 2 - values[-1] ** 2 if len(values) > 1 else 0.0
        along = (basis @ right[-1]) ** 2
        total = gap + norms
        growth = total - np.sqrt(np.maximum(total**2 - 4 * gap * along, 0.0)) if gap > 0 else along
        growth[chosen] = -1.0
        chosen.append(int(np.argmax(growth)))
    return collateral_basis(np.array(chosen, dtype=np.int64), basis)


def too_many_points(points: int, rank: int) -> str:
    """Return what to say when a stage does not span as many dimensions as points are asked for."""
    if rank == 0:
        return (
            "expected values of the stage that are not all zero on the calibration data, got nothing else: ask for "
            'points="full", or calibrate with more varied data'
        )
    return (
        f"expected at most as many points as the calibration values of the stage span, numerically {rank}; got {points}"
        f': ask for points={rank} or fewer, points="full", or calibrate with more varied data'
    )
