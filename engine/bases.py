"""POD bases of snapshots."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg as spla
from pymor.algorithms.pod import pod as pymor_pod
from pymor.vectorarrays.numpy import NumpyVectorSpace


@dataclass(frozen=True, eq=False)
class PodBasis:
    """POD modes of a set of snapshots.

    Parameters
    ----------
    modes
        Array (n, rank) with orthonormal columns, in the order of the singular values.
    singular_values
        Array (rank,), decreasing.
    """

    modes: np.ndarray
    singular_values: np.ndarray

    @property
    def rank(self) -> int:
        """Numerical rank of the snapshots."""
        return len(self.singular_values)

    def energy_rank(self, rtol: float) -> int:
        """Return the smallest r with ``Σ_{i>r} σ_i² ≤ rtol² Σ σ_i²``, at least 1."""
        squares = self.singular_values**2
        tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        return max(1, int(np.argmax(tails <= rtol**2 * tails[0])))

    def dropped_energy(self, rank: int) -> float:
        """Return the relative squared projection error ``Σ_{i>r} σ_i² / Σ σ_i²`` of the first r modes."""
        squares = self.singular_values**2
        return float(squares[rank:].sum() / squares.sum()) if self.rank else 0.0


def pod(snapshots: np.ndarray, rtol: float = 1e-7) -> PodBasis:
    """Compute the POD of snapshots with pyMOR's `pod`.

    Law: the squared projection error of the first r modes is the sum of the dropped σ².

    Parameters
    ----------
    snapshots
        Array (n, k), float64.
    rtol
        Singular values below rtol times the largest are dropped: they are rounding errors of the Gramian.
    """
    modes, singular_values = pymor_pod(NumpyVectorSpace.from_numpy(compress(snapshots)), rtol=rtol)
    return PodBasis(modes.to_numpy(), singular_values)


def compress(snapshots: np.ndarray) -> np.ndarray:
    """Replace snapshots X (n, k) with k > n by at most n columns Y with ``Y Yᵀ = X Xᵀ``, so with the same POD.

    pyMOR's method of snapshots works on the k × k Gramian, which is the slow way round for k > n.
    """
    n, k = snapshots.shape
    if k <= n:
        return snapshots
    eigenvalues, eigenvectors = spla.eigh(snapshots @ snapshots.T, driver="evd", overwrite_a=True)
    kept = eigenvalues > max(eigenvalues[-1], 0.0) * n * np.finfo(np.float64).eps
    return (eigenvectors[:, kept] * np.sqrt(eigenvalues[kept]))[:, ::-1]
