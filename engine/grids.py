"""Time grids of fixed-step solvers, in pure Python: the pyMOR time stepper and the torch solver share them."""

import math
from collections.abc import Sequence


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
