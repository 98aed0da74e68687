"""POD bases of snapshots."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg as spla
from pymor.algorithms.pod import pod as pymor_pod
from pymor.vectorarrays.numpy import NumpyVectorSpace

from torchmor.engine.errors import NonFiniteError

#: At least this many modes are computed where there are as many: for the spectrum, and for a first energy test.
SPECTRUM = 512

#: What pyMOR's `pod` is asked for beside modes: its defaults are settings of the user's, and change with its versions.
#: Singular values below rtol, relative to the largest, are rounding. A QR decomposition of few vectors, as balancing
#: would need it with another method, has no rank.
POD_DEFAULTS: dict[str, Any] = {"rtol": 1e-7, "atol": 0.0, "l2_err": 0.0, "method": "method_of_snapshots"}


class Spectrum:
    """Singular values σ_i, decreasing, of which maybe only the first are known, with the energy ``Σ σ_i²`` of all."""

    singular_values: np.ndarray
    energy: float

    def dropped_energy(self, rank: int) -> float:
        """Return ``Σ_{i>r} σ_i² / Σ σ_i²``, the part of the energy that the first r directions miss."""
        tails = _tails(self.singular_values**2, self.energy)
        return float(tails[min(rank, len(tails) - 1)]) / self.energy if self.energy else 0.0

    def energy_rank(self, rtol: float) -> int:
        """Return the smallest r ≥ 1 with ``Σ_{i>r} σ_i² ≤ rtol² Σ σ_i²``; at most as many as are known."""
        return energy_rank(self.singular_values**2, self.energy, rtol)


@dataclass(frozen=True, eq=False)
class PodBasis(Spectrum):
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
        Instead of `modes`: as many as ``energy_rank(energy_rtol)`` needs.

    Raises
    ------
    NonFiniteError
        The snapshots contain NaN or infinity.
    """
    if not np.all(np.isfinite(snapshots)):
        raise NonFiniteError(
            "expected finite snapshots, got NaN or infinity: clean the data, or use smaller time steps"
        )
    if modes is None:
        count = None
    else:
        count, energy_rtol = max(modes, SPECTRUM), None
    columns = compress(snapshots, count, energy_rtol)
    # pyMOR orthonormalises by Gram–Schmidt with defaults of its own
    vectors, singular_values = pymor_pod(
        NumpyVectorSpace.from_numpy(columns), modes=count, orth_tol=np.inf, **POD_DEFAULTS
    )
    factor, signs = np.linalg.qr(vectors.to_numpy())
    basis = PodBasis(factor * np.sign(np.diag(signs)), singular_values, float(np.sum(snapshots**2)))
    if energy_rtol is not None:
        count = max(basis.energy_rank(energy_rtol), SPECTRUM)
    return replace(basis, modes=basis.modes[:, :count], singular_values=singular_values[:count])


def compress(snapshots: np.ndarray, modes: int | None = None, energy_rtol: float | None = None) -> np.ndarray:
    """Replace snapshots X (n, k) with k > n by at most n columns Y with ``Y Yᵀ = X Xᵀ``, so with the same POD.

    pyMOR's method of snapshots works on the k × k Gramian, which is the slow way round for k > n. With `modes` or
    `energy_rtol`, the columns carry only as many leading modes as these ask for.
    """
    n, k = snapshots.shape
    if k <= n:
        return snapshots
    gramian = snapshots @ snapshots.T
    energy = np.trace(gramian)
    count = n if modes is None else min(modes, n)
    if count < n // 2:
        squares, vectors = spla.eigh(gramian, subset_by_index=(n - count, n - 1), overwrite_a=True)
    else:
        squares, vectors = spla.eigh(gramian, driver="evd", overwrite_a=True)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    if energy_rtol is not None:
        count = max(energy_rank(squares, energy, energy_rtol), SPECTRUM)
    count = min(count, int(np.sum(squares > squares[0] * n * np.finfo(np.float64).eps)))
    return vectors[:, :count] * np.sqrt(squares[:count])


def energy_rank(squares: np.ndarray, energy: float, rtol: float) -> int:
    """Return the smallest r ≥ 1 with ``Σ_{i>r} squares_i ≤ rtol² energy``."""
    small = np.flatnonzero(_tails(squares, energy) <= rtol**2 * energy)
    return max(1, int(small[0]) if len(small) else len(squares))


def _tails(squares: np.ndarray, energy: float) -> np.ndarray:
    """Return ``Σ_{i>r} squares_i`` for all r, with what the energy has beyond them."""
    # summed from the small end: the tail is what counts, and energy − Σ would drown it in rounding
    beyond = energy - squares.sum()
    return np.append(np.cumsum(squares[::-1])[::-1], 0.0) + (beyond if beyond > 1e-12 * energy else 0.0)
