"""Time grids of fixed-step solvers, in pure Python: the pyMOR time stepper and the torch solver share them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torchmor.engine.tableaux import ButcherTableau


class Step(NamedTuple):
    """One step of a fixed-step solver.

    Parameters
    ----------
    size
        Step size h, negative for backward integration.
    times
        Times at which the stages of the tableau are evaluated.
    end
        Time at the end of the step.
    outputs
        Fractions x of the step, 0 ≤ x ≤ 1, at which a state is returned, in order.
    """

    size: float
    times: tuple[float, ...]
    end: float
    outputs: tuple[float, ...]


def step_grid(times: Sequence[float], step_size: float | None) -> list[float]:
    """Return the increasing grid on which torchdiffeq's fixed-step solvers step from times[0] to times[-1].

    Without a step size the solver steps from output time to output time. With one, steps start at times[0] and
    the last one is shortened to end at times[-1].
    """
    if step_size is None:
        return list(times)
    start, end = times[0], times[-1]
    count = math.ceil((end - start) / step_size + 1)
    return [*(i * step_size + start for i in range(count - 1)), end]


def plan_steps(times: Sequence[float], tableau: ButcherTableau, step_size: float | None = None) -> tuple[Step, ...]:
    """Return the steps from times[0] to times[-1], which are strictly monotone.

    Law: the grid is :func:`step_grid`, mirrored for decreasing times; each time but the first is an output of one step,
    and the last step has one.
    """
    sign = 1.0 if times[-1] > times[0] else -1.0  # backward in t is forward in s = −t
    waiting = [sign * time for time in times[1:]]
    steps = []
    for s0, s1 in pairwise(step_grid([sign * time for time in times], step_size)):
        reached = 0
        while reached < len(waiting) and s1 >= waiting[reached]:
            reached += 1
        outputs = tuple([(s - s0) / (s1 - s0) for s in waiting[:reached]])
        waiting = waiting[reached:]
        stage_times = tuple([sign * s for s in tableau.times(s0, s1)])
        steps.append(Step(sign * (s1 - s0), stage_times, sign * s1, outputs))
        if not waiting:  # rounding may leave a last step of no length
            break
    return tuple(steps)


def equal_step_size(duration: float, count: int) -> float:
    """Return the step size with which solvers take `count` steps over a duration: duration / count, but for rounding.

    Law: ``len(step_grid((0, duration), equal_step_size(duration, count))) == count + 1``. A quotient that is rounded
    down would leave a last step of almost no length.
    """
    size = duration / count
    while len(step_grid((0.0, duration), size)) > count + 1:
        size = math.nextafter(size, math.inf)
    return size
