"""`find_ode_layers`: which modules of a network solve ODEs, and whether they can be reduced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.own_forward import own_form
from torchmor.adapters.layers.placing import copied, find_layer
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.layers.solved_block import CallForm, SolvedBlock
from torchmor.adapters.networks import torchdyn_layers
from torchmor.adapters.networks.batching import find_batched
from torchmor.adapters.networks.calibration import Batch, length
from torchmor.adapters.networks.difference import Difference
from torchmor.adapters.networks.equivalence import Run
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.networks.first_states import check_traceable
from torchmor.adapters.networks.solve_calls import ModuleCall, SolveCall, watched
from torchmor.adapters.networks.stand_in import replaced, run_variants
from torchmor.adapters.networks.timing import now
from torchmor.adapters.networks.variants import variants
from torchmor.adapters.solving.solve_settings import ADAPTIVE_METHODS
from torchmor.adapters.solving.steps import COARSE, Steps, solved_by, solver_name
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import CalibrationError, TorchmorError
from torchmor.engine.stages import StageChain
from torchmor.engine.text_table import text_table

#: The share of run time is the median of so many passes.
TIMED_PASSES = 3

#: What a module returns that goes on to run its own forward.
OWN = "by its own forward"

#: Coarse steps are adequate if the network's output differs by so much at most, relative to its size.
ADEQUATE = 0.02

#: The share of the states' energy that a rank may leave out, and of how many samples and times it is taken.
LEFT_OUT, RANK_SAMPLES, RANK_TIMES = 1e-4, 128, 4

#: States and stages up to this size are evaluated in hardly any time, and layers below this share of it do not matter.
SMALL, LEAST_SHARE = 64, 0.1

_HEADINGS = (
    "name",
    "kind",
    "ODE function",
    "state",
    "solver",
    "output",
    "evaluations",
    "time",
    "enough steps",
    "rank",
    "can be reduced",
)


@dataclass(frozen=True)
class FoundLayer:
    """A module that solves an ODE.

    Parameters
    ----------
    name
        Its name in the network, as `reduce_network` takes it; "" for the network itself.
    kind
        "ODELayer", "torchdiffeq" for a module that calls it, or "torchdyn" for its NeuralODE.
    function
        Name of the ODE function's module in the network, or of its class or function if it is none of the network's.
    state_shape
        Shape of one sample's state.
    solver
        The solver in words.
    output
        What the module returns: "final", "trajectory", or which times in which order of axes; "by its own forward"
        where it goes on to compute its outputs itself; "" where it is unknown.
    evaluations
        Evaluations of the ODE function in one forward pass of the network.
    time_share
        Share of the solves in the network's run time, between 0 and 1.
    obstacle
        Why it cannot be reduced, and what to do; "" if it can.
    adequate
        The cheapest coarse steps, cheaper than its solver, that change the network's output on the example by at most
        2 %, in words; "" if none that were tried do.
    energy_rank
        How many dimensions hold 99.99 % of the variance of the states along the solve; None where the example has too
        few samples to tell.
    advice
        Whether it can profit, or why not, and what else to do.
    """

    name: str
    kind: str
    function: str
    state_shape: tuple[int, ...]
    solver: str
    output: str
    evaluations: int
    time_share: float
    obstacle: str
    adequate: str
    energy_rank: int | None
    advice: str

    @property
    def reducible(self) -> bool:
        """Whether `reduce_network` takes it as it is."""
        return not self.obstacle

    def __str__(self) -> str:
        return str(FoundLayers([self]))


class FoundLayers(list[FoundLayer]):
    """A list of :class:`FoundLayer` that prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "no module solves an ODE with torchdiffeq, torchdyn or ODELayer on these arguments"
        rows = [_HEADINGS] + [
            (
                repr(one.name),
                one.kind,
                one.function,
                "×".join(map(str, one.state_shape)),
                one.solver,
                one.output or "-",
                str(one.evaluations),
                f"{100 * one.time_share:.0f} %",
                one.adequate or "-",
                "-" if one.energy_rank is None else str(one.energy_rank),
                "yes" if one.reducible else "no",
            )
            for one in self
        ]
        said = [f"{one.name!r}: {words}" for one in self for words in (one.obstacle, one.advice) if words]
        return "\n".join(text_table(rows) + said)


