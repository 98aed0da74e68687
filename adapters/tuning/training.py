"""Tuning: the operators of reduced layers are trained on the full network's outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.chain_module import AffineModule
from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import call_network, recorded_calls
from torchmor.adapters.solving.steps import Steps
from torchmor.adapters.tuning.frozen_part import remembered
from torchmor.adapters.tuning.lessons import Lesson, Lessons, weighted
from torchmor.engine.errors import SolverError
from torchmor.engine.findings import Tuning

#: The deviations of reduced coordinates are those of so many of their values, or more.
BALANCED_ROWS = 128

#: Learning rates that are tried, relative to the root mean square of each parameter tensor.
RATES = (1e-2, 1e-3)

#: A trial takes this share of the steps of all passes.
TRIAL_SHARE = 0.25


@dataclass(frozen=True)
class Plan:
    """How to train: a learning rate, and how many rounds of lessons, the real ones and further ones."""

    learning_rate: float
    rounds: int


def reduced_layers(network: nn.Module) -> list[ReducedODELayer]:
    """Return the reduced layers of a network."""
    return [module for module in network.modules() if isinstance(module, ReducedODELayer)]


def tune(
    student: nn.Module,
    lessons: Lessons,
    *,
    epochs: int,
    learning_rate: float | None = None,
    seed: int = 0,
    like: Tuning | None = None,
) -> Tuning:
    """Tune the reduced layers of a network in place, and return how that went.

    Law: the loss in the exam is not larger than it was; where nothing better was found, the layers are as they were.
    All other parts of the network stay as they are. Steps whose loss or gradients are not finite are left out.

    Parameters
    ----------
    student
        A reduced copy of the network of the lessons.
    lessons
        What it learns from.
    epochs
        So many passes over as many batches as there are real ones; trials take as many again at most.
    learning_rate
        Of Adam, relative to the root mean square of each parameter tensor; it falls to zero along a cosine. None: the
        better one of `RATES` in a short trial.
    seed
        Of the order of batches.
    like
        An earlier tuning, whose rate and further samples are taken instead of trials.
    """
    start = time.perf_counter()
    layers = reduced_layers(student)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    with (
        _trainable(student, parameters),
        remembered(student, layers, lessons.exam[0].batch, lessons.memory) as outputs,
        _Best(parameters) as best,
    ):
        before = _exam(student, lessons.exam, lessons, outputs)
        best.consider(before)
        teacher = lessons.teacher(before)
        real = lessons.round(0, teacher)
        for layer in layers:
            _balance_scales(student, layer, [batch for batch, _ in real])
        training = _Training(student, lessons, teacher, parameters, outputs, best, seed)
        plans = _plans(lessons, epochs, learning_rate, like)
        steps = epochs * lessons.size
        if len(plans) > 1:
            beginning, results = copies(parameters), []
            for plan in plans:
                results.append(training.run(plan, math.ceil(TRIAL_SHARE * steps)))
                set_values(parameters, beginning)
            plan = plans[results.index(min(results))]
        else:
            (plan,) = plans
        training.run(plan, steps)
    for module, mode in modes:
        module.training = mode
    trained = _exam(student, real[: len(lessons.exam)], lessons, outputs)
    return Tuning(
        before=before,
        after=best.loss,
        trained=trained,
        epochs=epochs,
        samples=plan.rounds * lessons.samples,
        seconds=time.perf_counter() - start,
        teacher=lessons.taught_by(teacher),
        augment=("a function" if callable(lessons.augment) else "mix") if plan.rounds > 1 else "none",
        learning_rate=plan.learning_rate,
    )


def _plans(lessons: Lessons, epochs: int, learning_rate: float | None, like: Tuning | None) -> list[Plan]:
    """Return what to try."""
    rates = RATES if learning_rate is None else (learning_rate,)
    more = 1 + min(lessons.rounds, max(epochs - 1, 1))
    rounds = (1, more) if lessons.augment is None and lessons.rounds else (more,)
    if like is not None:
        rates = (like.learning_rate,) if learning_rate is None else rates
        rounds = rounds[:1] if like.augment == "none" else rounds[-1:]
    return [Plan(rate, count) for count in rounds for rate in rates]


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


def copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the values of parameters."""
    return [parameter.detach().clone() for parameter in parameters]


def set_values(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Set the values of parameters."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class _Best:
    """The values of parameters that gave the smallest loss so far; they are set when the context ends."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters, self.loss = parameters, math.inf
        self.values = copies(parameters)

    def consider(self, loss: float) -> None:
        """Keep the values of now if their loss is smaller."""
        if loss < self.loss:
            self.values, self.loss = copies(self.parameters), loss

    def __enter__(self) -> _Best:
        return self

    def __exit__(self, *exception: object) -> None:
        set_values(self.parameters, self.values)


@dataclass
class _Training:
    """Runs of training that start from the parameters of now."""

    student: nn.Module
    lessons: Lessons
    teacher: Steps | None
    parameters: Sequence[nn.Parameter]
    outputs: Callable[[Batch], Any]
    best: _Best
    seed: int
    steps: int = 0
    left_out: int = 0

    def run(self, plan: Plan, steps: int) -> float:
        """Take so many steps, with an exam after each pass; return the smallest loss in them."""
        optimiser = torch.optim.Adam(
            [{"params": [p], "lr": plan.learning_rate * _size(p)} for p in self.parameters if p.numel()]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        least = math.inf
        for i, (batch, target) in zip(range(1, steps + 1), self._stream(plan.rounds), strict=False):
            self.steps += 1
            optimiser.zero_grad()
            if _gradients(partial(self._loss_of, batch, target), self.parameters):
                optimiser.step()
                schedule.step()
            else:
                self.left_out += 1
            if i % self.lessons.size == 0 or i == steps:
                found = _exam(self.student, self.lessons.exam, self.lessons, self.outputs)
                self.best.consider(found)
                least = min(least, found)
                if not math.isfinite(found):
                    break
        return least

    def _loss_of(self, batch: Batch, target: Tensor) -> Tensor:
        return self.lessons.loss(self.outputs(batch), target)

    def _stream(self, rounds: int) -> Iterator[Lesson]:
        """Yield lessons of these rounds in random order, without an end."""
        size = self.lessons.size
        order = torch.Generator().manual_seed(self.seed)
        while True:
            for i in torch.randperm(rounds * size, generator=order).tolist():
                yield self.lessons.round(i // size, self.teacher)[i % size]


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


def _exam(network: nn.Module, exam: Sequence[Lesson], lessons: Lessons, outputs: Callable[[Batch], Any]) -> float:
    with evaluation(network), suppress(SolverError):
        return weighted([float(lessons.loss(outputs(batch), target)) for batch, target in exam], exam)
    return math.inf


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
