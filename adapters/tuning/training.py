"""Tuning: the operators of reduced layers are trained on the full network's outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.chain_module import AffineModule
from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import call_network, recorded_calls
from torchmor.adapters.networks.progress import track
from torchmor.adapters.tuning.frozen_part import remembered
from torchmor.adapters.tuning.lessons import Lesson, Lessons, weighted
from torchmor.engine.errors import SolverError
from torchmor.engine.findings import Tuning

#: The deviations of reduced coordinates are those of so many of their values, or more.
BALANCED_ROWS = 128

#: The learning rate, relative to the root mean square of each parameter tensor, and one that is tried where more than
#: a share of the loss is left. Short trials cannot tell: they favour the small rate where the large one does better.
RATES, LITTLE_GAIN = (1e-2, 1e-3), 0.75

#: Where the loss in the exam is more than so many times that in the lessons, mixtures are tried.
MEMORISED = 1.2

#: A further round of lessons for so many passes: each costs what the full network takes to answer.
EPOCHS_OF_A_ROUND = 10


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
        Passes over as many batches as there are real ones; as many again where a smaller rate, or mixtures, are tried
        after them.
    learning_rate
        Of Adam, relative to the root mean square of each parameter tensor; it falls to zero along a cosine. None: 1e-2,
        and then 1e-3 where that gains little.
    seed
        Of the order of batches.
    like
        An earlier tuning, whose rate and samples are taken, and nothing else is tried.
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
        training = _Training(student, lessons, parameters, outputs, best, seed)
        training.begin(layers)
        on_trial = learning_rate is None and like is None
        rate = learning_rate or (RATES[0] if like is None else like.learning_rate)
        further = min(lessons.rounds, math.ceil(epochs / EPOCHS_OF_A_ROUND))
        asked = lessons.augment is not None or (like is not None and like.augment != "none")
        rounds, passes = 1 + further * asked, epochs
        training.run(rate, rounds, epochs)
        trained = training.loss_in_lessons()
        if on_trial and best.loss > LITTLE_GAIN * best.before:
            passes += epochs
            if training.run(RATES[1], rounds, epochs):
                rate, trained = RATES[1], training.loss_in_lessons()
        elif further and not asked and like is None and best.loss > MEMORISED * trained:
            passes += epochs
            if training.run(rate, 1 + further, epochs):
                rounds, trained = 1 + further, training.loss_in_lessons()
    for module, mode in modes:
        module.training = mode
    return Tuning(
        before=best.before,
        after=best.loss,
        trained=trained,
        epochs=passes,
        samples=rounds * lessons.samples,
        seconds=time.perf_counter() - start,
        teacher=lessons.taught_by(training.teacher),
        augment="none" if rounds == 1 else "a function" if callable(lessons.augment) else "mix",
        learning_rate=rate,
        steps=training.steps,
        left_out=training.left_out,
    )


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
        self.parameters, self.before, self.loss = parameters, math.inf, math.inf
        self.original = self.values = self._copies()

    def begin(self, loss: float) -> None:
        """Take the values of now, which have the loss that is to be made smaller, as the best so far."""
        self.before, self.loss, self.values = loss, loss, self._copies()

    def consider(self, loss: float) -> None:
        """Keep the values of now if their loss is smaller."""
        if loss < self.loss:
            self.values, self.loss = self._copies(), loss

    def set(self, values: Sequence[Tensor] | None = None) -> None:
        """Set the best values, or others."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values if values is None else values, strict=True):
                parameter.copy_(value)

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def __enter__(self) -> _Best:
        return self

    def __exit__(self, *exception: object) -> None:
        self.set(None if self.loss < self.before else self.original)


class _Training:
    """Runs of training, each of which begins with the best parameters so far."""

    def __init__(
        self,
        student: nn.Module,
        lessons: Lessons,
        parameters: Sequence[nn.Parameter],
        outputs: Callable[[Batch], Any],
        best: _Best,
        seed: int,
    ):
        self.student, self.lessons, self.parameters = student, lessons, parameters
        self.outputs, self.best, self.seed = outputs, best, seed
        self.steps = self.left_out = 0

    def begin(self, layers: Sequence[ReducedODELayer]) -> None:
        """Find the loss before, and a teacher; scale the reduced coordinates to the same deviation."""
        before = self._loss(self.lessons.exam)
        self.teacher = self.lessons.teacher(before)
        for layer in layers:
            _balance_scales(self.student, layer, [batch for batch, _ in self.lessons.round(0, self.teacher)])
        self.best.begin(before)

    def run(self, learning_rate: float, rounds: int, epochs: int) -> bool:
        """Train on lessons of so many rounds, with an exam after each pass; whether something better was found.

        The teacher is near enough to the full network for what the student can do by then.
        """
        loss = self.best.loss
        self.teacher = self.lessons.teacher(loss)
        self.best.set()
        steps = epochs * self.lessons.size
        optimiser = torch.optim.Adam(
            [{"params": [p], "lr": learning_rate * _size(p)} for p in self.parameters if p.numel()]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        stream = self._stream(rounds)
        for step in track(range(1, steps + 1), "tuning"):
            batch, target = next(stream)
            self.steps += 1
            optimiser.zero_grad()
            if _gradients(partial(self._loss_of, batch, target), self.parameters):
                optimiser.step()
                schedule.step()
            else:
                self.left_out += 1
            if step % self.lessons.size == 0:
                found = self._loss(self.lessons.exam)
                self.best.consider(found)
                if not math.isfinite(found):
                    break
        return self.best.loss < loss

    def loss_in_lessons(self) -> float:
        """Return the loss of the best parameters on as many real batches as there are in the exam."""
        self.best.set()
        return self._loss(self.lessons.round(0, self.teacher)[: len(self.lessons.exam)])

    def _stream(self, rounds: int) -> Iterator[Lesson]:
        """Yield lessons of these rounds in random order, without an end."""
        size, order = self.lessons.size, torch.Generator().manual_seed(self.seed)
        while True:
            for i in torch.randperm(rounds * size, generator=order).tolist():
                yield self.lessons.round(i // size, self.teacher)[i % size]

    def _loss_of(self, batch: Batch, target: Tensor) -> Tensor:
        return self.lessons.loss(self.outputs(batch), target)

    def _loss(self, several: Sequence[Lesson]) -> float:
        """Return the loss over several lessons; infinity without a solution."""
        with evaluation(self.student), suppress(SolverError):
            return weighted([float(self._loss_of(batch, target)) for batch, target in several], several)
        return math.inf


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
