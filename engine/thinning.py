"""Which snapshots stand for all of them: one rule, that no period of the data beats with."""

import math

import numpy as np

#: Steps of the key along evaluations of one sample, and along samples. 1/φ spreads numbers most evenly; √(2/3) keeps
#: the lattice of both even as well.
_EVALUATION_STEP = (math.sqrt(5) - 1) / 2
_SAMPLE_STEP = math.sqrt(2 / 3)

#: Columns of unknown periods are laid in rows of so many, with another step from row to row: so no period up to 64
#: beats, nor do columns that the steps above have thinned before.
_ROW = 64
_ROW_STEP = math.sqrt(7)


def thinning_key(sample: np.ndarray | int, evaluation: np.ndarray | int) -> np.ndarray:
    """Return ``frac(s √(2/3) + e/φ)``: the evaluations e of samples s with the smallest keys are spread over both.

    References
    ----------
    Niederreiter: Random Number Generation and Quasi-Monte Carlo Methods, SIAM 1992 (Kronecker sequences).
    """
    return np.asarray(sample * _SAMPLE_STEP + evaluation * _EVALUATION_STEP) % 1.0


def thinned(count: int, most: int) -> np.ndarray:
    """Return which of so many columns stand for all: their indices, sorted, at most `most`.

    Law: of the columns r, r + p, r + 2 p, …, for any period p of the data, about the same part is kept. Evenly spaced
    columns keep only some evaluations of each sample.
    """
    columns = np.arange(count)
    keys = (columns // _ROW * _ROW_STEP + columns % _ROW * _EVALUATION_STEP) % 1.0
    return np.sort(np.argsort(keys, kind="stable")[:most])
