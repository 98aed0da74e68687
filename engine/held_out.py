"""What is held out of a fit: whole samples, by chance, so that their order says nothing."""

from __future__ import annotations

import numpy as np


def held_out_mask(n_samples: int, seed: int = 0, fraction: float = 0.2) -> np.ndarray:
    """Choose the samples that are held out from a fit.

    Law: the mask (n_samples,) has round(fraction · n_samples) true entries, but at least one true and one
    false if there are two samples or more, and is a function of the arguments.
    """
    count = min(max(round(fraction * n_samples), 1), n_samples - 1) if n_samples > 1 else 0
    mask = np.zeros(n_samples, dtype=bool)
    mask[np.random.default_rng(seed).permutation(n_samples)[:count]] = True
    return mask


def held_out_columns(samples: np.ndarray) -> np.ndarray:
    """Return the mask (k,) of the snapshots that are held out, of a fifth of the samples: none of a single sample.

    Parameters
    ----------
    samples
        Index (k,) of the sample of each snapshot.
    """
    different, index = np.unique(samples, return_inverse=True)
    return held_out_mask(len(different))[index]
