"""Methods at equal time: budgets, choices by validation data, intervals over all seeds."""

import pytest
import torch

from fake_results import make_row
from torchmor.experiments.measure.accuracy import packed
from torchmor.experiments.report.equal_time import BUDGETS, at_equal_time
from torchmor.experiments.report.spread import entries

OURS, SVD, PRUNING = "model order reduction", "SVD truncation", "pruning"


def rows(timed, change=0.0):
    time = lambda wall_s: wall_s if timed else None  # noqa: E731
    return [
        make_row("full", {"n": 64}, "dopri5", 95.0, time(10e-3), own=True),
        make_row("full", {"n": 64}, "1 RK4 step", 95.0, time(4e-3)),
        make_row("fitted", {"r": 8, "m": 16}, "1 RK4 step", 90.0 + change, time(0.9e-3), validation=90.0),
        make_row("fitted", {"r": 16, "m": 32}, "1 RK4 step", 94.0 + change, time(1.5e-3), validation=94.0),
        make_row("pod-deim", {"r": 16, "m": 32}, "1 RK4 step", 99.0, time(1.5e-3), validation=70.0),
        make_row("svd", {"rank": 8}, "1 RK4 step", 92.0, time(2e-3)),
        make_row("pruning", {"kept": 60}, "1 RK4 step", 95.0, time(3.9e-3)),
    ]


def table(by_seed):
    return at_equal_time(by_seed, entries(by_seed))


def test_choice_is_the_best_on_validation_data_within_the_budget():
    found = table({0: rows(True), 1: rows(False, 1.0)})
    assert [budget for budget, _ in found] == pytest.approx([4e-3 * share for share in BUDGETS])
    first, second = found[0][1], found[1][1]
    assert set(first) == {OURS} and first[OURS].row.sizes == {"r": 8, "m": 16}
    assert second[OURS].row.sizes == {"r": 16, "m": 32} and second[OURS].row.method == "fitted"
    assert second[OURS].accuracy == pytest.approx(94.5) and second[OURS].behind is None
    assert {family: row.row.method for family, row in found[-1][1].items()} == {
        OURS: "fitted",
        SVD: "svd",
        PRUNING: "pruning",
    }


def test_intervals_are_paired_over_the_samples_of_all_seeds():
    by_seed = {0: rows(True), 1: rows(False)}
    _, choices = table(by_seed)[-1]
    low, high = choices[SVD].behind
    assert 0 < low < 2.0 < high, "94 against 92 % of the same samples"
    low, high = choices[PRUNING].behind
    assert low < -1.0 < high < 0
    for row in by_seed[0] + by_seed[1]:
        if row.method == "svd":
            object.__setattr__(row, "correct", packed(torch.arange(400) >= 400 - 4 * 92))
    wide = table(by_seed)[-1][1][SVD].behind
    assert wide[1] - wide[0] > 2 * (choices[SVD].behind[1] - choices[SVD].behind[0]), "errors on other samples"


def test_rows_that_a_seed_lacks_are_no_choice():
    short = [row for row in rows(False) if row.method != "svd"]
    assert SVD not in table({0: rows(True), 1: short})[-1][1]


def test_without_times_there_is_no_table():
    assert table({0: rows(False)}) == []
