"""The plan of a reduction: what becomes of each stage of a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchmor.engine.bases import PodBasis
from torchmor.engine.explanation import Fate
from torchmor.engine.normalisation import absorbed_stages
from torchmor.engine.points import CollateralBasis
from torchmor.engine.quadratics import factors, squares_needed
from torchmor.engine.sizes import ReductionRequest, Size
from torchmor.engine.stages import Stage, StageChain


@dataclass(frozen=True, eq=False)
class StagePlan:
    """What becomes of a stage.

    Parameters
    ----------
    stage
        The stage, as it is in the full chain.
    fate
        "reduced" to some points, "kept", or "absorbed" by the fit of what reads it.
    how
        How the size came about, or why the stage is kept.
    size
        Number m of points; all components where the stage is kept or absorbed.
    modes
        Number d of collateral basis vectors; None for as many as points.
    points
        The points (m,), when they are chosen: fewer than `size` where others say nothing more to a fit, none where the
        mean of the stage says all.
    interpolation
        The interpolation at these points, where the method has one.
    """

    stage: Stage
    fate: Fate
    how: str
    size: int
    modes: int | None = None
    points: np.ndarray | None = None
    interpolation: CollateralBasis | None = None

    @property
    def words(self) -> str:
        """The function of the stage, for users."""
        return self.stage.expression.text([f"a{i + 1}" for i in range(self.stage.expression.arity)])


def plan_stages(
    chain: StageChain,
    request: ReductionRequest,
    sizes: Sequence[tuple[Size, Size]],
    r: int,
    pod: Callable[[str], PodBasis],
) -> dict[str, StagePlan]:
    """Return what becomes of the stages, by name and in their order, before points are chosen.

    Parameters
    ----------
    chain
        The chain of f.
    request
        What was asked for.
    sizes
        Points and modes of each stage, as of :func:`~torchmor.engine.sizes.check_sizes`.
    r
        Size of the reduced state.
    pod
        Stage name → the POD of its values, for sizes that are chosen by energy.
    """
    plans = {
        stage.name: _plan(chain, number, size, d, request, pod)
        for number, (stage, (size, d)) in enumerate(zip(chain.stages, sizes, strict=True))
    }
    for name, plan in plans.items():
        if plan.fate == "reduced" and _is_few_squares(chain, plan, r, plans):
            plans[name] = _kept(plan.stage, "exact, as few squares")
    if request.fit == "least_squares" and request.one_size:
        kept = [name for name, plan in plans.items() if plan.fate == "kept"]
        for name in absorbed_stages(chain, kept):
            plans[name] = StagePlan(plans[name].stage, "absorbed", "", plans[name].stage.size)
    return plans


def _plan(
    chain: StageChain,
    number: int,
    size: Size,
    modes: Size,
    request: ReductionRequest,
    pod: Callable[[str], PodBasis],
) -> StagePlan:
    stage, how = chain.stages[number], request.how(size, number)
    if size == "full":
        return _kept(stage, how)
    if stage.size == 1 or (size is not None and size >= stage.size):
        return _kept(stage, "no more components than points")
    if isinstance(request.points, int) and (why := unsampled_stages(chain).get(stage.name)):
        return _kept(stage, why)
    if size is None:
        basis = pod(stage.name)
        size = request.energy_rank(basis)
        if basis.rank == 0:
            return _kept(stage, "zero on all calibration data")
        if size >= stage.size:
            return _kept(stage, how)
    return StagePlan(stage, "reduced", how, size, None if modes == "full" else modes)


def unsampled_stages(chain: StageChain) -> dict[str, str]:
    """Return the stages of which no points are taken where one number is asked for, with the reason.

    They are embeddings of the time, and products of these with the input: a choice of its samples, of which few entries
    at a time are not zero.
    """
    times = chain.time_stages
    found = dict.fromkeys(times, "depends on the time alone")
    for stage in chain.stages:
        if factors(stage) != (0, 1):
            continue
        reads = stage.sources_of_arguments()
        if {"u"} in reads and any(read <= {"t", *times} for read in reads):
            found[stage.name] = "chooses samples of the input"
    return found


def _kept(stage: Stage, why: str) -> StagePlan:
    return StagePlan(stage, "kept", why, stage.size)


def _is_few_squares(chain: StageChain, plan: StagePlan, r: int, plans: Mapping[str, StagePlan]) -> bool:
    """Whether a stage of products is exact with no more squares than it gets points."""
    if factors(plan.stage) is None:
        return False
    name, sizes = plan.stage.name, {"y": r, "u": chain.input_size, "t": 1}
    sizes |= {other: one.size for other, one in plans.items()}
    rows = r if name in chain.output.sources else 0
    rows += sum(sizes[later.name] * later.expression.arity for later in chain.stages if name in later.argument.sources)
    return squares_needed(rows, sum(sizes[source] for source in plan.stage.argument.sources)) <= plan.size
