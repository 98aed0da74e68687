"""One step of a reduced layer's ODE, with the loop outside."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from torchmor.adapters.export.graph import check_steps
from torchmor.adapters.layers.chain_module import ChainModule
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.solving.runge_kutta import solve_fixed_step
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.engine.errors import ExportError, InputError
from torchmor.engine.grids import step_grid
from torchmor.engine.tableaux import TABLEAUX


class SingleStep(nn.Module):
    """One step ``(t, z, u) ↦ z_next`` of a reduced ODE, made by :func:`single_step`.

    Parameters
    ----------
    ode
        The reduced ODE function.
    settings
        The layer's, which name the method.
    step_size
        Step size h, negative for backward integration.
    times
        Times at which the layer's steps start.

    Attributes
    ----------
    nodes
        Fractions c_i of a step at which f is evaluated: u may be given there.
    """

    def __init__(self, ode: ChainModule, settings: SolveSettings, step_size: float, times: Sequence[float]):
        super().__init__()
        self.ode, self.settings, self.step_size, self.times = ode, settings, step_size, tuple(times)
        self.nodes = TABLEAUX[settings.method].c

    def forward(self, t: Tensor | float, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the reduced state at t + h.

        Parameters
        ----------
        t
            Time at the start of the step, a number or a 0-dim tensor.
        z
            Reduced state (batch, r).
        u
            Input (batch, p), held for the step, or (batch, len(nodes), p), its values at t + nodes · h. None where the
            ODE reads none.

        Returns
        -------
        Tensor (batch, r).

        Raises
        ------
        InputError
            u is missing, superfluous or of the wrong shape.
        """
        self._check(u)
        values = iter([u] * len(self.nodes) if u is None or u.ndim == 2 else u.unbind(1))

        def f(s: Tensor, z: Tensor) -> Tensor:  # s counts from the start of the step
            return self.ode(z, next(values), t + s)

        return solve_fixed_step(f, z, (0.0, self.step_size), TABLEAUX[self.settings.method], final=True)

    def _check(self, u: Tensor | None) -> None:
        size = self.ode.input_size
        if u is None and not self.ode.reads_input:
            return
        shapes = f"(batch, {size}) or (batch, {len(self.nodes)}, {size})"
        if u is None:
            raise InputError(f"expected an input u of shape {shapes}, got none: call step(t, z, u)")
        if not size:
            raise InputError("expected no input u, because the ODE reads none, got u: call step(t, z)")
        if tuple(u.shape[1:]) not in ((size,), (len(self.nodes), size)):
            raise InputError(
                f"expected an input u of shape {shapes}, got {tuple(u.shape)}: give u at t, or at the nodes"
            )

    def extra_repr(self) -> str:
        """Return method and step size for ``repr(step)``."""
        return f"one step of {self.settings.method}, h = {self.step_size:g}"


def single_step(layer: ReducedODELayer) -> SingleStep:
    """Return one step of a reduced layer's ODE, of its own method and step size, to loop over outside.

    Law: with ``step = single_step(layer)``, ``z = layer.encode(y0.flatten(1))`` and ``z = step(t, z)`` for t in
    ``step.times``, ``layer.decode(z)`` is the layer's final state, flattened, to rounding. The step shares the layer's
    parameters; encoder and decoder are modules of their own, which are exported like any.

    Parameters
    ----------
    layer
        A reduced layer with a fixed-step method.

    Raises
    ------
    ExportError
        The layer's method is adaptive, or its steps are not all of one size.
    """
    if not isinstance(layer, ReducedODELayer):
        raise ExportError(f"expected a ReducedODELayer, got a {type(layer).__name__}: pass the layer, small.ode")
    check_steps("", layer)
    sign = 1.0 if layer.t[-1] > layer.t[0] else -1.0
    grid = step_grid([sign * t for t in layer.t], layer.options.get("step_size"))
    sizes = [end - start for start, end in pairwise(grid)]
    size = (grid[-1] - grid[0]) / len(sizes)
    if any(abs(h - size) > 1e-9 * size for h in sizes):
        raise ExportError(
            f"expected steps of one size, got steps from {min(sizes):.4g} to {max(sizes):.4g}: set layer.options = "
            f'{{"step_size": {size:.6g}}}, a size that divides the time from {layer.t[0]:g} to {layer.t[-1]:g}'
        )
    return SingleStep(layer.ode, layer.settings, sign * size, [sign * start for start in grid[:-1]])
