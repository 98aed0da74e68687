"""The search: reductions of many sizes, the promising ones tuned, and those that answer a wish, the best first."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.progress import track
from torchmor.adapters.reduction.material import Material, Small
from torchmor.adapters.reduction.size_search import choices, solvers
from torchmor.adapters.reduction.wish import Wish
from torchmor.adapters.solving.steps import COARSE, FixedSteps, set_solver
from torchmor.engine.errors import SizeError
from torchmor.engine.explanation import Trial
from torchmor.engine.findings import Tuning
from torchmor.engine.reduction import Reduction
from torchmor.engine.sizes import ReductionRequest

#: Successive halving: how many candidates are tuned, for how many batches each; those of the last round to the end.
ROUNDS = ((8, 64), (4, 256), (2, 2400))

#: Losses fall about with this power of the batches (measured on one network at two sizes, from 125 to 2,000 batches).
FALL = 0.3

#: Losses that are so many times larger than wished may become small enough by tuning.
PROMISING = 30.0

#: Batches for the network that is returned.
LAST = ROUNDS[-1][1]

#: Sizes that are tried where all cost more than coarse steps of the full layer: one has to be the best.
AT_LEAST = 4

#: Tunes a network's reduced layers in place: (network, batches, an earlier tuning to go on from) → what it did.
Tune = Callable[[nn.Module, int, Tuning | None], Tuning]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that the search found.

    Parameters
    ----------
    request
        The sizes, and all else.
    layer, reduction
        The reduced layer, with its solver, and the reduction that made it.
    trial
        Cost and loss.
    tuning
        How it was tuned; None if it was not.
    done
        Whether it was tuned for the last time.
    """

    request: ReductionRequest
    layer: ReducedODELayer
    reduction: Reduction
    trial: Trial
    tuning: Tuning | None = None
    done: bool = False


