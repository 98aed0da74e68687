"""POD bases of snapshots."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg as spla
from pymor.algorithms.pod import pod as pymor_pod
from pymor.vectorarrays.numpy import NumpyVectorSpace

#: At least this many modes are computed where there are as many: for the spectrum, and for a first energy test.
SPECTRUM = 512


@dataclass(frozen=True, eq=False)
class PodBasis:
    """POD modes of a set of snapshots.

    Parameters
    ----------
    modes
        Array (n, rank) with orthonormal columns, in the order of the singular values.
    singular_values
        Array (rank,), decreasing.
    energy
        ``Σ σ_i²`` over all singular values, also those that were not computed.
    """

    modes: np.ndarray
    singular_values: np.ndarray
    energy: float

    @property
    def rank(self) -> int:
        """Number of computed modes: the numerical rank of the snapshots, unless fewer were asked for."""
        return len(self.singular_values)

    def dropped_energy(self, rank: int) -> float:
        """Return the relative squared projection error ``Σ_{i>r} σ_i² / Σ σ_i²`` of the first r modes."""
        if self.energy == 0.0:
            return 0.0
        return max(0.0, 1.0 - float(np.sum(self.singular_values[:rank] ** 2)) / self.energy)

    def energy_rank(self, rtol: float) -> int:
        """Return the smallest r ≥ 1 with ``Σ_{i>r} σ_i² ≤ rtol² Σ σ_i²``; at most the rank."""
        # summed from the small end: the tail is what counts, and 1 − Σ would drown it in rounding
        squares = self.singular_values**2
        beyond = max(0.0, self.energy - squares.sum()) if self.energy - squares.sum() > 1e-12 * self.energy else 0.0
        tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0) + beyond
        small = np.flatnonzero(tails <= rtol**2 * self.energy)
        return max(1, int(small[0]) if len(small) else self.rank)


def pod(snapshots: np.ndarray, modes: int | None = None, energy_rtol: float | None = None) -> PodBasis:
    """Compute the POD of snapshots with pyMOR's `pod`.

    Law: the squared projection error of the first r modes is the sum of the dropped σ².

    Parameters
    ----------
    snapshots
        Array (n, k), float64.
    modes
        Number of modes that will be used; None for all.
    energy_rtol
        Instead of `modes`: enough modes for ``energy_rank(energy_rtol)``.
    """
    energy = float(np.sum(snapshots**2))
    if modes is None and energy_rtol is not None:
        basis = _pod(snapshots, SPECTRUM, energy)
        if basis.dropped_energy(basis.rank) <= energy_rtol**2:
            return basis
    return _pod(snapshots, None if modes is None else max(modes, SPECTRUM), energy)


def _pod(snapshots, modes, energy):
    columns = compress(snapshots, modes)
    basis, singular_values = pymor_pod(NumpyVectorSpace.from_numpy(columns), modes=modes)
    return PodBasis(basis.to_numpy(), singular_values, energy)


def compress(snapshots: np.ndarray, modes: int | None = None) -> np.ndarray:
    """Replace snapshots X (n, k) with k > n by at most n columns Y with ``Y Yᵀ = X Xᵀ``, so with the same POD.

    pyMOR's method of snapshots works on the k × k Gramian, which is the slow way round for k > n. With `modes`,
    the columns carry the first modes only.
    """
    n, k = snapshots.shape
    if k <= n:
        return snapshots
    gramian = snapshots @ snapshots.T
    if modes is not None and modes < n // 2:
        eigenvalues, eigenvectors = spla.eigh(gramian, subset_by_index=(n - modes, n - 1), overwrite_a=True)
    else:
        eigenvalues, eigenvectors = spla.eigh(gramian, driver="evd", overwrite_a=True)
    kept = eigenvalues > max(eigenvalues[-1], 0.0) * n * np.finfo(np.float64).eps
    return (eigenvectors[:, kept] * np.sqrt(eigenvalues[kept]))[:, ::-1]
