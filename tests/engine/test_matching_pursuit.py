"""Points by matching pursuit: found, nested, distinct, and better than others for their target."""

from itertools import pairwise

import numpy as np
import pytest

from torchmor.engine.matching_pursuit import matching_pursuit


def left(rows, target, points):
    """Norm of the target less its best affine fit by the rows at the points."""
    centered = target - target.mean(axis=1, keepdims=True)
    chosen = rows[points] - rows[points].mean(axis=1, keepdims=True)
    return np.linalg.norm(centered - np.linalg.lstsq(chosen.T, centered.T, rcond=None)[0].T @ chosen)


def greedy(rows, target, count):
    """The definition, slowly: orthogonalise target and rows against each row that is taken."""
    rows, target = (a - a.mean(axis=1, keepdims=True) for a in (rows, target))
    points = []
    for _ in range(count):
        norms = np.sum(rows**2, axis=1)
        score = np.where(norms > 1e-12, np.sum((rows @ target.T) ** 2, axis=1) / np.maximum(norms, 1e-12), -1.0)
        points.append(int(np.argmax(score)))
        direction = rows[points[-1]] / np.sqrt(norms[points[-1]])
        target = target - np.outer(target @ direction, direction)
        rows = rows - np.outer(rows @ direction, direction)
    return points


@pytest.mark.parametrize("seed", range(4))
def test_is_the_greedy_choice(seed):
    rng = np.random.default_rng(seed)
    rows, target = rng.normal(size=(25, 80)), rng.normal(size=(3, 80))
    assert matching_pursuit(rows, target, 10).tolist() == greedy(rows, target, 10)


def test_finds_the_rows_that_make_the_target():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 300))
    target = rng.normal(size=(5, 3)) @ rows[[4, 17, 33]] + 2.0
    points = matching_pursuit(rows, target, 3)
    assert sorted(points) == [4, 17, 33]
    assert left(rows, target, points) < 1e-10 * np.linalg.norm(target)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_takes_no_rows_for_what_was_rounded(factor):
    """All is explained by three: the fourth would be chosen by rounding errors."""
    rng = np.random.default_rng(0)
    rows = factor * rng.normal(size=(40, 300))
    target = rng.normal(size=(5, 3)) @ rows[[4, 17, 33]] * 7 + 2.0
    assert sorted(matching_pursuit(rows, target, 8)) == [4, 17, 33]


def test_more_points_start_with_fewer_and_are_distinct():
    rng = np.random.default_rng(1)
    rows, target = rng.normal(size=(30, 50)), rng.normal(size=(4, 50))
    points = matching_pursuit(rows, target, 20)
    assert len(set(points)) == 20
    for m in (1, 7, 19):
        assert matching_pursuit(rows, target, m).tolist() == points[:m].tolist()
    errors = [left(rows, target, points[:m]) for m in range(1, 21)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(errors))


def test_rows_that_tell_nothing_are_not_taken():
    """Constant rows and copies: fewer points come back than were asked for."""
    rng = np.random.default_rng(2)
    two = rng.normal(size=(2, 60)) + 0.7
    for constant in (1.0, 0.1, -1e6 / 3):  # the mean of the first is exact, that of the others rounded
        flat = np.full((2, 60), constant) * [[1.0], [0.3]]
        rows = np.vstack([flat, two, two[:1] / 3 + constant, two.sum(axis=0, keepdims=True)])
        points = matching_pursuit(rows, rng.normal(size=(2, 60)), 6)
        assert len(points) == 2 and set(points).isdisjoint((0, 1))
        assert np.linalg.matrix_rank(rows[points] - rows[points].mean(axis=1, keepdims=True)) == 2


def test_scale_of_rows_does_not_matter():
    rng = np.random.default_rng(3)
    rows, target = rng.normal(size=(20, 60)), rng.normal(size=(3, 60))
    scaled = rows * 10.0 ** rng.uniform(-3, 3, size=(20, 1)) + 5
    assert matching_pursuit(scaled, target, 8).tolist() == matching_pursuit(rows, target, 8).tolist()
