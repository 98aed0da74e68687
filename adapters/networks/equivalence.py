"""Whether what stands in for a module does the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.solved_block import SolvedBlock
from torchmor.adapters.networks.call_forms import ADVICE
from torchmor.adapters.networks.evaluation import call_network, recorded_calls
from torchmor.adapters.networks.solve_calls import ModuleCall, SolveCall
from torchmor.adapters.networks.solve_inputs import HIDDEN
from torchmor.adapters.networks.variants import Variant
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import TorchmorError, UnsupportedOperationError

#: A stand-in gives the module's values to so many units of rounding, or of tolerance where the solver is another.
ALLOWED = 1e3
ALLOWED_TOLERANCES = 10.0

#: What the rest of the network can make of that, relative to its output: so many √eps, or so much with tolerances.
ALLOWED_ROOTS, ALLOWED_OUTPUT = 10.0, 0.05


@dataclass(frozen=True, eq=False)
class Run:
    """What a network did with some arguments.

    Parameters
    ----------
    variant
        The arguments.
    output
        What it returned.
    calls
        The calls of its modules that solve.
    """

    variant: Variant
    output: Any
    calls: list[ModuleCall]


def check_block(name: str, block: SolvedBlock, calls: Sequence[ModuleCall]) -> None:
    """Check that the block gives what the module gave."""
    with evaluation(block):
        for call in calls:
            if block.form.input_attribute is not None:
                parent, _, attribute = block.form.input_attribute.rpartition(".")
                owner = attrgetter(parent)(block.source) if parent else block.source
                setattr(owner, attribute, call.solves[0].input)
            try:
                output = block(*call.args, **call.kwargs)
            except TorchmorError:
                raise
            except Exception as error:  # the function may fail in any way where it reads what is not there
                raise UnsupportedOperationError(
                    f"the solve of {name!r} fails when it is repeated outside of it ({type(error).__name__}: {error}): "
                    f"{HIDDEN}"
                ) from error
            expected, solve = call.output, call.solves[0]
            if isinstance(expected, tuple):
                expected, output = expected[-1], output[-1]
            _equal(name, output, expected, solve)


def _equal_outputs(name: str, output: Any, call: ModuleCall) -> None:
    for value, expected in zip(tree_leaves(output), tree_leaves(call.output), strict=True):
        if isinstance(expected, Tensor) and expected.is_floating_point():
            _equal(name, value, expected, call.solves[0])


def _equal(name: str, output: Tensor, expected: Tensor, solve: SolveCall) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    allowed = ALLOWED * torch.finfo(expected.dtype).eps * max(scale, 1e-30)
    if not solve.exact:  # its coefficients are float32, and its steps its own
        allowed = max(allowed, ALLOWED * torch.finfo(torch.float32).eps * scale)
        if solve.method == "dopri5":
            allowed = max(allowed, ALLOWED_TOLERANCES * (solve.atol + solve.rtol * scale))
    same_shape = isinstance(output, Tensor) and output.shape == expected.shape
    error = float((output - expected).abs().max()) if same_shape and expected.numel() else 0.0
    if not same_shape or not error <= allowed:
        how = f"by up to {error:.1e}, with values up to {scale:.1e} (allowed: {allowed:.1e})"
        how = how if same_shape else "in shape"
        raise UnsupportedOperationError(
            f"the solve of {name!r}, repeated outside of it on the same arguments, differs {how}: {HIDDEN}"
        )


def check_runs(
    replaced: nn.Module, runs: Sequence[Run], name: str, exact: bool, own: Sequence[ModuleCall] = ()
) -> None:
    """Check that the network with a stand-in gives what the network gave; random numbers are the same in both."""
    module = dict(replaced.named_modules(remove_duplicate=False))[name]
    with evaluation(replaced), recorded_calls(module) as calls:
        for run in runs:
            torch.manual_seed(0)
            _check_output(call_network(replaced, run.variant.batch), run.output, name, exact)
    for found, call in zip(calls, own, strict=bool(own)):
        _equal_outputs(name, found.output, call)


def _check_output(found: Any, output: Any, name: str, exact: bool) -> None:
    for value, expected in zip(tree_leaves(found), tree_leaves(output), strict=True):
        if isinstance(expected, Tensor) and expected.is_floating_point() and expected.isfinite().all():
            same_shape = value.shape == expected.shape
            size = expected.norm().clamp(min=torch.finfo(expected.dtype).tiny)
            error = float((value - expected).norm() / size) if same_shape else float("inf")
            allowed = ALLOWED_ROOTS * torch.finfo(expected.dtype).eps ** 0.5 if exact else ALLOWED_OUTPUT
            if not error <= allowed:
                raise UnsupportedOperationError(
                    f"the network's output differs by {100 * error:.2g} % with an ODELayer in the place of {name!r}, "
                    "which itself returns the same: the network reads an attribute that the module sets in its "
                    "forward, or the ODE function jumps just at a time of the solver's steps, where rounding decides; "
                    f"return it instead, let it jump between steps, or {ADVICE}"
                )