def find_ode_layers(network: nn.Module, *example: Any) -> list[FoundLayer]:
    """List the modules of a network that solve ODEs, with what they cost and what a reduction could save.

    A copy of the network runs on the example in eval mode. Solves are found as they happen, so it does not matter how
    torchdiffeq was imported or where it is called; a solve belongs to the innermost module whose forward is running.
    Each is repeated outside of its module, and its ODE function traced, to see whether it can be reduced. What that
    could save is estimated: from the sizes of state and stages, the dimensions that the states take up, the layer's
    share of the time, and coarse steps that would do as well.

    Parameters
    ----------
    network
        The network; it is not changed.
    *example
        Arguments of one call, with at least two samples if possible, and a hundred to tell more.

    Returns
    -------
    list
        A :class:`FoundLayer` for each module, in the order in which they first solve; it prints as a table.

    Raises
    ------
    CalibrationError
        The network does not take these arguments.
    """
    if all(length(argument) is None for argument in example):
        raise CalibrationError(
            "expected the arguments of one call of the network, with a Tensor (batch, …) among them, got "
            f"{', '.join(type(argument).__name__ for argument in example) or 'none'}"
        )
    scratch = copied(network).eval()
    try:
        batched = find_batched(scratch, [example])
    except CalibrationError:  # it may still have layers that can be reduced, when whole batches are
        batched = (False,) * len(example)
    size = next((length(argument) or 1 for argument, flag in zip(example, batched, strict=True) if flag), 1)
    batch = Batch(example, np.arange(size), 0, batched)
    with evaluation(scratch):
        runs = run_variants(scratch, variants([batch]))
        names = dict.fromkeys(c.name for c in runs[0].calls if not isinstance(c.module, ReducedODELayer))
        shares = _time_shares(scratch, batch, names)
        return FoundLayers(_found(scratch, name, runs, shares[name]) for name in names)


def _evaluations(calls: Sequence[ModuleCall], name: str) -> int:
    return sum(solve.evaluations for call in calls if call.name == name for solve in call.solves)


def _time_shares(network: nn.Module, batch: Batch, names: Collection[str]) -> dict[str, float]:
    shares: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(TIMED_PASSES if names else 0):
        with watched(network, shares) as calls:
            started = now()
            call_network(network, batch)
            total = now() - started
        for name, found in shares.items():
            found.append(sum(solve.seconds for call in calls if call.name == name for solve in call.solves) / total)
    return {name: median(found) for name, found in shares.items()}


def _found(network: nn.Module, name: str, runs: Sequence[Run], share: float) -> FoundLayer:
    call = next(call for call in runs[0].calls if call.name == name)
    solve, module = call.solves[0], call.module
    func, output, obstacle, layer = solve.func, "", "", None
    kind = "torchdyn" if torchdyn_layers.is_neural_ode(module) else "torchdiffeq"
    batch_dims, evaluations = 1, _evaluations(runs[0].calls, name)
    steps, chain, rank, advice = None, None, None, []
    y0 = solve.y0 if isinstance(solve.y0, Tensor) else solve.y0[0]
    try:
        if isinstance(module, ODELayer):
            kind, func, layer, output = "ODELayer", module.func, module, module.output
            found, layer_name = network, name
        else:
            found, layer_name = replaced(network, name, module, runs)
            layer, block = find_layer(found, layer_name), found.get_submodule(name)
            form = block.form if isinstance(block, SolvedBlock) else own_form(block)
            batch_dims = 1 if form is None else form.batch_dims
            output = _output_words(form) if isinstance(form, CallForm) else layer.output if form is None else OWN
        steps = _adequate_steps(found, layer_name, solve.evaluations, runs[0])
        chain = check_traceable(found, layer, runs[0].variant.batch)
    except TorchmorError as error:
        obstacle = str(error)
    except Exception as error:  # of the user's code, at an example of another size: it must not hide the other layers
        obstacle = f"its ODE function fails on part of the example ({type(error).__name__}: {error})"
    if layer is not None and chain is not None:
        rank = _energy_rank(found, layer, runs[0].variant.batch, evaluations)
        advice.append(_profit(share, chain, rank))
    if steps is not None:
        advice.append(
            f"{steps} would do: the network's output stays the same within {100 * ADEQUATE:g} %, with "
            f"{solve.evaluations / steps.evaluations:.3g} times fewer evaluations"
        )
    return FoundLayer(
        name,
        kind,
        _function_name(network, func),
        tuple(y0.shape[batch_dims:]),
        _solver_words(call.module, solve, layer),
        output,
        evaluations,
        share,
        obstacle,
        "" if steps is None else str(steps),
        rank,
        "; ".join(advice),
    )


