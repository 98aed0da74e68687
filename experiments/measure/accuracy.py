"""Accuracy of classifiers, and how sure a difference of two accuracies is."""

import numpy as np
import torch
from torch import Tensor, nn


def predict(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the classes (k,) that a network in eval mode gives to images (k, …); −1 for scores that are not finite."""
    with torch.no_grad():
        scores = torch.cat([network(batch) for batch in images.split(batch_size)])
    return torch.where(scores.isfinite().all(dim=1), scores.argmax(dim=1), -1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of right classes, in percent."""
    return 100 * float((predicted == labels).double().mean())


def paired_interval(
    predicted: Tensor, reference: Tensor, labels: Tensor, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of ``accuracy(predicted) − accuracy(reference)``, in points.

    The percentile bootstrap over samples, in pairs: both networks see the same samples.

    References
    ----------
    Efron, Tibshirani: An Introduction to the Bootstrap, 1993.
    """
    difference = (predicted == labels).int() - (reference == labels).int()
    return resampled_interval(difference.numpy(), draws=draws, seed=seed)


def resampled_interval(difference: np.ndarray, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of differences (k,), each −1, 0 or 1, in percent, by resampling them."""
    counts = [int((difference == value).sum()) for value in (-1, 0, 1)]  # all that a resampled mean depends on
    total = sum(counts)
    drawn = np.random.default_rng(seed).multinomial(total, np.array(counts) / total, size=draws)
    low, high = np.quantile(100 * (drawn[:, 2] - drawn[:, 0]) / total, (0.025, 0.975))
    return float(low), float(high)


def packed(correct: Tensor) -> str:
    """Return booleans (k,) as text: their number, and their bits in hexadecimal digits."""
    return f"{len(correct)}:{np.packbits(correct.numpy()).tobytes().hex()}"


def unpacked(text: str) -> np.ndarray:
    """Return the integers 0 and 1 (k,) of what `packed` made."""
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(int)
