"""Fixed-step solves in torch alone: the same numbers as torchdiffeq's fixed-step solvers."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from torchmor.adapters.inputs import Signal, round_to
from torchmor.engine.grids import step_grid
from torchmor.engine.tableaux import TABLEAUX, ButcherTableau


def is_fixed_step(method: str) -> bool:
    """Whether `method` is one of torchdiffeq's fixed-step Runge–Kutta methods."""
    return method in TABLEAUX


def solve_fixed_step(
    f: Callable[..., Tensor],
    y0: Tensor,
    t: Sequence[float],
    tableau: ButcherTableau,
    *,
    step_size: float | None = None,
    interp: str = "linear",
    signal: Signal | None = None,
    final: bool = False,
) -> Tensor:
    """Solve y' = f(t, y), y(t[0]) = y0, by an explicit Runge–Kutta method on a fixed grid.

    Law: equals ``torchdiffeq.odeint`` of the method with this tableau, and the same options, to rounding.
    The grid is computed on the host in float64, and nothing in the loop depends on data: it never waits for a
    device, and can be compiled and exported with a dynamic batch.

    Parameters
    ----------
    f
        ODE function f(t, y), or f(t, y, u) with a signal; t is a 0-dim tensor of the dtype and device of y0.
    y0
        Initial state (batch, …).
    t
        Strictly monotone output times, as Python floats; the first is the initial time.
    tableau
        The method, for example ``TABLEAUX["rk4"]``.
    step_size
        Step size; None steps from output time to output time.
    interp
        Interpolation of states between steps: "linear" or "cubic" (Hermite, one evaluation of f more for
        each).
    signal
        Input signal u(t).
    final
        Return y(t[-1]) only.

    Returns
    -------
    Tensor (len(t), batch, …), or (batch, …) with `final`.
    """
    sign = 1.0 if t[-1] > t[0] else -1.0  # backward in t is forward in s = −t
    outputs = [sign * time for time in t]
    grid = step_grid(outputs, step_size)
    steps = list(pairwise(grid))
    clock = _Clock([sign * s for s0, s1 in steps for s in tableau.times(s0, s1)], y0)
    # end times of steps serve the cubic interpolation only
    end_clock = None if interp == "linear" or final else _Clock([sign * s1 for _, s1 in steps], y0)

    def evaluate(clock: _Clock, i: int, y: Tensor) -> Tensor:
        instant = clock.instants[i]
        return f(instant, y) if signal is None else f(instant, y, signal(instant, clock.times[i]))

    y, states, stages = y0, [y0], len(tableau.c)
    for i, (s0, s1) in enumerate(steps):
        h = sign * (s1 - s0)
        slopes: list[Tensor] = []
        for j, row in enumerate(tableau.a):
            stage = y
            for a, slope in zip(row, slopes, strict=True):
                if a:
                    stage = torch.add(stage, slope, alpha=h * a)
            slopes.append(evaluate(clock, i * stages + j, stage))
        y_next = y + _increment(h, tableau.b, slopes)
        if not final:
            while len(states) < len(outputs) and s1 >= outputs[len(states)]:
                x = (outputs[len(states)] - s0) / (s1 - s0)
                if x == 0 or x == 1:
                    states.append(y_next if x else y)
                elif interp == "linear":
                    states.append(torch.lerp(y, y_next, x))
                else:
                    end_slope = evaluate(end_clock, i, y_next)
                    states.append(_hermite(x, h, y, slopes[0], y_next, end_slope))
            if len(states) == len(outputs):
                break
        y = y_next
    return y if final else torch.stack(states)


class _Clock:
    """Times of evaluations: as 0-dim tensors like y0 for f, and as the same numbers on the host."""

    def __init__(self, times: list[float], y0: Tensor):
        self.times = [round_to(time, y0.dtype) for time in times]
        self.instants = torch.tensor(times, dtype=torch.float64).to(y0.dtype).to(y0.device).unbind()


def _increment(h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Return h Σ b_i k_i, summed apart from the state, whose rounding errors would add up."""
    terms = [(h * b, slope) for b, slope in zip(weights, slopes, strict=True) if b]
    (b, slope), *rest = terms
    total = b * slope
    for b, slope in rest:
        total = torch.add(total, slope, alpha=b)
    return total


def _hermite(x: float, h: float, y0: Tensor, f0: Tensor, y1: Tensor, f1: Tensor) -> Tensor:
    """Return the cubic Hermite polynomial at fraction x of a step of size h."""
    total = (1 + 2 * x) * (1 - x) ** 2 * y0
    total = torch.add(total, f0, alpha=h * x * (1 - x) ** 2)
    total = torch.add(total, y1, alpha=x**2 * (3 - 2 * x))
    return torch.add(total, f1, alpha=h * x**2 * (x - 1))
