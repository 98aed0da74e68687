"""Distillation: the reduced operators, tuned to the full network's outputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters.layers.chain_module import AffineModule
from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.placing import copied
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import Batch, Calibration
from torchmor.adapters.networks.evaluation import call_network, recorded_calls
from torchmor.adapters.networks.progress import shown
from torchmor.adapters.reduction.frozen_part import remembered
from torchmor.adapters.reduction.remeasured import describe_again
from torchmor.engine.errors import (
    CalibrationError,
    NonFiniteError,
    NothingLearntWarning,
    SolverError,
    UnknownLayerError,
    UnsupportedOperationError,
)

Loss = Callable[[Tensor, Tensor], Tensor]

#: Batches with the full network's outputs.
Lessons = Sequence[tuple[Batch, Tensor]]

#: The deviations of reduced coordinates are those of so many of their values, or more.
BALANCED_ROWS = 128


def distill(
    network: nn.Module,
    reduced: nn.Module,
    calibration: Any,
    *,
    validation: Any = None,
    epochs: int = 10,
    classes: bool | None = None,
    learning_rate: float = 1e-2,
    batch_size: int = 128,
    batch_to_inputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    batched: Sequence[bool] | None = None,
) -> nn.Module:
    """Return a copy of a reduced network, its reduced operators tuned to the full network's outputs, without labels.

    Law: on the validation data the loss of the result is at most that of `reduced`. The reduced layers are solved by
    their own solver in training too; all other modules stay as they are. Steps whose loss or gradients are not finite
    are left out. What `explain()` tells, and the layers' `usual_distance`, are measured again on the validation data.

    Parameters
    ----------
    network
        The full network: the teacher, with its own solver.
    reduced
        The network that `reduce_network` made of it.
    calibration
        Inputs as in `reduce_network`. More of them than the reduction needed help.
    validation
        Inputs in the same form; the parameters of the pass that was best on them are returned. A seeded 20 % of
        `calibration` by default.
    epochs
        Passes over the data, 1 or more.
    classes
        Whether the output are logits (batch, classes, …), and the loss the Kullback–Leibler divergence from the
        teacher's class probabilities, instead of the squared error of the output relative to its variance. None: as the
        layer was reduced, for classes with the metrics "agreement" and "accuracy".
    learning_rate
        Of Adam, relative to the root mean square of each parameter tensor; it falls to zero along a cosine.
    batch_size, batch_to_inputs, seed, batched
        As in `reduce_network`; the seed is of the order of batches, too.
    progress
        Show progress on a terminal.

    Raises
    ------
    UnknownLayerError
        `reduced` has no reduced layer.
    CalibrationError, NonFiniteError
        The data is unusable.
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
    layers = [module for module in student.modules() if isinstance(module, ReducedODELayer)]
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
    if classes is None:
        known = [layer.explanation.metric for layer in layers if layer.explanation is not None]
        classes = any(metric in ("agreement", "accuracy") for metric in known)
    lessons = _lessons(network, shown(data, progress, "teacher"))
    exam = _lessons(network, held_out)
    if not (lessons and exam):
        raise CalibrationError(
            "expected two samples or more, of which some are held out, got one: give more, or pass validation="
        )
    loss = _divergence if classes else _squared_error(lessons)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    skipped = _Skipped()
    with (
        _trainable(student, parameters),
        remembered(student, [batch for batch, _ in (*lessons, *exam)]) as outputs,
        _Best(parameters) as best,
    ):
        best.consider(_mean_loss(student, exam, loss, outputs))
        for layer in layers:
            _balance_scales(student, layer, [batch for batch, _ in lessons])
        for _ in _passes(lessons, loss, outputs, parameters, epochs, learning_rate, seed, skipped):
            found = _mean_loss(student, exam, loss, outputs)
            best.consider(found)
            if not math.isfinite(found):
                break
    for module, mode in modes:
        module.training = mode
    if best.improved:
        samples = sum(batch.size for batch, _ in lessons)
        since = f"distilled on {samples:,} samples; errors measured again on data that was not trained on"
        describe_again(network, student, [batch for batch, _ in exam], since)
    else:
        warnings.warn(
            "distillation found nothing better on the validation data, the network is as it was: "
            f"{skipped.words()}give more data or epochs, another learning_rate, or larger sizes",
            NothingLearntWarning,
            stacklevel=2,
        )
    return student


def _check(epochs: Any, learning_rate: Any) -> None:
    if not isinstance(epochs, Integral) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(f"expected epochs to be an integer, 1 or more, got {epochs!r}: without one nothing is learnt")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"expected learning_rate to be a number > 0, got {learning_rate!r}")


class _Skipped:
    """Counts training steps, and those that were left out."""

    def __init__(self) -> None:
        self.steps = self.left_out = 0

    def words(self) -> str:
        if not self.left_out:
            return ""
        return f"{self.left_out} of {self.steps} steps had no finite loss or gradient and were left out; "


