"""Output-aware bases: covariance balancing of states and gradients, by pyMOR's POD."""

from dataclasses import dataclass

import numpy as np
from pymor.algorithms.pod import pod as pymor_pod
from pymor.operators.constructions import LowRankOperator
from pymor.vectorarrays.numpy import NumpyVectorSpace

from torchmor.engine.bases import POD_DEFAULTS, PodBasis, Spectrum, pod
from torchmor.engine.errors import NonFiniteError

#: What is missed in directions of smaller singular values, relative to the largest of the states, is rounding.
MISSED_RTOL = POD_DEFAULTS["rtol"]


@dataclass(frozen=True, eq=False)
class BalancedBasis(Spectrum):
    """Trial and test basis with ``Wᵀ V = I``, the directions that the output sees most first.

    Parameters
    ----------
    trial
        V (n, rank).
    test
        W (n, rank).
    singular_values
        Of ``Gᵀ X``, decreasing; the padding has none.
    energy
        Their ``Σ σ_i²``.
    """

    trial: np.ndarray
    test: np.ndarray
    singular_values: np.ndarray
    energy: float

    @property
    def rank(self) -> int:
        """Number of basis vectors."""
        return self.trial.shape[1]


def balance(states: PodBasis, gradients: np.ndarray, rank: int | None = None) -> BalancedBasis:
    """Balance the covariance of states with that of the output's gradients.

    Law: ``V Wᵀ`` is the projector of ``Gᵀ X = S Σ Tᵀ``, ``V = X T Σ^{-1/2}``, ``W = G S Σ^{-1/2}``: of all projections
    of its rank the one after which, by the gradients, the output changes least. Where the spectrum is shorter than the
    rank that is asked for, POD modes of what the projection misses fill it up.

    Parameters
    ----------
    states
        POD of the states X (n, k) less their mean.
    gradients
        G (n, l): gradients of the output with respect to states.
    rank
        Number of basis vectors; None for as many as are balanced.

    Raises
    ------
    NonFiniteError
        The gradients contain NaN or infinity.

    References
    ----------
    Otto, Padovan, Rowley: Model Reduction for Nonlinear Systems by Balanced Truncation of State and Gradient
    Covariance, SIAM J. Sci. Comput. 2023.
    """
    if not np.isfinite(gradients).all():
        raise NonFiniteError(
            "expected finite gradients of the output, got NaN or infinity: look at the weights after the ODE layer, or "
            'use basis="pod"'
        )
    space = NumpyVectorSpace(len(gradients))
    columns = states.modes * states.singular_values  # the same X Xᵀ
    factor = space.from_numpy(gradients / max(np.linalg.norm(gradients), np.finfo(float).tiny))
    product = LowRankOperator(factor, np.eye(len(factor)), factor)
    modes, scaled = pymor_pod(space.from_numpy(columns), product=product, modes=rank, orth_tol=np.inf, **POD_DEFAULTS)
    roots = np.sqrt(scaled)
    # modes = X T Σ⁻¹, and the product maps them to G S: both take half of Σ
    trial, test = modes.to_numpy() * roots, product.apply(modes).to_numpy() / roots
    test = np.linalg.solve(test.T @ trial, test.T).T  # Wᵀ V = I again, after rounding
    if rank is not None and rank > trial.shape[1]:
        missed = columns - trial @ (test.T @ columns)
        left = pod(missed, rank)
        known = left.singular_values > MISSED_RTOL * states.singular_values.max(initial=0.0)
        padding = left.modes[:, known][:, : rank - trial.shape[1]]
        trial, test = np.hstack([trial, padding]), np.hstack([test, padding - test @ (trial.T @ padding)])
    singular_values = scaled * np.linalg.norm(gradients)
    return BalancedBasis(trial, test, singular_values, float(np.sum(singular_values**2)))
