"""The search for sizes: the cheapest reduction within a loss, or the best of those that are cheap enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torchmor.adapters.solving.steps import COARSE, FixedSteps, Steps
from torchmor.engine.errors import NothingToReduceError
from torchmor.engine.explanation import Trial
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


@dataclass(frozen=True)
class Candidate:
    """A network that is tried.

    Parameters
    ----------
    state_dim, points
        As in `reduce_network`; None for the full network.
    steps
        Steps of a coarse solver; None for the layer's own.
    trial
        What was found.
    """

    state_dim: Any
    points: Any
    steps: Steps | None
    trial: Trial


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


def solvers(asked: FixedSteps | None) -> tuple[Steps | None, ...]:
    """Return the solvers that are tried for each size: coarse steps beside the layer's own, or what was asked for."""
    if asked is None:
        return (None, *COARSE)
    return tuple(Steps(asked, count) for count in STEP_COUNTS) if isinstance(asked, str) else (asked,)


def choose(
    tried: Sequence[Candidate],
    full: Sequence[Candidate],
    max_loss: float | None,
    speedup: float | None,
    metric: Any,
) -> Candidate:
    """Return the best candidate.

    Parameters
    ----------
    tried
        Reduced networks.
    full
        The full network, with its own solver first and with coarse steps, which have to be beaten.
    max_loss
        Largest loss; None for any.
    speedup
        How many times cheaper than the full network with its own solver; with it, the candidate of the smallest loss is
        best, without it the cheapest.
    metric
        For the words.

    Raises
    ------
    NothingToReduceError
        No candidate is good enough and cheaper than the full network, or that with coarse steps is better.
    """
    bound = full[0].trial.cost / (1.0 if speedup is None else speedup)
    allowed = float("inf") if max_loss is None else max_loss
    asked = [] if max_loss is None else [f"a loss of at most {max_loss:g}"]
    asked += [] if speedup is None else [f"{speedup:g} times less cost"]
    wanted = " and ".join(asked) or "less cost than the full layer"

    def good(candidates: Sequence[Candidate]) -> list[Candidate]:
        found = [one for one in candidates if one.trial.loss <= allowed and one.trial.cost <= bound]
        return [one for one in found if one.trial.cost < full[0].trial.cost]  # never dearer, whatever was asked for

    def rank(one: Candidate) -> tuple[float, float]:
        values = (one.trial.cost, one.trial.loss)
        return values if speedup is None else values[::-1]

    name = metric if isinstance(metric, str) else "of the given metric"
    rivals, reduced = good(full[1:]), good(tried)
    rival = min(rivals, key=rank) if rivals else None
    if reduced and (rival is None or rank(min(reduced, key=rank)) < rank(rival)):
        return min(reduced, key=rank)
    best = [f"the best reduction found is {_words(one, full[0])}" for one in _nearest(tried, allowed, bound)]
    if rival is not None:
        raise NothingToReduceError(
            f"expected a reduction with {wanted} ({name}) that is better than coarse steps of the full layer, found "
            f"none: {_words(rival, full[0])} is better; use these steps instead, in layer.method and layer.options. "
            f"For comparison, {'; '.join(best) or 'no size could be reduced'}"
        )
    raise NothingToReduceError(
        f"expected a reduction with {wanted} ({name}), found none: {'; '.join(best) or 'no size could be reduced'}; "
        "allow more loss, give sizes, or calibrate with more data"
    )


def _nearest(tried: Sequence[Candidate], allowed: float, bound: float) -> list[Candidate]:
    """The most accurate one that is cheap enough, else the most accurate one."""
    cheap = [one for one in tried if one.trial.cost <= bound] or list(tried)
    return [min(cheap, key=lambda one: (one.trial.loss, one.trial.cost))] if cheap else []


def _words(one: Candidate, full: Candidate) -> str:
    trial = one.trial
    size = "the full layer" if one.state_dim is None else trial.sizes
    return f"{size} with {trial.solver} (loss {trial.loss:.2g}, {full.trial.cost / trial.cost:.2g} times less cost)"
