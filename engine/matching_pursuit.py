"""Points that serve a target: orthogonal matching pursuit."""

import numpy as np

from torchmor.engine.thinning import thinned

#: Matching pursuit works on at most this many snapshots: every step passes over all of them.
PURSUIT_SNAPSHOTS = 2000

#: A row that explains less of the target, relative to its squared norm, explains what was rounded.
EXPLAINED = 1e-24


def matching_pursuit(candidates: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Choose rows of one matrix that together explain another best: simultaneous orthogonal matching pursuit.

    Step by step, the row g_i with the largest ``‖T g_iᵀ‖² / ‖g_i‖²`` is taken, and the target T and all rows are made
    orthogonal to it. Law: the first m of more points are those for m.

    Parameters
    ----------
    candidates
        Array (size, k): values of a stage. Rows are taken less their means, for an affine fit.
    target
        Array (q, k): what is to be explained.
    count
        Number m of rows; fewer are returned where no others explain anything.

    Returns
    -------
    Integer array (m,), in the order of choice.

    References
    ----------
    Tropp, Gilbert, Strauss: Algorithms for simultaneous sparse approximation, Part I, Signal Processing 2006.
    """
    chosen = thinned(candidates.shape[1], PURSUIT_SNAPSHOTS)
    values = candidates[:, chosen]
    rows = values - values.mean(axis=1, keepdims=True)
    centred = target[:, chosen] - target[:, chosen].mean(axis=1, keepdims=True)
    products, size = rows @ centred.T, np.sum(centred**2)  # (size, q)
    left = np.sum(rows**2, axis=1)  # ‖g_i‖² of the rows made orthogonal
    # below, a row is a combination of those chosen, or a constant whose mean was rounded
    least = np.maximum(left * 1e-10, 1e-28 * np.sum(values**2, axis=1))
    factors = np.zeros((len(rows), min(count, len(rows))))
    points: list[int] = []
    for step in range(factors.shape[1]):
        scores = np.where(left > least, np.sum(products**2, axis=1), -1.0) / np.where(left > least, left, 1.0)
        point = int(np.argmax(scores))
        if scores[point] <= EXPLAINED * size:
            break
        column = rows @ rows[point] - factors[:, :step] @ factors[point, :step]
        column /= np.sqrt(left[point])
        factors[:, step] = column
        products -= np.outer(column, products[point] / np.sqrt(left[point]))
        left = left - column**2
        left[point] = 0.0
        points.append(point)
    return np.array(points, dtype=np.int64)
