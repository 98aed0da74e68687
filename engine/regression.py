"""Regressions: ridge regression with a chosen weight, and regression with weights that are not negative."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg as spla
from scipy.optimize import nnls

#: Ridge weights that are tried where none is given.
RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)

#: Part of the training columns, the last ones, that chooses among them.
HELD_OUT = 0.2


class Regression(NamedTuple):
    """What :func:`regress` returns: ``target ≈ matrix @ features + shift``.

    Parameters
    ----------
    matrix, shift
        Arrays N (q, m) and b (q,).
    held_out_error
        Norm of the residual on the columns that chose the ridge weight, of the fit to the others; None where the
        weight was given.
    """

    matrix: np.ndarray
    shift: np.ndarray
    held_out_error: float | None


def regress(features: np.ndarray, target: np.ndarray, ridge: float | None = None) -> Regression:
    """Return N and b that minimise ``‖target − N features − b‖² + λ ‖N‖²`` (Frobenius), with b unpenalised.

    Parameters
    ----------
    features, target
        Arrays (m, k) and (q, k).
    ridge
        ``λ m / ‖features − mean‖²``; 0 gives the least-norm solution. None chooses the one among :data:`RIDGES` that is
        best for the last fifth of the columns when fitted to the others, and then fits to all.
    """
    held_out_error = None
    if ridge is None:
        kept = fitted_columns(features)
        solve = _regression(features[:, :kept], target[:, :kept])

        def error(candidate: float) -> float:
            matrix, shift = solve(candidate)
            return float(np.linalg.norm(target[:, kept:] - matrix @ features[:, kept:] - shift[:, np.newaxis]))

        tried = [error(candidate) for candidate in RIDGES]
        held_out_error = min(tried)
        ridge = RIDGES[tried.index(held_out_error)]
    return Regression(*_regression(features, target)(ridge), held_out_error)


def regress_nonnegative(features: np.ndarray, target: np.ndarray) -> Regression:
    """Return N ≥ 0 and b ≥ 0 that minimise ``‖target − N features − b‖²``: what is never negative stays so.

    Parameters
    ----------
    features, target
        Arrays (m, k) and (q, k).

    References
    ----------
    Lawson, Hanson: Solving Least Squares Problems, 1974 (SciPy's `nnls`).
    """
    kept = fitted_columns(features)
    matrix, shift = _nonnegative(features[:, :kept], target[:, :kept])
    error = np.linalg.norm(target[:, kept:] - matrix @ features[:, kept:] - shift[:, np.newaxis])
    return Regression(*_nonnegative(features, target), float(error))


def _nonnegative(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unit = max(float(np.abs(features).mean()), np.finfo(np.float64).tiny)
    columns = np.column_stack((features.T, np.full(features.shape[1], unit)))
    orthonormal, factor = spla.qr(columns, mode="economic", check_finite=False)
    rows = [nnls(factor, row, maxiter=100 * len(columns.T))[0] for row in target @ orthonormal]
    found = np.array(rows).reshape(len(target), columns.shape[1])
    return found[:, :-1], unit * found[:, -1]


def fitted_columns(features: np.ndarray) -> int:
    """Return how many columns are fitted to where the others choose the ridge weight."""
    return features.shape[1] - int(HELD_OUT * features.shape[1])


def _regression(features: np.ndarray, target: np.ndarray) -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
    """Return ridge → (N, b)."""
    middle, aim = features.mean(axis=1), target.mean(axis=1)
    centered = features - middle[:, np.newaxis]
    factor = spla.qr(centered.T, mode="r", check_finite=False)[0] if centered.shape[1] > len(centered) else centered.T
    _, values, right = spla.svd(factor[: len(centered)] if len(factor) > len(centered) else factor, full_matrices=False)
    products = (target - aim[:, np.newaxis]) @ centered.T @ right.T
    known = values > values.max(initial=0.0) * max(centered.shape) * np.finfo(np.float64).eps

    def solution(ridge: float) -> tuple[np.ndarray, np.ndarray]:
        weights = np.where(known, values**2 + ridge * np.sum(values**2) / len(centered), np.inf)
        matrix = (products / weights) @ right
        return matrix, aim - matrix @ middle

    return solution
