"""Gradients of a network's output with respect to the states of its ODE layer, along calibration trajectories."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import copied, find_layer, with_layers
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.networks.progress import phases, track
from torchmor.adapters.reduction.snapshots import SnapshotReservoir
from torchmor.adapters.solving.solve_settings import FIXED_GRID_METHODS
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import CalibrationError, UnsupportedOperationError
from torchmor.engine.grids import step_grid

#: Gradients are taken at the ends of about this many parts of a trajectory.
SEGMENTS = 8

#: The midpoint rule that stands in for an adaptive solver agrees with it to this, in the final state.
STAND_IN_RTOL = 1e-2

#: Part of white noise in the directions of class probabilities, so that ties leave no direction unseen.
FISHER_NOISE = 0.1

Objective = Callable[[Any], Tensor]


def values_objective(generator: torch.Generator) -> Objective:
    """Return a random functional of the output, of one tensor or several, the same in all its entries: for regression.

    The covariance of its gradients is the squared Jacobian of the output.
    """

    def objective(output: Any) -> Tensor:
        parts = [(leaf * _normal(leaf, generator)).sum() for leaf in tree_leaves(output) if _is_real(leaf)]
        return torch.stack(parts).sum()

    return objective


def classes_objective(generator: torch.Generator) -> Objective:
    """Return a random functional of logits (batch, classes, …), weighted by the Fisher metric of their classes.

    Its covariance is ``diag(p) − p pᵀ + ε² I`` for class probabilities p: that of a class drawn from p, less its mean.
    """

    def objective(output: Tensor) -> Tensor:
        p = output.detach().double().softmax(1).movedim(1, -1)
        drawn = torch.multinomial(p.reshape(-1, p.shape[-1]).cpu(), 1, generator=generator).reshape(p.shape[:-1])
        weights = nn.functional.one_hot(drawn.to(p.device), p.shape[-1]) - p
        weights = weights.movedim(-1, 1).to(output) + FISHER_NOISE * _normal(output, generator)
        return (output * weights).sum()

    return objective


def output_gradients(
    network: nn.Module,
    name: str,
    calibration: Calibration,
    objective: Objective,
    *,
    max_gradients: int = 6000,
    progress: bool = False,
) -> np.ndarray:
    """Return gradients of a functional of the network's output with respect to states along the trajectories.

    Law: for a layer with a fixed-step solver, a gradient at a time is that of ``objective(rest(solve from there))``.
    The states between are kept in the graph by solving part after part, so that one backward pass gives the gradients
    at all of them. Adaptive solvers are stood in for by midpoint steps, as many as reproduce the final state.

    Parameters
    ----------
    network, name
        The network, in eval mode and its own dtype, and its ODE layer.
    calibration
        Inputs.
    objective
        Output → scalar, the sum over samples.
    max_gradients
        Most gradients to keep, thinned evenly over samples and times.
    progress
        Show a progress bar, if standard error is a terminal.

    Returns
    -------
    Array (n, l), float64.

    Raises
    ------
    UnsupportedOperationError
        The output does not depend on the layer's states in a way that torch can differentiate.
    """
    network = copied(network).requires_grad_(False)
    layer = _SegmentedLayer(find_layer(network, name))
    network = with_layers(network, {name: layer})
    reservoir = SnapshotReservoir(max_gradients)
    with evaluation(network), torch.enable_grad(), phases(progress):
        for batch in track(calibration, "gradients", calibration.total_batches()):
            layer.states.clear()
            reservoir.start(batch)
            output = call_network(network, batch)
            if not layer.states:
                raise CalibrationError(f"expected the network to call its ODE layer {name!r}, got no call")
            try:
                found = torch.autograd.grad(objective(output), layer.states, allow_unused=True, materialize_grads=True)
            except (RuntimeError, AttributeError, TypeError, IndexError) as error:
                raise UnsupportedOperationError(
                    "expected an output of the network that can be differentiated in the states of its ODE layer, "
                    f'got {type(error).__name__}: {error}; give objective=lambda output: …, or use basis="pod"'
                ) from error
            for gradient in found:
                reservoir.observe(torch.zeros(()), gradient, None)
    return reservoir.snapshots().y


class _SegmentedLayer(nn.Module):
    """An ODE layer whose states between are leaves of nothing: each can be differentiated in."""

    def __init__(self, layer: ODELayer):
        super().__init__()
        self.layer = layer
        self.states: list[Tensor] = []
        settings = layer.settings
        interpolated = settings.output == "trajectory" and "step_size" in settings.options
        self.own_grid = settings.method in FIXED_GRID_METHODS and not interpolated
        self.steps = 1
        self.checked = self.own_grid
        method = settings.method if self.own_grid else "midpoint"
        options = {k: v for k, v in settings.options.items() if k in ("perturb", "max_order")} if self.own_grid else {}
        self.segment = ODELayer(
            layer.func,
            method=method,
            options=options,
            output="final",
            input_times=settings.input_times or settings.t,
            interpolation=settings.interpolation,
        )

    def forward(self, y0: Tensor, u: Any = None, t: Sequence[float] | Tensor | None = None) -> Tensor:
        """Solve part after part."""
        settings = self.layer.settings
        times = [float(time) for time in (settings.t if t is None else t)]
        if not self.checked:
            self._choose_steps(y0.detach(), u, times)
        y = y0 if y0.requires_grad else y0.detach().requires_grad_()  # it may come from an earlier call of the layer
        states, at_times = [y], [y]
        for part in self._parts(times):
            y = self.segment(y, u, part)
            states.append(y)
            if part[-1] in times:
                at_times.append(y)
        self.states += states
        return torch.stack(at_times) if settings.output == "trajectory" else y

    def _parts(self, times: list[float]) -> list[list[float]]:
        """Return the grids of the parts; each starts where the one before ends, and output times are ends."""
        if self.own_grid:
            sign = 1.0 if times[-1] > times[0] else -1.0
            step_size = self.layer.settings.options.get("step_size")
            grid = [sign * time for time in step_grid([sign * time for time in times], step_size)]
        else:
            pieces = max(1, -(-SEGMENTS // (len(times) - 1))) * self.steps
            grid = [a + (b - a) * i / pieces for a, b in pairwise(times) for i in range(pieces)] + [times[-1]]
        stride = max(1, (len(grid) - 1) // SEGMENTS)
        ends = sorted({*range(0, len(grid), stride), len(grid) - 1})
        if self.layer.settings.output == "trajectory":
            ends = sorted({*ends, *(i for i, time in enumerate(grid) if time in times)})
        return [grid[a : b + 1] for a, b in pairwise(ends)]

    def _choose_steps(self, y0: Tensor, u: Any, times: list[float]) -> None:
        with torch.no_grad():
            whole = replace(self.layer.settings, output="final")
            exact = ODELayer(self.layer.func, **vars(whole))(y0, u, times)
            while self.steps < 64:
                y = y0
                for part in self._parts(times):
                    y = self.segment(y, u, part)
                if bool((y - exact).norm() <= STAND_IN_RTOL * exact.norm()):
                    break
                self.steps *= 2
        self.checked = True


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
