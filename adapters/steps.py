"""Coarse solvers: the rivals of every reduction, and its companions."""

import copy
import math
from dataclasses import dataclass

from torch import nn

from torchmor.adapters.solve_request import SolvingLayer
from torchmor.engine.tableaux import TABLEAUX


@dataclass(frozen=True)
class Steps:
    """A number of equal steps of a fixed-step method.

    Parameters
    ----------
    method
        Name in torchdiffeq.
    count
        Number of steps over the layer's whole time.
    """

    method: str
    count: int

    @property
    def evaluations(self) -> int:
        """Evaluations of the ODE function."""
        return self.count * len(TABLEAUX[self.method].b)

    def __str__(self):
        name = {"euler": "Euler", "rk4": "RK4"}.get(self.method, self.method)
        return f"{self.count} {name} step{'s' if self.count > 1 else ''}"


#: The full network is always shown with these.
COARSE = (Steps("euler", 1), Steps("euler", 2), Steps("euler", 4), Steps("midpoint", 1), Steps("rk4", 1))


def set_solver(layer: SolvingLayer, steps: Steps) -> None:
    """Let an ODE layer, full or reduced, take these steps instead of its own solver."""
    layer.method = steps.method
    layer.options = {"step_size": abs(layer.t[-1] - layer.t[0]) / steps.count}


def solver_name(layer: SolvingLayer) -> str:
    """Return an ODE layer's own solver in a few words; ``str(layer.settings)`` says all."""
    if layer.method not in TABLEAUX:
        return layer.method
    size = layer.options.get("step_size")
    count = len(layer.t) - 1 if size is None else abs(layer.t[-1] - layer.t[0]) / size
    return str(Steps(layer.method, math.ceil(count - 1e-6)))


def solved_by(network: nn.Module, name: str, steps: Steps | None) -> nn.Module:
    """Return a copy of a network whose ODE layer takes these steps; the network itself for None."""
    if steps is None:
        return network
    network = copy.deepcopy(network)
    set_solver(network.get_submodule(name), steps)
    return network
