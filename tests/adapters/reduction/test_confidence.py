"""Bounds of losses: exact where samples are right or wrong, and kept as often as is stated."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from torchmor.adapters.reduction.confidence import confirmed_loss, samples_needed
from torchmor.engine.findings import ConfirmedLoss


def logits(classes, n_classes=3):
    return torch.nn.functional.one_hot(torch.as_tensor(classes), n_classes).double()


def agreement(wrong, n, confidence=0.95):
    classes = np.zeros(n, dtype=np.int64)
    classes[:wrong] = 1
    return confirmed_loss("agreement", logits(classes), logits(np.zeros(n, dtype=np.int64)), None, n, confidence)


@pytest.mark.parametrize(("wrong", "n", "confidence"), [(0, 50, 0.95), (3, 100, 0.95), (7, 400, 0.99), (20, 20, 0.9)])
def test_bound_of_a_share_is_that_of_clopper_and_pearson(wrong, n, confidence):
    """With the bound as the share, so few wrong ones have just the probability that is left."""
    found = agreement(wrong, n, confidence)
    assert found.loss == pytest.approx(wrong / n) and found.samples == n and found.confidence == confidence
    if wrong < n:
        assert binom.cdf(wrong, n, found.bound) == pytest.approx(1 - confidence, rel=1e-6)
    else:
        assert found.bound == 1.0


def test_drop_of_accuracy_counts_what_is_lost_and_won():
    labels = torch.zeros(200, dtype=torch.int64)
    full, small = np.zeros(200, dtype=np.int64), np.zeros(200, dtype=np.int64)
    small[:6], full[6:8] = 1, 1  # six lost, two won
    found = confirmed_loss("accuracy", logits(small), logits(full), labels, 200)
    assert found.loss == pytest.approx(4 / 200)
    lost, won = agreement(6, 200, 0.975).bound, 1 - agreement(198, 200, 0.975).bound
    assert found.bound == pytest.approx(lost - won)


def relative(rng, n):
    exact = rng.normal(size=(n, 3))
    error = 0.05 * rng.normal(size=(n, 3)) * np.exp(0.3 * rng.normal(size=(n, 1)))
    return torch.from_numpy(exact + error), torch.from_numpy(exact)


METRICS = {
    "relative": lambda output, reference: float((output - reference).norm() / reference.norm()),
    "of one's own": lambda output, reference: float((output - reference).abs().mean()),
}


@pytest.mark.parametrize("name", METRICS)
def test_bounds_of_continuous_losses_hold_as_often_as_stated(name):
    metric = METRICS[name] if name != "relative" else "relative"
    rng, held, trials = np.random.default_rng(0), 0, 100
    truth = METRICS[name](*relative(np.random.default_rng(1), 100_000))
    for _ in range(trials):
        found = confirmed_loss(metric, *relative(rng, 150), None, 150)
        assert found.bound >= found.loss
        held += found.bound >= truth
    assert binom.cdf(held, trials, 0.93) > 0.01, f"the bound held in {held} of {trials}"  # approximate, of 0.95


def test_bound_of_several_classes_for_each_sample():
    """Pixels of one sample are not samples."""
    wrong = torch.zeros(60, 4, 5, dtype=torch.int64)
    wrong[:6] = 1
    output, reference = (one.movedim(-1, 1) for one in (logits(wrong), logits(torch.zeros_like(wrong))))
    found = confirmed_loss("agreement", output, reference, None, 60)
    assert found.loss == pytest.approx(0.1)
    assert 0.15 < found.bound < 0.25, "as of six of 60, not of 120 of 1,200"


def test_what_has_no_samples_has_no_bound():
    x = torch.rand(12, dtype=torch.float64)
    assert confirmed_loss("relative", x + 0.1, x, None, 5).bound is None
    assert confirmed_loss("relative", x[:1], x[:1], None, 1).bound is None


def test_several_outputs_and_masked_entries():
    x = torch.rand(20, 3, dtype=torch.float64)
    masked = torch.where(x > 0.9, math.inf, x)
    found = confirmed_loss("relative", {"a": x * 1.01, "b": masked}, {"a": x, "b": masked}, None, 20)
    assert 0 < found.loss <= found.bound < 0.011


def test_no_solution_has_no_finite_bound():
    x = torch.rand(20, 3, dtype=torch.float64)
    assert confirmed_loss("relative", x * math.nan, x, None, 20).bound == math.inf


@pytest.mark.parametrize(("wrong", "n", "max_loss"), [(0, 50, 0.01), (1, 200, 0.02)])
def test_samples_that_would_show_a_share(wrong, n, max_loss):
    needed = samples_needed("agreement", agreement(wrong, n), max_loss)
    assert agreement(round(wrong / n * needed), needed).bound <= max_loss
    assert agreement(round(wrong / n * needed * 0.8), int(needed * 0.8)).bound > max_loss


def test_samples_that_would_show_a_relative_loss():
    found = ConfirmedLoss(0.01, 0.03, 0.95, 100)
    assert samples_needed("relative", found, 0.02) == 400
    assert samples_needed("relative", found, 0.01) is None, "no number of samples shows what is not so"
