"""Thinned snapshots: no period of the data beats with the choice, whatever was thinned before."""

import numpy as np
import pytest

from torchmor.engine.matching_pursuit import PURSUIT_SNAPSHOTS, matching_pursuit
from torchmor.engine.points import GREEDY_SNAPSHOTS
from torchmor.engine.thinning import thinned, thinning_key


def check_shares(counts, sizes, part):
    """Each class has its share, within a factor of two or one column."""
    expected = part * sizes
    even = (counts >= expected / 2) & (counts <= 2 * expected) | (np.abs(counts - expected) <= 1)
    assert even.all(), (counts.min(), counts.max(), expected.min())


@pytest.mark.parametrize("most", [GREEDY_SNAPSHOTS, PURSUIT_SNAPSHOTS])
@pytest.mark.parametrize("count", [2001, 2500, 4000, 6000, 20000])
def test_every_residue_class_of_every_period_has_its_share(count, most):
    columns = thinned(count, most)
    assert len(columns) == most and np.all(np.diff(columns) > 0)
    for period in range(1, 65):
        sizes = np.bincount(np.arange(count) % period)
        check_shares(np.bincount(columns % period, minlength=period), sizes, most / count)


@pytest.mark.parametrize("samples", [300, 2000])
def test_every_evaluation_has_its_share_after_thinning_twice(samples):
    """As of a reservoir of snapshots, and then of a matching pursuit."""
    for evaluations in (*range(1, 64, 3), 64):
        sample, evaluation = np.divmod(np.arange(samples * evaluations), evaluations)
        kept = np.sort(np.argsort(thinning_key(sample, evaluation), kind="stable")[:6000])
        for columns in (kept, kept[thinned(len(kept), PURSUIT_SNAPSHOTS)]):
            counts = np.bincount(evaluation[columns], minlength=evaluations)
            check_shares(counts, np.full(evaluations, samples), len(columns) / len(sample))


def test_few_columns_are_all_kept():
    assert thinned(7, 10).tolist() == list(range(7))


def test_points_of_the_second_evaluation_are_found_where_samples_have_two():
    """One midpoint step: a unit that is constant at t = 0 and tells the target at the half step."""
    rng = np.random.default_rng(0)
    late = np.arange(4000) % 2 == 1
    rows = np.vstack([rng.normal(size=4000), np.where(late, 3 * rng.normal(size=4000), 1.0)])
    assert matching_pursuit(rows, rows.sum(axis=0, keepdims=True), 1).tolist() == [1]
