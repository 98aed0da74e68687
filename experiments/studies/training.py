"""Training of classifiers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from torchmor.adapters import ODELayer
from torchmor.adapters.solving.steps import Steps, set_solver
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.comparison import validation_accuracy
from torchmor.experiments.measure.progress import Progress


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data: its mean loss, and the accuracy on validation data after it."""

    loss: float
    validation_accuracy: float


def train(
    network: nn.Module,
    data: DataSet,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    weight_decay: float = 1.0,
    label_smoothing: float = 0.1,
    solver: Steps | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train a classifier by AdamW on the cross entropy, with one cycle of the learning rate.

    Law: same seed, thread count and fixed-step solver → same weights.

    Parameters
    ----------
    network
        Trained in place, and left in eval mode.
    data
        Its training part is used; the validation part is measured after each epoch.
    learning_rate
        Largest rate of the cycle.
    weight_decay, label_smoothing
        What keeps the network from learning the training images by heart.
    solver
        Steps that all ODE layers take while training; None for their own solver. The layers keep their settings.
    seed
        Of the order of the samples.
    progress
        Told of each epoch.

    Returns
    -------
    list of Epoch
        One for each epoch.
    """
    images, labels = data.train.inputs, data.train.labels
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    history = []
    with solved_while(network, solver):
        for _ in range(epochs):
            network.train()
            total = 0.0
            for batch in torch.randperm(len(labels), generator=order).split(batch_size):
                loss = F.cross_entropy(network(images[batch]), labels[batch], label_smoothing=label_smoothing)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(batch)
            network.eval()
            history.append(Epoch(total / len(labels), validation_accuracy(network, data)))
            if progress is not None:
                progress.advance()
    return history


@contextmanager
def solved_while(network: nn.Module, solver: Steps | None) -> Iterator[None]:
    """Let all ODE layers of a network take these steps while the context lasts; None for their own solver."""
    layers = [module for module in network.modules() if isinstance(module, ODELayer)]
    own = [layer.settings for layer in layers]
    try:
        if solver is not None:
            for layer in layers:
                set_solver(layer, solver)
        yield
    finally:
        for layer, settings in zip(layers, own, strict=True):
            layer.settings = settings
