"""Layers of torchdyn: what a NeuralODE solves, in the terms of torchdiffeq."""

import inspect
import sys
from typing import Any

import torch
from torch import nn

from torchmor.adapters.solving.solve_settings import METHODS
from torchmor.engine.errors import UnsupportedOperationError

#: torchdyn's solvers → methods that do the same steps. The step sizes of adaptive ones are chosen in another way, so
#: that their results are the same within tolerances only; Tsitouras' pair has no counterpart in torchdiffeq, and
#: Dormand and Prince's, of the same orders, stands in for it.
METHOD_NAMES = {
    "Euler": "euler",
    "Midpoint": "midpoint",
    "RungeKutta4": "rk4_classic",
    "DormandPrince45": "dopri5",
    "Tsitouras45": "dopri5",
}


def is_neural_ode(module: nn.Module) -> bool:
    """Whether a module is torchdyn's NeuralODE; torchdyn is not imported for that."""
    torchdyn = sys.modules.get("torchdyn.core.neuralde")
    return torchdyn is not None and isinstance(module, torchdyn.NeuralODE)


def solve(module: nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> dict[str, Any]:
    """Return what one call of a NeuralODE solved, as the fields of a SolveCall.

    Parameters
    ----------
    module
        The NeuralODE.
    method
        "forward" or "trajectory", whichever was called.
    args, kwargs
        Arguments of the call.
    output
        What it returned: (times, states), or states alone.
    """
    bound = inspect.signature(getattr(type(module), method)).bind(module, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    times = module.t_span if given["t_span"] is None else given["t_span"]
    times = torch.linspace(0, 1, 2) if times is None else times
    name = type(module.solver).__name__
    return {
        "func": module.vf,
        "y0": given["x"],
        "t": torch.as_tensor(times).detach(),
        "method": METHOD_NAMES.get(name, name),
        "rtol": module.rtol,
        "atol": module.atol,
        "options": {},
        "adjoint": module.sensitivity != "autograd",
        "states": output[1] if isinstance(output, tuple) else output,
        "exact": False,
    }


def check(module: nn.Module) -> None:
    """Check that a NeuralODE solves y' = f(t, y) by a solver that torchmor has.

    Raises
    ------
    UnsupportedOperationError
        It does something else.
    """
    name = type(module.solver).__name__
    if METHOD_NAMES.get(name) not in METHODS:
        known = ", ".join(solver for solver, method in METHOD_NAMES.items() if method in METHODS)
        raise UnsupportedOperationError(
            f"expected a torchdyn solver that torchmor has, one of {known}, got {name}: build the NeuralODE with one "
            'of these (solver="dopri5"), or put ODELayer(model.vf, …) in its place'
        )
    if module.integral_loss is not None:
        raise UnsupportedOperationError(
            "expected a NeuralODE whose state is y alone, got one with an integral_loss, which torchdyn adds to the "
            "state: build it without for inference"
        )


def evaluations(module: Any) -> int:
    """Return how often a NeuralODE has evaluated its vector field."""
    return int(module.vf.nfe)
