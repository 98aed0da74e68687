"""Fixed steps as solvers: the rivals of every reduction, and its companions."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, cast

from torch import nn

from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.engine.grids import equal_step_size
from torchmor.engine.tableaux import TABLEAUX

_WORDS = {
    "euler": "Euler",
    "rk4": "RK4",
    "rk4_classic": "classical RK4",
    "bosh3_fixed": "Bogacki–Shampine",
    "dopri5_fixed": "Dormand–Prince",
}


@dataclass(frozen=True)
class Steps:
    """A number of equal steps of a fixed-step method.

    Parameters
    ----------
    method
        Key of :data:`~torchmor.engine.tableaux.TABLEAUX`.
    count
        Number of steps over the layer's whole time.

    Raises
    ------
    ValueError
        The method is unknown, or the count is no positive integer.
    """

    method: str
    count: int

    def __post_init__(self) -> None:
        if self.method not in TABLEAUX:
            raise ValueError(f"expected a method with fixed steps, one of {', '.join(TABLEAUX)}, got {self.method!r}")
        if not isinstance(self.count, Integral) or isinstance(self.count, bool) or self.count < 1:
            raise ValueError(f"expected a number of steps of {self.method!r}, 1 or more, got {self.count!r}")
        object.__setattr__(self, "count", int(self.count))

    @property
    def evaluations(self) -> int:
        """Evaluations of the ODE function."""
        return self.count * len(TABLEAUX[self.method].b)

    def __str__(self) -> str:
        return f"{self.count} {_WORDS.get(self.method, self.method)} step{'s' if self.count > 1 else ''}"


#: Steps, or the name of their method: then the solver steps from each output time of the layer to the next.
FixedSteps = Steps | str

#: Methods whose steps from each output time of a layer to the next are tried.
STEP_METHODS = ("euler", "midpoint", "rk4")

#: The full network is always shown with these.
COARSE = (Steps("euler", 1), Steps("euler", 2), Steps("euler", 4), Steps("midpoint", 1), Steps("rk4", 1))


def fixed_steps(solver: FixedSteps | Sequence[Any] | None) -> FixedSteps | None:
    """Return a solver that a user asked for: None, a method's name, a pair (method, count), or Steps.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if solver is None or isinstance(solver, Steps):
        return solver
    if isinstance(solver, str) and solver in TABLEAUX:
        return solver
    if isinstance(solver, Sequence) and not isinstance(solver, str) and len(solver) == 2:
        return Steps(*solver)
    raise ValueError(
        f"expected solver to be None, a method with fixed steps, a pair (method, number of steps) or Steps, got "
        f"{solver!r}: the methods are {', '.join(TABLEAUX)}"
    )


def set_solver(layer: SolvingLayer, solver: FixedSteps) -> None:
    """Let an ODE layer, full or reduced, take these steps instead of its own solver.

    Gradients go through the steps then, not by the adjoint method.
    """
    options = {}
    if isinstance(solver, Steps):
        options["step_size"] = equal_step_size(abs(layer.t[-1] - layer.t[0]), solver.count)
    method = solver.method if isinstance(solver, Steps) else solver
    layer.settings = replace(layer.settings, method=method, options=options, adjoint=False)


def solver_name(layer: SolvingLayer) -> str:
    """Return an ODE layer's own solver in a few words; ``str(layer.settings)`` says all."""
    steps = own_steps(layer)
    return layer.method if steps is None else str(steps)


def own_steps(layer: SolvingLayer) -> Steps | None:
    """Return the fixed steps of an ODE layer's own solver, as if they were equal; None if it has others."""
    if layer.method not in TABLEAUX:
        return None
    size = layer.options.get("step_size")
    count = len(layer.t) - 1 if size is None else abs(layer.t[-1] - layer.t[0]) / size
    return Steps(layer.method, math.ceil(count - 1e-6))


def solved_by(network: nn.Module, name: str, solver: FixedSteps | None) -> nn.Module:
    """Return a copy of a network whose ODE layer takes these steps; the network itself for None."""
    if solver is None:
        return network
    network = copy.deepcopy(network)
    set_solver(cast(SolvingLayer, network.get_submodule(name)), solver)
    return network