def _adequate_steps(network: nn.Module, name: str, evaluations: int, run: Run) -> Steps | None:
    """Return the cheapest coarse steps of less evaluations that give the network's output, within `ADEQUATE`."""
    cheaper = [steps for steps in COARSE if steps.evaluations < evaluations]
    for steps in sorted(cheaper, key=lambda steps: steps.evaluations):
        with suppress(Exception):  # whatever the user's code says to states that diverge
            coarse, difference = solved_by(network, name, steps), Difference()
            with evaluation(coarse):
                torch.manual_seed(0)  # as in the run
                output = call_network(coarse, run.variant.batch)
            for exact, value in zip(tree_leaves(run.output), tree_leaves(output), strict=True):
                if isinstance(exact, Tensor) and exact.is_floating_point():
                    difference.add(exact, value)
            if difference.size > 0 and difference.relative <= ADEQUATE:
                return steps
    return None


def _energy_rank(network: nn.Module, layer: ODELayer, batch: Batch, evaluations: int) -> int | None:
    """Return how many dimensions hold nearly all variance of the states; None if that could be for want of samples."""
    seen, states = 0, []

    def observe(t: Tensor, y: Tensor, u: Tensor | None) -> None:
        nonlocal seen
        if seen % -(-evaluations // RANK_TIMES) == 0:  # not all: they might not fit into memory
            states.append(y[:RANK_SAMPLES].flatten(1).double())
        seen += 1

    with evaluation(network), layer.observe(observe):
        call_network(network, batch)
    if len({y.shape[1] for y in states}) != 1 or not all(y.isfinite().all() for y in states):
        return None
    centred = torch.cat(states) - torch.cat(states).mean(0)
    gram = centred @ centred.mT if len(centred) < centred.shape[1] else centred.mT @ centred
    energies = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
    left = energies.sum() - energies.cumsum(0)
    rank = int((left > LEFT_OUT * energies.sum()).sum()) + 1
    return rank if 2 * rank <= len(states[0]) else None


def _profit(share: float, chain: StageChain, rank: int | None) -> str:
    """Return in words whether a reduction can save time."""
    n, widest = chain.state_size, max((stage.size for stage in chain.stages), default=0)
    if share < LEAST_SHARE:
        return f"a reduction saves little: {100 * share:.0f} % of the time is spent in the layer"
    if max(n, widest) <= SMALL:
        return f"a reduction saves little: a state of {n} entries and stages of at most {widest} are small already"
    if n <= SMALL:
        return f"can profit: stages of {widest} entries can shrink, while the state of {n} is small already"
    if rank is None:
        return f"can profit if the states lie near a small subspace of their {n} dimensions: give more samples to tell"
    if 2 * rank > n:
        return f"a reduction saves little: the states take up {rank} of their {n} dimensions"
    return f"can profit: {rank} of {n} dimensions hold 99.99 % of the variance of the states"


def _function_name(network: nn.Module, func: Any) -> str:
    owner = func if isinstance(func, nn.Module) else getattr(func, "__self__", None)
    for name, module in network.named_modules():
        if module is owner and name:
            return name if owner is func else f"{name}.{func.__name__}"
    return getattr(func, "__qualname__", type(func).__name__).replace("<locals>.", "")


def _solver_words(module: nn.Module, solve: SolveCall, layer: ODELayer | None) -> str:
    words = solve.method if layer is None else solver_name(layer)
    if torchdyn_layers.is_neural_ode(module):
        words = f"torchdyn's {type(module.solver).__name__} as {words}"
    if solve.method in ADAPTIVE_METHODS:
        words += f", rtol {solve.rtol:g}, atol {solve.atol:g}"
    return f"{words}, adjoint" if solve.adjoint else words


def _output_words(form: CallForm) -> str:
    if form.times_kept is None:
        words = f"trajectory from state {form.times_skipped}" if form.times_skipped else "trajectory"
    else:
        words = "final" if form.times_kept == -1 else f"states {form.times_kept}"
    words += "" if form.entries is None else f", entries {form.entries[0]} to {sum(form.entries) - 1}"
    words += "" if form.axes is None else f", axes {form.axes}"
    return f"(times, {words})" if form.times_returned else words