@dataclass(eq=False)
class Search:
    """Finds reductions that answer a wish.

    Parameters
    ----------
    material
        The layer, and its data.
    request
        What is asked for, with sizes that are missing.
    wish
        The loss and the cost.
    solver
        Steps that are asked for; None to try some.
    tune
        Tunes networks; None to leave them as they are fitted.
    effort
        Tune so many times as long.
    thorough
        Whether to tune all of each round, instead of stopping at the first candidate that answers the wish.

    Attributes
    ----------
    tried
        All candidates in their last form.
    """

    material: Material
    request: ReductionRequest
    wish: Wish
    solver: FixedSteps | None
    tune: Tune | None
    effort: int = 1
    thorough: bool = False

    def __post_init__(self) -> None:
        self._solvers = solvers(self.solver, len(self.material.layer.t))
        self.tried: list[Candidate] = []
        self._learnt: Tuning | None = None  # its rate and further samples do for the others too

    @property
    def curve(self) -> tuple[Trial, ...]:
        """All that was tried, the full network first."""
        return (*(self.full(steps) for steps in self._steps), *(one.trial for one in self.tried))

    @property
    def own(self) -> Trial:
        """The full network with its own solver."""
        return self.full(None)

    def full(self, steps: FixedSteps | None) -> Trial:
        """Return the trial of the full network with these steps; None for its own solver."""
        return self.material.full_trial(steps)

    @property
    def rival(self) -> FixedSteps | None:
        """The coarse steps with which the full network answers the wish best; None if it does with none."""
        good = [steps for steps in self._steps[1:] if self.wish.is_met(self.full(steps), self.own)]
        return min(good, key=lambda steps: self.wish.rank(self.full(steps)), default=None)

    @property
    def _steps(self) -> list[FixedSteps | None]:
        """What the full network is tried with, its own solver first."""
        return list(dict.fromkeys((None, *COARSE, *self._solvers)))

    def network(self, candidate: Candidate) -> nn.Module:
        """Return the network of a candidate; its layer is the candidate's own."""
        return with_layers(self.material.network, {self.material.name: candidate.layer})

    def small(self, candidate: Candidate) -> Small:
        """Return the smaller network, its layer and reduction."""
        return Small(self.network(candidate), candidate.layer, candidate.reduction)

    def run(self) -> list[Candidate]:
        """Return the candidates that answer the wish and are better than coarse steps of the full layer, best first."""
        for steps in track(self._steps, "full network"):
            self.full(steps)
        self.tried = list(self._untuned())
        if self.tune is not None:
            self._tune_promising(self.tune)
        return self.good()

    def good(self) -> list[Candidate]:
        """Return what answers the wish, and better than coarse steps of the full layer, the best first."""
        rival = self.rival
        bound = (math.inf, math.inf) if rival is None else self.wish.rank(self.full(rival))
        found = [one for one in self.tried if self.wish.is_met(one.trial, self.own)]
        return sorted((one for one in found if self.wish.rank(one.trial) < bound), key=self._rank)

    def nearest(self) -> Candidate | None:
        """Return the most accurate candidate that is cheap enough, else the most accurate one."""
        finite = [one for one in self.tried if one.trial.loss < math.inf]
        cheap = [one for one in finite if one.trial.cost <= self._most_cost] or finite
        return min(cheap, key=lambda one: (one.trial.loss, one.trial.cost), default=None)

    def polished(self, candidate: Candidate) -> Candidate:
        """Return a candidate, tuned for the last time; as it is where that does not help."""
        if self.tune is None or candidate.done or candidate.trial.loss == math.inf:
            return candidate
        found = self._tuned(candidate, self.tune, LAST * self.effort, anew=True)
        better = found.trial.loss <= max(candidate.trial.loss, self.wish.max_loss)
        last = replace(found if better else candidate, done=True)
        self.tried[self.tried.index(found)] = last
        return last

    def _rank(self, one: Candidate) -> tuple[float, float]:
        return self.wish.rank(one.trial)

    @property
    def _most_cost(self) -> float:
        """The most that is worth trying: as asked, and less than coarse steps that answer the wish."""
        rival = self.rival
        most = self.wish.most_cost(self.own)
        return most if rival is None or self.wish.speedup is not None else min(most, self.full(rival).cost)

    @property
    def _least_cost(self) -> float:
        """The cost of the cheapest candidate that answers the wish: only cheaper ones are better."""
        costs = [one.trial.cost for one in self.good()] if self.wish.speedup is None else []
        return min(costs, default=math.inf)

    def _untuned(self) -> Iterator[Candidate]:
        """Yield reductions of all sizes and solvers that are cheap enough, as they are fitted."""
        most, request, found = self._most_cost, self.request, 0
        tried = list(choices(request.state_dim, request.points, self.material.reductor.chain))
        for state_dim, points, least_cost in track(tried, "sizes"):
            if least_cost > most and found >= AT_LEAST:
                break
            asked = request.filled(state_dim, points)
            try:
                small = self.material.reduced(asked)
            except SizeError:  # more than the calibration data spans
                continue
            found += 1
            own = small.layer.settings
            for steps in self._solvers:
                small.layer.settings = own
                if steps is not None:
                    set_solver(small.layer, steps)
                if found > AT_LEAST and self.material.cost(small.layer) > most:
                    continue
                trial = self.material.trial(small.network, _words(state_dim, points))
                yield Candidate(asked, copy.deepcopy(small.layer), small.reduction, trial)
                if self.wish.speedup is None and trial.loss <= self.wish.max_loss:
                    most = min(most, trial.cost)

    def _tune_promising(self, tune: Tune) -> None:
        """Tune the promising candidates by successive halving, the cheapest first."""
        field, trained = self._promising(), 0
        for count, batches in ROUNDS:
            field = [one for one in field if one.trial.cost < self._least_cost]
            field = sorted(self._most_promising(field, count, trained), key=lambda one: one.trial.cost)
            trained += batches
            last = batches == LAST
            for i, one in enumerate(track(list(field), f"tuning {len(field)} candidates")):
                field[i] = self.polished(one) if last else self._tuned(one, tune, batches * self.effort)
                if not self.thorough and self.wish.speedup is None and self.wish.is_met(field[i].trial, self.own):
                    return

    def _promising(self) -> list[Candidate]:
        """Return candidates that no other beats, and that are cheaper than those that answer the wish already."""
        most = min(self._least_cost, math.nextafter(self._most_cost, math.inf))
        found: list[Candidate] = []
        for one in sorted(self.tried, key=lambda one: (one.trial.cost, one.trial.loss)):
            if one.trial.cost < most and one.trial.loss < (found[-1].trial.loss if found else math.inf):
                found.append(one)
        within = [one for one in found if one.trial.loss <= PROMISING * self.wish.max_loss]
        return within or found[-1:]

    def _most_promising(self, field: Sequence[Candidate], count: int, trained: int) -> list[Candidate]:
        """Return so many candidates, by the number of batches that they were tuned with.

        Before there were any, those of all costs; then the cheapest that may become good enough, and the most accurate.
        """
        if len(field) <= count:
            return list(field)
        if self.wish.speedup is None and not trained:
            last = len(field) - 1
            return [field[round(i * last / (count - 1))] for i in range(count)]
        within = self.wish.max_loss * (LAST / max(trained, 1)) ** FALL if self.wish.speedup is None else 0.0
        reachable = [one for one in field if one.trial.loss <= within]  # the cheapest first
        accurate = sorted(field, key=lambda one: (one.trial.loss, one.trial.cost))
        return list(dict.fromkeys([*reachable, *accurate]))[:count]

    def _tuned(self, one: Candidate, tune: Tune, batches: int, anew: bool = False) -> Candidate:
        """Return a candidate whose layer was tuned; it takes the place of the one before in `tried`.

        Rates and further samples that helped one help the others; anew, they are tried again.
        """
        found = replace(one, layer=copy.deepcopy(one.layer))
        network = self.network(found)
        tuning = tune(network, batches, None if anew else self._learnt)
        self._learnt = self._learnt or tuning
        if one.tuning is not None:
            sums: dict[str, Any] = {
                "seconds": one.tuning.seconds + tuning.seconds,
                "epochs": one.tuning.epochs + tuning.epochs,
            }
            tuning = replace(tuning, before=one.tuning.before, **sums)
        trial = replace(one.trial, loss=self.material.loss(network), tuned=True)
        found = replace(found, trial=trial, tuning=tuning)
        self.tried[self.tried.index(one)] = found
        return found


def _words(state_dim: Any, points: Any) -> str:
    size = ", ".join(map(str, points)) if isinstance(points, list) else str(points)
    return f"state {state_dim}, points {size}"
