"""Regressions: ridge regression with a chosen weight, and regression with weights that are not negative."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg as spla
from scipy.optimize import nnls

from torchmor.engine.held_out import held_out_columns

#: Ridge weights that are tried where none is given.
RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)

#: What varies less than this, relative to its size, is a constant that was rounded.
ROUNDING = 1e-14


class Regression(NamedTuple):
    """What :func:`regress` returns: ``target ≈ matrix @ features + shift``.

    Parameters
    ----------
    matrix, shift
        Arrays N (q, m) and b (q,).
    held_out_error
        Norm of the residual on the columns that were held out, of the fit to the others; None where none were, or
        the ridge weight was given.
    """

    matrix: np.ndarray
    shift: np.ndarray
    held_out_error: float | None


def regress(
    features: np.ndarray, target: np.ndarray, ridge: float | None = None, held_out: np.ndarray | None = None
) -> Regression:
    """Return N and b that minimise ``‖target − N features − b‖² + λ k ‖N D‖²`` (Frobenius), with b unpenalised.

    D are the standard deviations of the features. Law: whatever the features are measured in, ``N features`` is the
    same.

    Parameters
    ----------
    features, target
        Arrays (m, k) and (q, k).
    ridge
        λ; 0 gives the least-norm solution. None chooses the one among :data:`RIDGES` that is best for columns that are
        held out when fitted to the others, and then fits to all.
    held_out
        Mask (k,) of these columns; by default a fifth, by chance. Where it has none, the smallest ridge is taken.
    """
    held_out_error = None
    if ridge is None:
        held_out = held_out_columns(np.arange(features.shape[1])) if held_out is None else held_out
        solve = _regression(features[:, ~held_out], target[:, ~held_out])
        errors = [_error(solve(candidate), features, target, held_out) for candidate in RIDGES]
        held_out_error = min(errors)
        ridge = RIDGES[errors.index(held_out_error)]
        held_out_error = held_out_error if held_out.any() else None
    return Regression(*_regression(features, target)(ridge), held_out_error)


def regress_nonnegative(features: np.ndarray, target: np.ndarray, held_out: np.ndarray | None = None) -> Regression:
    """Return N ≥ 0 and b ≥ 0 that minimise ``‖target − N features − b‖²``: what is never negative stays so.

    Parameters
    ----------
    features, target
        Arrays (m, k) and (q, k).
    held_out
        As in :func:`regress`.

    References
    ----------
    Lawson, Hanson: Solving Least Squares Problems, 1974 (SciPy's `nnls`).
    """
    held_out = held_out_columns(np.arange(features.shape[1])) if held_out is None else held_out
    error = None
    if held_out.any():
        error = _error(_nonnegative(features[:, ~held_out], target[:, ~held_out]), features, target, held_out)
    return Regression(*_nonnegative(features, target), error)


def _error(
    solution: tuple[np.ndarray, np.ndarray], features: np.ndarray, target: np.ndarray, columns: np.ndarray
) -> float:
    matrix, shift = solution
    return float(np.linalg.norm(target[:, columns] - matrix @ features[:, columns] - shift[:, np.newaxis]))


def _nonnegative(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns = np.column_stack((features.T, np.ones(features.shape[1])))
    units, sizes = np.linalg.norm(columns, axis=0), np.linalg.norm(target, axis=1)  # the tolerance of nnls has units
    units[units == 0], sizes[sizes == 0] = 1.0, 1.0
    orthonormal, factor = spla.qr(columns / units, mode="economic", check_finite=False)
    rows = [nnls(factor, row, maxiter=100 * len(columns.T))[0] for row in target / sizes[:, np.newaxis] @ orthonormal]
    found = np.array(rows).reshape(len(target), len(units)) * sizes[:, np.newaxis] / units
    return found[:, :-1], found[:, -1]


def _regression(features: np.ndarray, target: np.ndarray) -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
    """Return ridge → (N, b)."""
    middle, aim, count = features.mean(axis=1), target.mean(axis=1), features.shape[1]
    centered = features - middle[:, np.newaxis]
    deviations, sizes = np.linalg.norm(centered, axis=1), np.linalg.norm(features, axis=1)
    varies = deviations > ROUNDING * sizes
    units = deviations[varies, np.newaxis] / np.sqrt(count)
    standard = centered[varies] / units
    if not len(standard):
        return lambda ridge: (np.zeros((len(target), len(features))), aim)
    factor = spla.qr(standard.T, mode="r", check_finite=False)[0] if count > len(standard) else standard.T
    _, values, right = spla.svd(factor[: len(standard)], full_matrices=False)
    products = (target - aim[:, np.newaxis]) @ standard.T @ right.T
    known = values > values.max() * max(standard.shape) * np.finfo(np.float64).eps

    def solution(ridge: float) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(target), len(features)))
        matrix[:, varies] = (products / np.where(known, values**2 + ridge * count, np.inf)) @ right / units.T
        return matrix, aim - matrix @ middle

    return solution
