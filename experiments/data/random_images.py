"""Images in the place of a data set, where only sizes count."""

import torch

from torchmor.experiments.data.labelled import DataSet, Labelled


def random_images(samples: int, seed: int = 0) -> DataSet:
    """Return random smooth images of Fashion-MNIST's shape, all parts the same, without meaning."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(samples, 1, 7, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=28, mode="bilinear")
    part = Labelled(images, torch.arange(samples) % 10)
    return DataSet("random images, 28 × 28 pixels", part, part, part)
