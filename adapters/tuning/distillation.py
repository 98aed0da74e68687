"""Distillation: the reduced operators, tuned to the full network's outputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from torch import nn

from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import copied
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.progress import phases
from torchmor.adapters.tuning.lessons import Augment, Lessons
from torchmor.adapters.tuning.remeasured import describe_again
from torchmor.adapters.tuning.training import tune
from torchmor.engine.errors import NothingLearntWarning, UnknownLayerError
from torchmor.engine.explanation import CLASS_METRICS
from torchmor.engine.findings import Tuning


def distill(
    network: nn.Module,
    reduced: nn.Module,
    calibration: Any,
    *,
    validation: Any = None,
    epochs: int = 10,
    augment: Augment = None,
    learning_rate: float | None = None,
    batch_size: int = 128,
    batch_to_inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    batched: Sequence[bool] | None = None,
) -> nn.Module:
    """Return a copy of a reduced network, its reduced operators tuned to the full network's outputs, without labels.

    The loss is the squared error of the output relative to its variance; where the layer was reduced for classes (by
    the metrics "agreement" and "accuracy"), plus the Kullback–Leibler divergence from the full network's classes.

    Law: on the validation data the loss of the result is at most that of `reduced`. The reduced layers are solved by
    their own solver in training too; all other modules stay as they are. Steps whose loss or gradients are not finite
    are left out. What `explain()` tells, and the layers' `usual_distance`, are measured again on the validation data.

    Parameters
    ----------
    network
        The full network: the teacher. For what is trained on, its ODE layers may take coarse steps, where these make a
        hundredth of the student's error at most, and no more than 1e-3; validation is by its own solver.
    reduced
        The network that `reduce_network` made of it.
    calibration
        Inputs as in `reduce_network`. More of them than the reduction needed help.
    validation
        Inputs in the same form; the parameters of the pass that was best on them are returned. A seeded 20 % of
        `calibration` by default.
    epochs
        Passes over the data, 1 or more; as many again where a smaller rate, or mixtures, are tried after them.
    augment
        Where further samples come from, which the full network answers: "mix" for convex combinations of two samples of
        a batch (with the integers of the first, and nothing of batches that stay whole); a function of the arguments of
        a batch that returns such arguments, and may draw from torch's random numbers; "none"; or None for mixtures
        where samples are learnt by heart and mixtures make the loss on the validation data smaller.
    learning_rate
        Of Adam, relative to the root mean square of each parameter tensor; it falls to zero along a cosine. None: 1e-2,
        and then 1e-3 where that gains little.
    batch_size, batch_to_inputs, seed, batched
        As in `reduce_network`; the seed is of the order of batches and of further samples, too.
    progress
        Show progress on a terminal.

    Raises
    ------
    UnknownLayerError
        `reduced` has no reduced layer.
    CalibrationError, NonFiniteError
        The data, or what `augment` makes of it, is unusable.
    UnsupportedOperationError
        The output is not one Tensor.
    ValueError
        Another argument is impossible.

    Warns
    -----
    NothingLearntWarning
        Nothing that was tried is better on the validation data: the copy is as `reduced` was.
    """
    _check(epochs, learning_rate)
    student = copied(reduced)
    layers = {name: module for name, module in student.named_modules() if isinstance(module, ReducedODELayer)}
    if not layers:
        raise UnknownLayerError(
            "expected distill(network, reduced, calibration) with a network that reduce_network made, got one without "
            "a reduced layer"
        )
    data = with_batched(Calibration(calibration, batch_size, batch_to_inputs, seed, batched=batched), network)
    if validation is None:
        data, held_out = data.split(seed)
    else:
        held_out = Calibration(validation, 256, batch_to_inputs, batched=data.batched)
    full = dict(network.named_modules(remove_duplicate=False))
    same = [name for name in layers if isinstance(full.get(name), ODELayer)]
    with phases(progress):
        known = [layer.explanation.metric for layer in layers.values() if layer.explanation is not None]
        classes = any(metric in CLASS_METRICS for metric in known)
        lessons = Lessons(network, data, held_out, layers=same, augment=augment, classes=classes, seed=seed)
        tuning = tune(student, lessons, epochs=epochs, learning_rate=learning_rate, seed=seed)
    if tuning.after < tuning.before:
        since = f"distilled on {lessons.samples:,} samples; errors measured again on data that was not trained on"
        describe_again(network, student, [batch for batch, _ in lessons.exam], since)
        for layer in layers.values():
            if layer.explanation is not None:
                layer.explanation = replace(layer.explanation, tuning=tuning)
    else:
        warnings.warn(
            "distillation found nothing better on the validation data, the network is as it was: "
            f"{_reasons(tuning)}give more data or epochs, another learning_rate, or larger sizes",
            NothingLearntWarning,
            stacklevel=2,
        )
    return student


def _check(epochs: Any, learning_rate: Any) -> None:
    if not isinstance(epochs, Integral) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"expected epochs to be an integer, 1 or more, got {epochs!r}: without one nothing is learnt")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(f"expected learning_rate to be a number > 0 or None, got {learning_rate!r}")


def _reasons(tuning: Tuning) -> str:
    """Return why nothing better was found, as far as it is known."""
    words = ""
    if tuning.left_out:
        words += f"{tuning.left_out} of {tuning.steps} steps had no finite loss or gradient and were left out; "
    if tuning.wants_data:
        words += (
            f"on the data that was trained on the loss is {tuning.trained:.2g}, on other data {tuning.after:.2g}, so "
            "more calibration data would help; "
        )
    return words
