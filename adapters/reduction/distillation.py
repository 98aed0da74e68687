"""Distillation: the reduced operators, tuned to the full network's outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters.layers.chain_module import AffineModule
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import Batch, Calibration
from torchmor.adapters.networks.evaluation import call_network, evaluation, recorded_calls
from torchmor.adapters.networks.progress import shown
from torchmor.adapters.reduction.frozen_part import remembered
from torchmor.engine.errors import SolverError, UnknownLayerError, UnsupportedOperationError

Loss = Callable[[Tensor, Tensor], Tensor]

#: Batches with the full network's outputs.
Lessons = Sequence[tuple[Batch, Tensor]]


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
    their own solver in training too; all other modules stay as they are.

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
        Passes over the data.
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
    """
    student = copy.deepcopy(reduced)
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
    loss = _divergence if classes else _squared_error(lessons)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    student.eval()
    with (
        _trainable(student, parameters),
        remembered(student, [batch for batch, _ in (*lessons, *exam)]) as outputs,
        _Best(parameters) as best,
    ):
        best.consider(_mean_loss(student, exam, loss, outputs))
        for layer in layers:
            _balance_scales(student, layer, lessons[0][0])
        for _ in _passes(lessons, loss, outputs, parameters, epochs, learning_rate, seed):
            found = _mean_loss(student, exam, loss, outputs)
            best.consider(found)
            if not math.isfinite(found):
                break
    return student.train(reduced.training)


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
        self.values = self._copies()

    def consider(self, loss: float) -> None:
        """Keep the values of now if their loss is smaller."""
        if loss < self.loss:
            self.values, self.loss = self._copies(), loss

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
) -> Iterator[None]:
    """Train in passes over the lessons, in random order; yields after each one."""
    optimiser = torch.optim.Adam([{"params": [p], "lr": learning_rate * _size(p)} for p in parameters if p.numel()])
    steps = epochs * len(lessons)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for i in torch.randperm(len(lessons), generator=order).tolist():
            batch, target = lessons[i]
            try:
                value = loss(outputs(batch), target)
            except SolverError:
                break
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
        yield


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
            found.append((batch, output))
    return found


def _divergence(output: Tensor, target: Tensor) -> Tensor:
    logits, wanted = output.movedim(1, -1), target.movedim(1, -1)
    classes = wanted.shape[-1]
    return F.kl_div(
        logits.reshape(-1, classes).log_softmax(-1),
        wanted.reshape(-1, classes).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )


def _squared_error(lessons: Lessons) -> Loss:
    targets = torch.cat([target.flatten() for _, target in lessons]).double()
    variance = float(targets.var().clamp(min=torch.finfo(torch.float64).tiny))
    return lambda output, target: (output - target).square().mean() / variance


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


def _balance_scales(network: nn.Module, layer: ReducedODELayer, batch: Batch) -> None:
    """Scale the reduced coordinates to the same deviation: one rate then fits all, and the layer does the same."""
    encode, decode, output = layer.encode, layer.decode, layer.ode.output
    if not (isinstance(encode, nn.Linear) and isinstance(decode, nn.Linear)):
        return
    with evaluation(network), recorded_calls(decode) as calls:
        call_network(network, batch)
    z = torch.cat([arguments[0].flatten(0, -2) for arguments, _ in calls])
    scale = z.double().std(0)
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
