"""Small networks on data without end: how often a stated bound holds on data that nobody has seen."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from torchmor.adapters.reduction.metrics import METRICS
from torchmor.adapters.solving.steps import Steps
from torchmor.experiments.architectures.small_networks import RandomMap, tiny_network
from torchmor.experiments.data.labelled import Labelled
from torchmor.experiments.measure.delivery import Call
from torchmor.experiments.studies.networks import LAYER
from torchmor.experiments.studies.training import solved_while

#: Key of all of them.
KEY = "small"

#: Sizes of vectors and outputs, units of the ODE layer, and the noise of labels.
INPUTS, OUTPUTS, UNITS, NOISE = 6, 3, 192, 0.1

#: Samples to train, to calibrate, to validate where the metric has labels, and to test.
TRAINED, CALIBRATION, VALIDATION, TEST = 2000, 600, 600, 20_000

#: Steps and batches of the training.
STEPS, BATCH, RATE = 300, 128, 3e-3

#: All that, for a report.
SMALL_IN_WORDS = (
    f"{INPUTS} inputs, {UNITS} units, {OUTPUTS} outputs, AdamW, {STEPS} steps on {TRAINED:,} samples; {CALIBRATION:,} "
    f"to calibrate, {VALIDATION:,} labelled ones to validate accuracies, {TEST:,} to test"
)


def small_call(seed: int) -> Call:
    """Return the default call on a small network: calibration and test data are fresh draws of what it was trained on.

    Each seed has another function to learn, other data and another network. The metrics take turns: relative error,
    agreement, and accuracy with a set of labelled samples for validation.
    """
    metric = METRICS[seed % len(METRICS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        truth, network = RandomMap(INPUTS, OUTPUTS), tiny_network(INPUTS, OUTPUTS, UNITS)
        train, calibration, validation, test = (
            _drawn(truth, samples) for samples in (TRAINED, CALIBRATION, VALIDATION, TEST)
        )
        _fit(network, train.inputs, truth(train.inputs))
    labelled = (validation.inputs, validation.labels) if metric == "accuracy" else None
    options: Mapping[str, Any] = {"metric": metric}
    return Call(network, LAYER, calibration.inputs, labelled, options, choose=validation, test=test, seed=seed)


def _drawn(truth: nn.Module, samples: int) -> Labelled:
    inputs = torch.randn(samples, INPUTS) / 2
    values = truth(inputs)
    return Labelled(inputs, (values + NOISE * torch.randn_like(values)).argmax(1))


def _fit(network: nn.Module, inputs: torch.Tensor, values: torch.Tensor) -> None:
    """Train by least squares, with steps that solve the ODE to about its solver's tolerance."""
    optimiser = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    with solved_while(network, Steps("rk4", 1)):
        for _ in range(STEPS):
            chosen = torch.randint(len(inputs), (BATCH,))
            error = F.mse_loss(network(inputs[chosen]), values[chosen])
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
            schedule.step()
    network.eval().requires_grad_(False)
