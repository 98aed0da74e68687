"""Accuracies, their differences, and the data that they are measured on."""

import math

import pytest
import torch
from torch import nn

from torchmor.experiments.data.images import digits
from torchmor.experiments.measure.accuracy import accuracy, paired_interval, predict


def test_predict_in_batches():
    """Batches make no difference, and scores that are not finite give no class."""
    scores = torch.randn(10, 3)
    scores[4, 1] = math.nan
    expected = scores.argmax(dim=1)
    expected[4] = -1
    assert predict(nn.Identity(), scores, batch_size=3).tolist() == expected.tolist()


def test_accuracy_in_percent():
    assert accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 3])) == 75


def test_interval_of_equal_networks_is_zero():
    labels = torch.arange(10)
    assert paired_interval(labels, labels, labels) == (0, 0)


def test_interval_covers_as_often_as_it_says():
    """Of intervals for a difference of 10 points in truth, about 95 % hold it."""
    random = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(200):
        labels = torch.zeros(400, dtype=torch.int64)
        good = (torch.rand(400, generator=random) > 0.1).logical_not().long()
        worse = torch.where(torch.rand(400, generator=random) < 1 / 9, 1, good)  # 0.9 · 8/9 = 0.8
        low, high = paired_interval(worse, good, labels, draws=2000, seed=seed)
        covered += low <= -10 <= high
    assert 180 <= covered <= 199


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_split_without_overlap(seed):
    """The parts are disjoint, together everything, and the same for the same seed."""
    data = digits(seed)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1077, 360, 360]
    everything = torch.cat([part.inputs for part in parts]).flatten(1)
    labels = torch.cat([part.labels for part in parts])
    whole = torch.cat([everything, labels[:, None].float()], dim=1)
    again = digits(1 - seed)
    other = torch.cat(
        [
            torch.cat([part.inputs.flatten(1), part.labels[:, None].float()], dim=1)
            for part in (again.train, again.validation, again.test)
        ]
    )
    assert torch.equal(whole[_order(whole)], other[_order(other)])  # all 1,797 digits, none twice
    assert torch.equal(digits(seed).test.inputs, data.test.inputs)
    assert not torch.equal(again.test.inputs, data.test.inputs)
    assert data.train.inputs.dtype == torch.float32
    assert (float(everything.min()), float(everything.max())) == (0, 1)
    for part in parts:
        assert (part.labels.bincount(minlength=10) / len(part) - 0.1).abs().max() < 0.01


def _order(rows):
    return sorted(range(len(rows)), key=lambda i: rows[i].tolist())
