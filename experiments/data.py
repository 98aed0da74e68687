"""Data sets, split once for everything that is measured on them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their classes.

    Parameters
    ----------
    images
        float32 (k, channels, height, width) in [0, 1].
    labels
        int64 (k,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class DataSet:
    """Disjoint parts of a data set.

    Parameters
    ----------
    name
        The data set in words.
    train
        The network is trained on these; the images, without labels, calibrate the reduction.
    validation
        Everything that is chosen is chosen on these: sizes, and the full solver to compare with.
    test
        Used once, for the accuracies of the table.
    """

    name: str
    train: Labelled
    validation: Labelled
    test: Labelled


def digits(seed: int = 0) -> DataSet:
    """Load the 1,797 handwritten digits of 8 × 8 pixels that scikit-learn brings along.

    Law: the parts have 60, 20 and 20 % of the images, each class in proportion, and are a function of the seed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    fit, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    train, validation = train_test_split(fit, test_size=0.25, random_state=seed, stratify=labels[fit])
    parts = (Labelled(images[rows], labels[rows]) for rows in map(torch.from_numpy, (train, validation, test)))
    return DataSet("scikit-learn's digits, 8 × 8 pixels", *parts)
