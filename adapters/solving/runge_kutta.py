"""Fixed-step solves in torch alone: explicit Runge–Kutta methods, unrolled."""

from __future__ import annotations  # compilers would evaluate those of inner functions

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmor.adapters.solving.constants import Constants, remembered
from torchmor.adapters.solving.signals import Signal, instants
from torchmor.engine.grids import plan_steps
from torchmor.engine.tableaux import TABLEAUX, ButcherTableau

#: f of the state alone, at one time.
Slope = Callable[[Tensor], Tensor]

#: What does not depend on the state is computed for at most so many evaluations at once, which bounds its memory.
BLOCK = 64


def is_fixed_step(method: str) -> bool:
    """Whether `method` is one of the fixed-step Runge–Kutta methods that are solved here."""
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
        each step in which there are some).
    signal
        Input signal u(t).
    final
        Return y(t[-1]) only.

    Returns
    -------
    Tensor (len(t), batch, …), or (batch, …) with `final`.
    """

    def slopes(times: Sequence[float]) -> list[Any]:
        now = instants(times, y0).unbind()
        if signal is None:
            return [partial(f, s) for s in now]
        inputs = signal.along(times, y0).unbind()
        return [lambda y, s=s, u=u: f(s, y, u) for s, u in zip(now, inputs, strict=True)]

    return integrate(slopes, y0, t, tableau, step_size=step_size, interp=interp, final=final)


def solve_at(f: Callable[..., Tensor], y0: Tensor, t: Tensor, tableau: ButcherTableau, *, final: bool) -> Tensor:
    """Solve y' = f(t, y) with a step from each of some times to the next, where the times are a tensor of a graph.

    Law: equals ``solve_fixed_step(f, y0, t.tolist(), tableau, final=final)`` to rounding. Nobody looks at the times, so
    that an exported graph takes others of the same number; whether they are in order cannot be checked there.
    """
    t = t.to(y0.device, torch.float64)
    constant, states = Constants(t), [y0]
    for start, end in pairwise(t.unbind()):
        y, h, found = states[-1], end - start, list[Tensor]()
        for c, row in zip(tableau.c, tableau.a, strict=True):
            now = end if c == 1 and tableau.exact_end else start + constant(c) * h
            found.append(f(now.to(y0.dtype), _advance(y, _terms(h, row, found, constant))))
        states.append(_advance(y, _terms(h, tableau.b, found, constant)))
    return states[-1] if final else torch.stack(states)


def _terms(
    h: Tensor, weights: Sequence[float], found: list[Tensor], constant: Constants
) -> list[tuple[float | Tensor, Tensor]]:
    return [((constant(w) * h).to(k.dtype), k) for w, k in zip(weights, found, strict=False) if w]


def integrate(
    slopes: Callable[[Sequence[float]], Sequence[Slope]],
    y0: Tensor,
    t: Sequence[float],
    tableau: ButcherTableau,
    *,
    step_size: float | None = None,
    interp: str = "linear",
    final: bool = False,
) -> Tensor:
    """Solve y' = f(t, y) as :func:`solve_fixed_step` does, with f of many times at once.

    Law: ``integrate(lambda times: [partial(f, t) for t in times], …)`` equals ``solve_fixed_step(f, …)``.

    Parameters
    ----------
    slopes
        Times of the next evaluations, in their order, → f at each of them, as functions of the state. What does not
        depend on the state can be computed for all of them together.

    All other parameters, and the result, are those of :func:`solve_fixed_step`.
    """
    plan = _plan(tuple(t), tableau, step_size, interp == "cubic" and not final)
    blocks = (plan.times[i : i + BLOCK] for i in range(0, len(plan.times), BLOCK))
    evaluations = (f for block in blocks for f in slopes(block))
    constant = Constants(y0)
    y, states = y0, [y0]
    for step in plan.steps:
        found: list[Tensor] = []
        for row in step.rows:
            stage = y
            for j, weight in row:
                stage = _plus(stage, constant(weight), found[j])
            found.append(next(evaluations)(stage))
        y_next = _advance(y, [(constant(weight), found[j]) for j, weight in step.weights])
        if not final:
            end_slope = next(evaluations)(y_next) if step.end_slope else None
            for x in step.outputs:
                if x == 0 or x == 1:
                    states.append(y_next if x else y)
                elif end_slope is None:
                    states.append(torch.lerp(y, y_next, constant(x)))
                else:
                    weights = map(constant, _hermite(x, step.size))
                    states.append(_advance(None, list(zip(weights, (y, found[0], y_next, end_slope), strict=True))))
        y = y_next
    return y if final else torch.stack(states)


class _PlannedStep(NamedTuple):
    """A step in numbers: (j, weight) are terms ``weight · k_j`` with weights that are not 0."""

    rows: tuple[tuple[tuple[int, float], ...], ...]  # h a_ij
    weights: tuple[tuple[int, float], ...]  # h b_j
    size: float
    outputs: tuple[float, ...]
    end_slope: bool  # whether f is evaluated at the end, for cubic interpolation


class _Plan(NamedTuple):
    steps: tuple[_PlannedStep, ...]
    times: tuple[float, ...]  # of all evaluations, in order


@remembered
def _plan(t: tuple[float, ...], tableau: ButcherTableau, step_size: float | None, cubic: bool) -> _Plan:
    def terms(h: float, weights: Sequence[float]) -> tuple[tuple[int, float], ...]:
        return tuple([(j, h * weight) for j, weight in enumerate(weights) if weight])

    steps: list[_PlannedStep] = []
    times: list[float] = []
    for step in plan_steps(t, tableau, step_size):
        end_slope = cubic and any(0 < x < 1 for x in step.outputs)
        rows = tuple([terms(step.size, row) for row in tableau.a])
        steps.append(_PlannedStep(rows, terms(step.size, tableau.b), step.size, step.outputs, end_slope))
        times += step.times
        times += [step.end] if end_slope else []
    return _Plan(tuple(steps), tuple(times))


def _plus(y: Tensor, weight: float | Tensor, k: Tensor) -> Tensor:
    """Return y + weight k."""
    return torch.addcmul(y, k, weight) if isinstance(weight, Tensor) else torch.add(y, k, alpha=weight)


def _advance(y: Tensor | None, terms: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Return y + Σ weight k; several terms are summed apart from y, whose rounding errors would add up."""
    if not terms:
        assert y is not None, "a sum has terms"
        return y
    (weight, k), *rest = terms
    if y is not None and not rest:
        return _plus(y, weight, k)
    total = weight * k
    for weight, k in rest:
        total = _plus(total, weight, k)
    return total if y is None else y + total


def _hermite(x: float, h: float) -> tuple[float, float, float, float]:
    """Weights of y_0, f_0, y_1 and f_1 in the cubic Hermite polynomial at fraction x of a step of size h."""
    return (1 + 2 * x) * (1 - x) ** 2, h * x * (1 - x) ** 2, x**2 * (3 - 2 * x), h * x**2 * (x - 1)
