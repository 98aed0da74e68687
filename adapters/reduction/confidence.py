"""Bounds of losses: what data like the samples will lose at most, with a stated confidence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from torch import Tensor

from torchmor.adapters.reduction.metrics import Metric, loss
from torchmor.adapters.solving.torch_private import tree_leaves, tree_map_only
from torchmor.engine.findings import ConfirmedLoss

#: Resamples of the bootstrap; of a metric that is a function, which is called for each of them.
RESAMPLES, CALLED_RESAMPLES = 2000, 200

#: Confidence of bounds where none was asked for.
CONFIDENCE = 0.95

#: Samples that an advice asks for at most.
_MANY = 10_000_000


def confirmed_loss(
    metric: Metric,
    output: Any,
    reference: Any,
    labels: Tensor | None = None,
    samples: int = 0,
    confidence: float = CONFIDENCE,
) -> ConfirmedLoss:
    """Return a loss with an upper bound of the loss on all data like this.

    Where samples are right or wrong, the bound is exact (Clopper–Pearson); a difference of two such shares is bounded
    by both at half the risk. For all others it is a bootstrap over samples (BCa), which holds approximately, and says
    nothing of rare samples with large errors where none was among them.

    Parameters
    ----------
    metric, output, reference, labels
        As in :func:`~torchmor.adapters.reduction.metrics.loss`: outputs (samples, …).
    samples
        Number of samples; outputs of another length cannot be told apart by samples, and have no bound.
    confidence
        Probability with which the bound holds, one-sided.

    References
    ----------
    Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial, Biometrika 1934.
    Efron: Better bootstrap confidence intervals, Journal of the American Statistical Association 1987.
    """
    value = loss(metric, output, reference, labels)
    leaves = [leaf for leaf in tree_leaves((output, reference)) if isinstance(leaf, Tensor)]
    bound = None
    if math.isinf(value):
        bound = value
    elif samples > 1 and all(leaf.ndim and len(leaf) == samples for leaf in leaves):
        bound = _bound(metric, output, reference, labels, confidence)
    return ConfirmedLoss(value, bound, confidence, samples)


def samples_needed(metric: Metric, found: ConfirmedLoss, max_loss: float) -> int | None:
    """Return about how many samples would show that a loss is at most so large, if it stays; None if none would."""
    if found.bound is None or not found.loss < max_loss or not max_loss > 0:
        return None
    if metric == "agreement":
        wrong, n = found.loss, found.samples
        while n < _MANY and _share_at_most(round(wrong * n), n, found.confidence) > max_loss:
            n = math.ceil(1.1 * n)
        return n if n < _MANY else None
    factor = (found.bound - found.loss) / (max_loss - found.loss)  # bounds shrink with the square root
    n = math.ceil(found.samples * max(1.0, factor) ** 2)
    return n if n < _MANY else None


def _bound(metric: Metric, output: Any, reference: Any, labels: Tensor | None, confidence: float) -> float:
    if metric == "relative":
        return _ratio_at_most(*_squares(output, reference), confidence)
    if callable(metric):
        return _function_at_most(metric, output, reference, confidence)
    classes, expected = output.argmax(1), reference.argmax(1)
    if metric == "agreement":
        wrong = (classes != expected).double().numpy(force=True)
        if wrong.ndim == 1:
            return _share_at_most(int(wrong.sum()), len(wrong), confidence)
        return _mean_at_most(wrong.reshape(len(wrong), -1).mean(1), confidence)
    assert labels is not None
    before, after = (found.eq(labels).double().numpy(force=True) for found in (expected, classes))
    if before.ndim > 1:
        return _mean_at_most((before - after).reshape(len(before), -1).mean(1), confidence)
    lost, won, n = int((before > after).sum()), int((after > before).sum()), len(before)
    half = (1 + confidence) / 2
    return _share_at_most(lost, n, half) - (1 - _share_at_most(n - won, n, half))


def _share_at_most(count: int, n: int, confidence: float) -> float:
    """Return the exact upper bound of a share of which `count` of n samples were seen."""
    return float(binomtest(count, n, alternative="less").proportion_ci(confidence, method="exact").high)


def _squares(output: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return squared norms (samples,) of differences, and of references."""
    differences, sizes = [], []
    for value, exact in zip(*(tree_leaves(one) for one in (output, reference)), strict=True):
        if isinstance(exact, Tensor) and exact.is_floating_point():
            known = exact.isfinite()
            exact, value = (torch.where(known, one, 0.0).double() for one in (exact, value))
            differences.append((value - exact).flatten(1).square().sum(1) if exact.ndim > 1 else (value - exact) ** 2)
            sizes.append(exact.flatten(1).square().sum(1) if exact.ndim > 1 else exact**2)
    found = [torch.stack(parts).sum(0).numpy(force=True) for parts in (differences, sizes)]
    return found[0], found[1]


def _ratio_at_most(differences: np.ndarray, sizes: np.ndarray, confidence: float) -> float:
    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        total: np.ndarray = np.sum(b, axis=axis)
        return np.sqrt(np.sum(a, axis=axis) / np.maximum(total, np.finfo(np.float64).tiny))

    return _bootstrapped((differences, sizes), ratio, confidence, RESAMPLES, paired=True)


def _mean_at_most(values: np.ndarray, confidence: float) -> float:
    return _bootstrapped((values,), np.mean, confidence, RESAMPLES)


def _function_at_most(metric: Callable[..., float], output: Any, reference: Any, confidence: float) -> float:
    count = len(next(leaf for leaf in tree_leaves(reference) if isinstance(leaf, Tensor)))

    def of_samples(rows: np.ndarray) -> float:
        chosen = torch.from_numpy(rows.astype(np.int64))
        parts = (tree_map_only(Tensor, lambda x: x[chosen.to(x.device)], one) for one in (output, reference))
        return float(metric(*parts))

    return _bootstrapped((np.arange(count),), of_samples, confidence, CALLED_RESAMPLES, vectorized=False)


def _bootstrapped(
    data: tuple[np.ndarray, ...], statistic: Callable[..., Any], confidence: float, resamples: int, **options: Any
) -> float:
    if all(np.all(values == values[0]) for values in data):
        return float(statistic(*data))
    options |= {"confidence_level": confidence, "alternative": "less"}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of what is skewed beyond correction, where the percentile is left
        plain = bootstrap(
            data, statistic, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0), **options
        )
        skewed = bootstrap(data, statistic, n_resamples=0, method="BCa", bootstrap_result=plain, **options)
    return float(np.nanmax([found.confidence_interval.high for found in (plain, skewed)]))
