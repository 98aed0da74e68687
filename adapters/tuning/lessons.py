"""What reduced networks learn from: batches with the full network's outputs, and further ones that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import copied
from torchmor.adapters.networks.calibration import Batch, described
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.networks.progress import track
from torchmor.adapters.solving.steps import COARSE, STEP_METHODS, FixedSteps, Steps, own_steps, set_solver, solver_name
from torchmor.adapters.solving.torch_private import tree_leaves, tree_map_only
from torchmor.adapters.tuning.frozen_part import Memory, remembered
from torchmor.engine.errors import CalibrationError, NonFiniteError, SolverError, UnsupportedOperationError

#: What makes further samples of those of a batch.
Augment = Literal["none", "mix"] | Callable[..., Any] | None

#: Batches that are made of each one at most, and the memory that they may take.
FURTHER, FURTHER_BYTES = 4, 2**29

#: Coarse steps of the full layer teach if their squared error, relative to the variance of the outputs, is at most this
#: share of the student's, and at most so large.
TEACHING_SHARE, TEACHING_ERROR = 0.01, 1e-3

#: Steps that are tried for it.
TEACHERS = (*COARSE, Steps("rk4", 2), Steps("rk4", 4))


class Lesson(NamedTuple):
    """A batch, and what the full network makes of it."""

    batch: Batch
    target: Tensor


class Lessons:
    """Batches with the full network's outputs, from which any number of its reduced copies can learn.

    Law: the outputs for `exam` are those of the network with its own solver. They, and what stands before the ODE
    layers, are computed once for all students.

    Parameters
    ----------
    network
        The full network.
    fit
        Batches to learn from.
    exam
        Batches that are not learnt from; students are judged by them.
    layers
        Names of ODE layers in the network that students have reduced; they may take coarse steps to teach.
    augment
        What makes further samples: "mix", "none", a function from a batch's arguments to such arguments, or None for
        mixtures if they help.
    classes
        Whether the outputs are logits (batch, classes, …).
    seed
        Of further samples.

    Raises
    ------
    CalibrationError
        There are no batches to learn from, or none that are not.
    NonFiniteError
        The network's output is NaN.
    UnsupportedOperationError
        It is not one Tensor.
    ValueError
        `augment` is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        fit: Iterable[Batch],
        exam: Iterable[Batch],
        *,
        layers: Sequence[str] = (),
        augment: Augment = None,
        classes: bool = False,
        seed: int = 0,
    ):
        if not (augment in (None, "mix", "none") or callable(augment)):
            raise ValueError(
                'expected augment to be None, "mix", "none", or a function of the arguments of a batch that returns '
                f"such arguments, got {augment!r}"
            )
        self.network, self.layers, self.augment, self.seed = network, tuple(layers), augment, seed
        self.classes = classes
        self.memory = Memory()
        self._real, held_out = list(fit), list(exam)
        if not (self._real and held_out):
            raise CalibrationError(
                "expected two samples or more, of which some are held out, got one: give more, or pass validation="
            )
        self._teachers: dict[FixedSteps | None, nn.Module] = {None: network}
        self._rounds: dict[int, list[Batch]] = {0: self._real}
        self._answered: dict[tuple[FixedSteps | None, int], list[Lesson]] = {}
        self.exam = self._answers(held_out, None)

    @property
    def size(self) -> int:
        """Number of batches in a round."""
        return len(self._real)

    @property
    def samples(self) -> int:
        """Number of real samples."""
        return sum(batch.size for batch in self._real)

    @cached_property
    def rounds(self) -> int:
        """How many rounds of further batches there may be: 0 where there is nothing to mix, or no memory for it."""
        if self.augment == "none" or not (callable(self.augment) or any(map(_can_be_mixed, self._real))):
            return 0
        leaves = [leaf for batch in self._real for leaf in tree_leaves(batch.arguments) if isinstance(leaf, Tensor)]
        most = min(FURTHER, FURTHER_BYTES // max(sum(leaf.nbytes for leaf in leaves), 1))
        if self.augment is None:
            try:
                self._answers([self._further(self._real[0], 1)], None, real=False)
            except Exception:  # whatever the network says to mixtures, which nobody asked for
                return 0
        return most

    def teacher(self, loss: float) -> FixedSteps | None:
        """Return the cheapest coarse steps that may teach a student of this loss; None for the network's own solver."""
        allowed = min(TEACHING_ERROR, TEACHING_SHARE * loss)
        for steps, error in self._coarse_errors:
            if error <= allowed:
                with suppress(NonFiniteError, SolverError):
                    self.round(0, steps)
                    return steps
        return None

    def taught_by(self, steps: FixedSteps | None) -> str:
        """Return the full network's solver in words."""
        teacher = self._teachers[steps]
        names = {solver_name(cast(ODELayer, teacher.get_submodule(name))) for name in self.layers}
        return ", ".join(sorted(names)) or "its own solver"

    def round(self, made: int, steps: FixedSteps | None) -> list[Lesson]:
        """Return the real batches, or as many that are made of them, with the full network's outputs.

        Parameters
        ----------
        made
            0 for the real ones, else the number of the round, up to `rounds`.
        steps
            As of :meth:`teacher`.
        """
        if made not in self._rounds:
            self._rounds[made] = [self._further(batch, made) for batch in self._real]
        if (steps, made) not in self._answered:
            self._answered[steps, made] = self._answers(self._rounds[made], steps, real=made == 0)
        return self._answered[steps, made]

    @cached_property
    def scale(self) -> float:
        """Variance of the finite entries of the outputs, by which squared errors are divided."""
        targets = torch.cat([lesson.target.flatten() for lesson in self.exam]).double()
        targets = targets[targets.isfinite()]  # a network may mask its output with infinity
        return float(targets.var(correction=0)) or float(targets.square().mean()) or 1.0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the squared error of an output relative to the variance, where the target is finite.

        Of classes, the Kullback–Leibler divergence from the target's is added: alone it learns small data by heart, and
        without it, entries that decide no class count as much as those that do.
        """
        known = target.isfinite()
        error = (output[known] - target[known]).square().mean() / self.scale
        return error + _divergence(output, target) if self.classes else error

    @cached_property
    def _coarse_errors(self) -> list[tuple[FixedSteps, float]]:
        """Coarse steps that are cheaper than the network's own solver, and their errors in the exam."""
        if not self.layers:
            return []
        layer = min((cast(ODELayer, self.network.get_submodule(name)) for name in self.layers), key=_evaluations)
        intervals = len(layer.t) - 1
        costs: dict[FixedSteps, int] = {steps: steps.evaluations for steps in TEACHERS}
        if intervals > 1:
            costs |= {method: Steps(method, intervals).evaluations for method in STEP_METHODS}
        found: list[tuple[FixedSteps, float]] = []
        for steps in sorted(costs, key=lambda steps: costs[steps]):
            if costs[steps] < _evaluations(layer):
                found.append((steps, self._coarse_error(steps)))
                if found[-1][1] <= TEACHING_SHARE * TEACHING_ERROR:
                    break
        return found

    def _coarse_error(self, steps: FixedSteps) -> float:
        network = copied(self.network)
        for name in self.layers:
            set_solver(cast(ODELayer, network.get_submodule(name)), steps)
        self._teachers[steps] = network
        try:
            found = self._answers([batch for batch, _ in self.exam], steps)
        except (SolverError, NonFiniteError):
            return float("inf")
        errors = [float(self.loss(output, target)) for (_, output), (_, target) in zip(found, self.exam, strict=True)]
        return weighted(errors, self.exam)

    def _answers(self, batches: Sequence[Batch], steps: FixedSteps | None, real: bool = True) -> list[Lesson]:
        """Return the batches with the outputs of the full network that takes these steps."""
        network = self._teachers[steps]
        layers = [network.get_submodule(name) for name in self.layers]
        with evaluation(network), ExitStack() as stack:
            call: Callable[[Batch], Any] = partial(call_network, network)
            if layers:
                call = stack.enter_context(remembered(network, layers, batches[0], self.memory))
            return [Lesson(batch, _checked(call(batch), batch, real)) for batch in track(batches, "teacher")]

    def _further(self, batch: Batch, made: int) -> Batch:
        """Return a batch that is made of a real one."""
        seed = (self.seed * 1_000_003 + made) * 1_000_003 + batch.index
        if not callable(self.augment):
            return mixed(batch, torch.Generator().manual_seed(seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = self.augment(*batch.arguments)
        arguments = (found,) if isinstance(found, Tensor) else found
        if not isinstance(arguments, tuple | list) or len(arguments) != len(batch.arguments):
            raise CalibrationError(
                f"expected augment to return {len(batch.arguments)} arguments of the network, got "
                f"{', '.join(map(described, arguments)) if isinstance(arguments, tuple | list) else described(found)}: "
                "return a Tensor, or a tuple of as many arguments as it takes"
            )
        return replace(batch, arguments=tuple(arguments))


def mixed(batch: Batch, generator: torch.Generator) -> Batch:
    """Return convex combinations of a batch's samples with others of it, in the same shares for all arguments.

    Integers and truth values are those of the first sample; arguments without a batch stay as they are.
    """
    order = torch.randperm(batch.size, generator=generator)
    shares = torch.rand(batch.size, generator=generator, dtype=torch.float64)

    def mix(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        share = shares.to(tensor.real).reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor + share * (tensor[order.to(tensor.device)] - tensor)

    arguments = tuple(
        tree_map_only(Tensor, mix, argument) if flag else argument
        for argument, flag in zip(batch.arguments, batch.flags, strict=True)
    )
    return replace(batch, arguments=arguments)


def _divergence(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean divergence of class probabilities, of logits (batch, classes, …)."""
    found, expected = (logits.movedim(1, -1).flatten(0, -2).log_softmax(-1) for logits in (output, target))
    masked = expected.isinf()  # classes of no probability say nothing
    return F.kl_div(
        found.masked_fill(masked, 0), expected.masked_fill(masked, 0), reduction="batchmean", log_target=True
    )


def weighted(losses: Sequence[float], lessons: Sequence[Lesson]) -> float:
    """Return the mean of the losses of batches over their samples; infinity if it is not finite."""
    sizes = [lesson.batch.size for lesson in lessons]
    value = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    return value if math.isfinite(value) else math.inf


def _can_be_mixed(batch: Batch) -> bool:
    held = [argument for argument, flag in zip(batch.arguments, batch.flags, strict=True) if flag]
    return batch.size > 1 and any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(held))


def _checked(output: Any, batch: Batch, real: bool) -> Tensor:
    """Return a full network's output, from which there is something to learn."""
    if not isinstance(output, Tensor):
        raise UnsupportedOperationError(
            f"expected a network whose output is one Tensor, got {type(output).__name__}: wrap it in a module that "
            "returns the part that counts"
        )
    if real and bool(output.isnan().any()):
        raise NonFiniteError(
            f"expected a full network with finite outputs to learn from, got NaN in batch {batch.index}: clean the data"
        )
    return output


def _evaluations(layer: ODELayer) -> float:
    """Evaluations of a layer's ODE function in a solve with fixed steps; infinity for all others."""
    steps = own_steps(layer)
    return math.inf if steps is None else steps.evaluations
