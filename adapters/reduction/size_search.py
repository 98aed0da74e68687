"""The sizes and solvers that a search tries."""

from collections.abc import Iterator
from typing import Any

from torchmor.adapters.solving.steps import COARSE, STEP_METHODS, FixedSteps, Steps
from torchmor.engine.normalisation import absorbed_stages
from torchmor.engine.planning import unsampled_stages
from torchmor.engine.sizes import check_not_too_large, stage_sizes
from torchmor.engine.stages import Stage, StageChain

#: Reduced states that are tried.
STATE_DIMS = (4, 8, 16, 32, 64, 128, 256, 512)

#: States up to this size are also kept as they are: encoding and decoding may cost more than a smaller one saves.
SMALL_STATE = 64

#: Points that are tried for each, as multiples of the reduced state, and how many at most.
POINTS_PER_STATE_DIM = (1, 2, 4, 8)
MOST_POINTS = 1024

#: Numbers of steps that are tried of a method.
STEP_COUNTS = (1, 2, 4)


def choices(state_dim: Any, points: Any, chain: StageChain) -> Iterator[tuple[Any, Any, float]]:
    """Yield state dimensions and points to try, with lower bounds of their costs, which increase.

    Parameters
    ----------
    state_dim, points
        What the user asked for; what is None is tried in several sizes.
    chain
        The full ODE function.

    Raises
    ------
    SizeError
        What was asked for is larger than the state or the stages.
    """
    check_not_too_large(chain, state_dim, points)
    n, absorbed = chain.state_size, absorbed_stages(chain)
    given = stage_sizes(points, len(chain.stages), "points")
    largest = max((stage.size for stage in chain.stages), default=1)
    state_dims = [state_dim]
    if state_dim is None:
        state_dims = [*(r for r in STATE_DIMS if r < n), *(["full"] if n <= SMALL_STATE else [])]
    found = []
    for r in state_dims:
        size = n if r == "full" else r
        tried = [size * factor for factor in POINTS_PER_STATE_DIM] if state_dim is None else STATE_DIMS
        counts = [m for m in tried if m < largest and m <= MOST_POINTS] or ["full"]
        for m in counts if points is None or (isinstance(points, list) and None in points) else [points]:
            asked = m
            if isinstance(points, list):
                asked = [_filled(stage, one, m, chain) for stage, one in zip(chain.stages, given, strict=True)]
            of_each = stage_sizes(asked, len(chain.stages), "points")
            if {r, *of_each} == {"full"}:
                continue
            evaluated = sum(
                min(one, stage.size) if isinstance(one, int) else stage.size
                for stage, one in zip(chain.stages, of_each, strict=True)
                if stage.name not in absorbed
            )
            bound = (0 if r == "full" else 2 * n * r) + 2 * size * evaluated
            found.append((r, asked, float(bound)))
    return iter(sorted(found, key=lambda entry: entry[2]))


def _filled(stage: Stage, asked: Any, m: Any, chain: StageChain) -> Any:
    """Return the points of a stage: what was asked for, or m where nothing was."""
    if asked is not None:
        return asked
    return "full" if m == "full" or stage.name in unsampled_stages(chain) else min(m, stage.size)


def solvers(asked: FixedSteps | None, times: int) -> tuple[FixedSteps | None, ...]:
    """Return the solvers that are tried for each size: coarse steps beside the layer's own, or what was asked for.

    Parameters
    ----------
    asked
        What the user asked for.
    times
        Number of times of the layer: with more than two, steps from each to the next are tried too.
    """
    if asked is None:
        return (None, *COARSE, *(STEP_METHODS if times > 2 else ()))
    return tuple(Steps(asked, count) for count in STEP_COUNTS) if isinstance(asked, str) else (asked,)