@contextmanager
def _trainable(network: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let only some parameters of a network take gradients, while the context lasts."""
    taking = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in taking:
            parameter.requires_grad_(flag)


class _Best:
    """The values of parameters that gave the smallest loss so far; they are set when the context ends."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters, self.loss = parameters, math.inf
        self.values, self.considered = self._copies(), 0
        self.improved = False

    def consider(self, loss: float) -> None:
        """Keep the values of now if their loss is smaller; the first are those to improve."""
        if loss < self.loss:
            self.values, self.loss, self.improved = self._copies(), loss, self.considered > 0
        self.considered += 1

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def __enter__(self) -> _Best:
        return self

    def __exit__(self, *exception: object) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.copy_(value)


def _passes(
    lessons: Lessons,
    loss: Loss,
    outputs: Callable[[Batch], Any],
    parameters: Sequence[nn.Parameter],
    epochs: int,
    learning_rate: float,
    seed: int,
    skipped: _Skipped,
) -> Iterator[None]:
    """Train in passes over the lessons, in random order; yields after each one."""
    optimiser = torch.optim.Adam([{"params": [p], "lr": learning_rate * _size(p)} for p in parameters if p.numel()])
    steps = epochs * len(lessons)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for i in torch.randperm(len(lessons), generator=order).tolist():
            batch, target = lessons[i]
            skipped.steps += 1
            optimiser.zero_grad()
            if _gradients(partial(_loss_of, loss, outputs, batch, target), parameters):
                optimiser.step()
                schedule.step()
            else:
                skipped.left_out += 1
        yield


def _loss_of(loss: Loss, outputs: Callable[[Batch], Any], batch: Batch, target: Tensor) -> Tensor:
    return loss(outputs(batch), target)


def _gradients(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> bool:
    """Compute the gradients of a loss; whether it and they are finite."""
    try:
        value = loss()
        if not bool(value.isfinite()):
            return False
        value.backward()
    except SolverError:
        return False
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _lessons(network: nn.Module, batches: Iterable[Batch]) -> Lessons:
    """Pairs of a batch and the network's output."""
    found = []
    with evaluation(network):
        for batch in batches:
            output = call_network(network, batch)
            if not isinstance(output, Tensor):
                raise UnsupportedOperationError(
                    f"expected a network whose output is one Tensor, got {type(output).__name__}: wrap it in a module "
                    "that returns the part that counts"
                )
            if bool(output.isnan().any()):
                raise NonFiniteError(
                    f"expected a full network with finite outputs to learn from, got NaN in batch {batch.index}: clean "
                    "the data"
                )
            found.append((batch, output))
    return found


def _divergence(output: Tensor, target: Tensor) -> Tensor:
    logits, wanted = output.movedim(1, -1), target.movedim(1, -1)
    classes = wanted.shape[-1]
    found, expected = logits.reshape(-1, classes).log_softmax(-1), wanted.reshape(-1, classes).log_softmax(-1)
    masked = expected.isinf()  # classes of no probability say nothing
    return F.kl_div(
        found.masked_fill(masked, 0), expected.masked_fill(masked, 0), reduction="batchmean", log_target=True
    )


def _squared_error(lessons: Lessons) -> Loss:
    targets = torch.cat([target.flatten() for _, target in lessons]).double()
    targets = targets[targets.isfinite()]  # a network may mask its output with infinity
    variance = float(targets.var(correction=0)) or float(targets.square().mean()) or 1.0

    def error(output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        return (output[known] - target[known]).square().mean() / variance

    return error


def _mean_loss(network: nn.Module, lessons: Lessons, loss: Loss, outputs: Callable[[Batch], Any]) -> float:
    total, samples = 0.0, 0
    with evaluation(network):
        for batch, target in lessons:
            try:
                total += float(loss(outputs(batch), target)) * batch.size
            except SolverError:
                return math.inf
            samples += batch.size
    value = total / samples
    return value if math.isfinite(value) else math.inf


def _balance_scales(network: nn.Module, layer: ReducedODELayer, batches: Iterable[Batch]) -> None:
    """Scale the reduced coordinates to the same deviation: one rate then fits all, and the layer does the same.

    Where the data has no deviation, or the layer no solution, it stays as it is.
    """
    encode, decode, output = layer.encode, layer.decode, layer.ode.output
    if not (isinstance(encode, nn.Linear) and isinstance(decode, nn.Linear)):
        return
    with evaluation(network), recorded_calls(decode) as calls, suppress(SolverError):
        for batch in batches:
            call_network(network, batch)
            if sum(call.arguments[0].flatten(0, -2).shape[0] for call in calls) >= BALANCED_ROWS:
                break
    if not calls:
        return
    z = torch.cat([call.arguments[0].flatten(0, -2) for call in calls])
    scale = z[z.isfinite().all(1)].double().std(0, correction=0)
    if not bool(scale.mean() > 0):  # NaN without a finite row
        return
    scale = (scale / scale.mean()).clamp(min=1e-3).to(z.dtype)
    with torch.no_grad():
        for linear in (encode, output):
            linear.weight.div_(scale[:, None])
            linear.bias.div_(scale)
        decode.weight.mul_(scale)
        for affine in (*layer.ode.stages, output):
            _scale_columns(affine, "y", scale)


def _scale_columns(affine: AffineModule, source: str, scale: Tensor) -> None:
    start = 0
    for name, size in affine.sources.items():
        if name == source:
            affine.weight[:, start : start + size] *= scale
        start += size


def _size(parameter: Tensor) -> float:
    return max(float(parameter.detach().square().mean().sqrt()), 1e-4)
