"""A data set, split once for everything that is measured on it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from torchmor.engine.errors import TorchmorError


class DataError(TorchmorError):
    """A data set is missing, damaged or unusable."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples with their classes.

    Parameters
    ----------
    inputs
        float32 (k, …): images (k, channels, height, width) in [0, 1], or sequences (k, steps, channels).
    labels
        int64 (k,), counted from 0.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, samples: np.ndarray) -> "Labelled":
        """Return some of the samples, by index (j,)."""
        return Labelled(self.inputs[samples], self.labels[samples])


@dataclass(frozen=True, eq=False)
class DataSet:
    """Disjoint parts of a data set.

    Parameters
    ----------
    name
        The data set in words.
    train
        The network is trained on these; the inputs, without labels, calibrate the reduction.
    validation
        Everything that is chosen is chosen on these: sizes, and the full solver to compare with.
    test
        Used once, for the accuracies of the table.
    """

    name: str
    train: Labelled
    validation: Labelled
    test: Labelled

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train.labels.max()) + 1

    def changed(self, name: str, change: Callable[[Labelled], Labelled]) -> "DataSet":
        """Return a data set of another name, each of whose parts is what `change` makes of the part here."""
        return DataSet(name, *(change(part) for part in (self.train, self.validation, self.test)))

    def shortened(self, samples: int = 1000) -> "DataSet":
        """Return the first samples of each part."""
        name = f"{self.name} (at most {samples:,} samples of each part)"
        return self.changed(name, lambda part: Labelled(part.inputs[:samples], part.labels[:samples]))


def split(samples: Labelled, share: float | int, seed: int) -> tuple[Labelled, Labelled]:
    """Split off a share, or a number, of the samples, each class in proportion.

    Law: the parts are disjoint, and a function of the seed.

    Returns
    -------
    tuple
        The rest, and the share.
    """
    from sklearn.model_selection import train_test_split

    numbers = np.arange(len(samples))
    try:
        rest, part = train_test_split(numbers, test_size=share, random_state=seed, stratify=samples.labels.numpy())
    except ValueError as error:
        raise DataError(f"expected enough samples of every class to split them, got too few ({error})") from error
    return samples.part(rest), samples.part(part)
