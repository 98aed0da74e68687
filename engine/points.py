"""Empirical interpolation of the stages of a chain, with pyMOR's algorithms."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg as spla
from pymor.algorithms.ei import deim, ei_greedy, qdeim
from pymor.vectorarrays.numpy import NumpyVectorSpace

from torchmor.engine.bases import PodBasis
from torchmor.engine.errors import SizeError
from torchmor.engine.stages import Interpolation

SELECTIONS = ("deim", "qdeim", "ei_greedy")

#: Selections whose first m points and basis vectors are those that they would find for m.
NESTED = ("deim", "ei_greedy")

#: EI-greedy works on evenly chosen snapshots, at most this many: every step passes over all of them.
GREEDY_SNAPSHOTS = 1000


@dataclass(frozen=True, eq=False)
class CollateralBasis(Interpolation):
    """Interpolation ``g ≈ U (U[points])⁻¹ g[points]`` on the span of a collateral basis U.

    Parameters
    ----------
    points
        Integer array (m,).
    lift
        Array (size, m): ``U (U[points])⁻¹``.
    basis
        Array (size, m): U.
    """

    basis: np.ndarray

    @property
    def constant(self) -> float:
        """Interpolation constant ‖lift‖₂: the error is at most this factor times the best error in the span.

        For an orthonormal U it is ``‖(U[points])⁻¹‖₂`` [ChaSor10]_.
        """
        return float(np.linalg.norm(self.lift, 2))

    @property
    def condition(self) -> float:
        """Condition number of the interpolation matrix ``U[points]``."""
        return float(np.linalg.cond(self.basis[self.points]))

    def leading(self, points: int) -> "CollateralBasis":
        """Return the interpolation by the first m points and basis vectors."""
        return _collateral_basis(self.points[:points], np.ascontiguousarray(self.basis[:, :points]))


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
        raise SizeError(_too_many_points(points, pod_basis.rank))
    if selection == "ei_greedy":
        chosen = np.linspace(0, snapshots.shape[1] - 1, min(snapshots.shape[1], GREEDY_SNAPSHOTS)).astype(int)
        dofs, basis, _ = ei_greedy(space.from_numpy(snapshots[:, chosen]), max_interpolation_dofs=points)
    else:
        algorithm = {"deim": deim, "qdeim": qdeim}[selection]
        dofs, basis, _ = algorithm(space.from_numpy(pod_basis.modes[:, :points].copy()), pod=False)
    if len(dofs) < points:
        raise SizeError(_too_many_points(points, len(dofs)))
    return _collateral_basis(np.asarray(dofs, dtype=np.int64), np.ascontiguousarray(basis.to_numpy()))


def _collateral_basis(points, basis):
    return CollateralBasis(points=points, lift=spla.solve(basis[points].T, basis.T).T, basis=basis)


def _too_many_points(points, rank):
    if rank == 0:
        return (
            "expected values of the stage that are not all zero on the calibration data, got nothing else: ask for "
            'points="full", or calibrate with more varied data'
        )
    return (
        f"expected at most as many points as the calibration values of the stage span, numerically {rank}; got {points}"
        f': ask for points={rank} or fewer, points="full", or calibrate with more varied data'
    )
