"""Reduced operators by regression: what sampled stages say about the projected ODE function."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from torchmor.engine import functions
from torchmor.engine.affine import AffineMap, Lift
from torchmor.engine.held_out import held_out_columns
from torchmor.engine.normalisation import absorbing_form, fitted_argument, sources_read
from torchmor.engine.quadratics import factors
from torchmor.engine.regression import regress, regress_nonnegative
from torchmor.engine.stages import Stage, StageChain


@dataclass(frozen=True, eq=False)
class Training:
    """Where an ODE function is known, for fits: columns of states, inputs and times.

    Parameters
    ----------
    y, u, t
        States (n, k), inputs (p, k) or None, times (k,).
    values
        Name of a stage → its values (size, k); "output" → f.
    samples
        Index (k,) of the sample of each column; None where each is a sample of its own.
    """

    y: np.ndarray
    u: np.ndarray | None
    t: np.ndarray
    values: Mapping[str, np.ndarray]
    samples: np.ndarray | None = None

    @cached_property
    def held_out(self) -> np.ndarray:
        """The columns (k,) that choose ridge weights and measure errors: those of a fifth of the samples."""
        return held_out_columns(np.arange(self.y.shape[1]) if self.samples is None else self.samples)

    @property
    def sources(self) -> dict[str, np.ndarray]:
        """Values of all sources that maps read."""
        found = {**self.values, "y": self.y, "t": np.broadcast_to(self.t, (1, self.y.shape[1]))}
        return found if self.u is None else {**found, "u": self.u}


@dataclass(frozen=True, eq=False)
class FittedChain:
    """What :func:`fit_chain` returns.

    Parameters
    ----------
    chain
        The fitted chain.
    errors
        Name of a fitted stage's argument, or "output" → relative error, without its mean, on the columns that were
        held out of its fit; absent where none were, or the ridge was given. All rows of an argument count alike.
    """

    chain: StageChain
    errors: dict[str, float]


def fit_chain(
    chain: StageChain,
    trial: np.ndarray | None,
    test: np.ndarray | None,
    offset: np.ndarray | None,
    points: Mapping[str, np.ndarray],
    training: Training,
    ridge: float | None = None,
    absorbed: Collection[str] = (),
) -> FittedChain:
    """Project a chain, and fit what follows its sampled stages instead of interpolating them.

    Every map that reads sampled stages becomes ``exact(ẑ) + N g[points] + b``: the exact linear part at the projected
    states ``ŷ = c + V Wᵀ (y − c)``, and N and b by ridge regression of what the map yields at the true states less that
    part. The stages g are evaluated as in the reduced chain, at ŷ and after the fits before them, so that a fit makes
    up for what projection and earlier fits lose too. Sums of squares, as in a variance, are fitted with weights that
    are not negative.

    Law: with ridge 0, states in the trial space and stage values in the span of an interpolation's basis, the values
    equal those of the interpolation; with ridge 0 no other N and b have a smaller residual on the training data.

    Parameters
    ----------
    chain
        The chain of f.
    trial, test, offset
        Bases V, W (n, r) and c (n,), as in :meth:`StageChain.reduce`; all None to keep the state.
    points
        Stage name → evaluated components; other stages are kept.
    training
        States, and the values there.
    ridge
        As in :func:`regress`.
    absorbed
        Stages to do without, as of :func:`~torchmor.engine.normalisation.absorbed_stages`.

    Returns
    -------
    FittedChain
        The chain, and how well its maps fit.
    """
    fit = _Fit(chain, trial, test, offset, points, training, ridge, absorbed)
    stages = tuple(fit.stage(stage) for stage in chain.stages if stage.name not in absorbed)
    state_size = chain.state_size if trial is None else trial.shape[1]
    return FittedChain(StageChain(state_size, chain.input_size, stages, fit.output()), fit.errors)


class _Fit:
    """Fits the maps of a chain one after the other: each reads what the fits before it yield."""

    def __init__(
        self,
        chain: StageChain,
        trial: np.ndarray | None,
        test: np.ndarray | None,
        offset: np.ndarray | None,
        points: Mapping[str, np.ndarray],
        training: Training,
        ridge: float | None,
        absorbed: Collection[str],
    ):
        self.chain, self.test, self.points, self.ridge = chain, test, points, ridge
        self.absorbed = frozenset(absorbed)
        self.lifts = {} if trial is None else {"y": Lift(trial, offset)}
        self.columns, self.held_out = training.y.shape[1], training.held_out
        self.true = training.sources
        self.reduced: dict[str, np.ndarray] = {name: self.true[name] for name in ("y", "u", "t") if name in self.true}
        if test is not None:
            self.reduced["y"] = test.T @ (training.y if offset is None else training.y - offset[:, np.newaxis])
        self.errors: dict[str, float] = {}

    def stage(self, stage: Stage) -> Stage:
        """Return a stage at its points, with a fitted argument."""
        if stage.name in self.points:
            stage = stage.restrict(self.points[stage.name])
        if self.absorbed.isdisjoint(stage.argument.sources):
            stage = replace(stage, argument=self._beside_the_exact_part(stage.name, stage.argument))
        else:
            stage = self._without_absorbed(stage)
        g = functions.evaluate(stage.expression, stage.split(stage.argument.apply(self.reduced)))
        self.reduced[stage.name] = np.broadcast_to(g, (stage.size, self.columns))
        return stage

    def _without_absorbed(self, stage: Stage) -> Stage:
        """Return a stage that reads absorbed ones as a function of the others: its quotients are fitted as a whole."""
        name, form = stage.name, absorbing_form(self.chain, stage, self.absorbed)
        expression, values = fitted_argument(stage, form, self.true)
        if form is None:
            return Stage(name, expression, self._as_a_whole(name, stage.argument, values))
        whole = _part(stage, sorted(form.numerators | form.divisors))
        found = [self._as_a_whole(name, whole, values[: len(form.quotients) * stage.size])]
        for i in form.others:
            part = _part(stage, [i])
            if self.absorbed.isdisjoint(part.sources):
                found.append(self._beside_the_exact_part(name, part))
            else:
                found.append(self._as_a_whole(name, part, part.apply(self.true)))
        return Stage(name, expression, AffineMap.stacked(found))

    def output(self) -> AffineMap:
        """Return the fitted map to the projected f; all stages come before it."""
        output, test = self.chain.output, self.test
        if self.absorbed.isdisjoint(output.sources):
            return self._beside_the_exact_part("output", output if test is None else output.project(test))
        values = self.true["output"]
        return self._as_a_whole("output", output, values if test is None else test.T @ values)

    def _beside_the_exact_part(self, name: str, affine: AffineMap) -> AffineMap:
        """Return the map of the reduced sources that comes nearest to what the map yields at the true ones."""
        sampled = [source for source in affine.sources if source in self.points]
        if not sampled:
            return affine.substitute(self.lifts)
        exact = without(affine, sampled).substitute(self.lifts)
        features = np.concatenate([self.reduced[source] for source in sampled])
        values = np.broadcast_to(affine.apply(self.true), (affine.size, self.columns))
        if _adds_squares(self.chain, affine):
            target = values - affine.shift[:, np.newaxis]
            matrix, shift = self._regression(name, features, target, values, nonnegative=True)
        else:
            matrix, shift = self._regression(name, features, values - exact.apply(self.reduced), values)
        fits = _blocks(matrix, {source: len(self.points[source]) for source in sampled})
        return AffineMap.from_blocks({**exact.blocks(), **fits}, exact.shift + shift)

    def _as_a_whole(self, name: str, affine: AffineMap, values: np.ndarray) -> AffineMap:
        """Return the map of what a map with absorbed sources depends on that comes nearest to values (rows, k)."""
        features = {
            source: np.broadcast_to(self.reduced[source], (len(self.reduced[source]), self.columns))
            for source in sources_read(self.chain, affine, self.absorbed)
        }
        matrix, shift = self._regression(name, np.concatenate(list(features.values())), values, values)
        blocks = _blocks(matrix, {source: len(feature) for source, feature in features.items()})
        return AffineMap.from_blocks(blocks, shift)

    def _regression(
        self, name: str, features: np.ndarray, target: np.ndarray, values: np.ndarray, nonnegative: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit a target, and note the error relative to the values of the whole map."""
        units = np.ones((len(values), 1)) if name == "output" else row_units(values)
        if nonnegative:
            found = regress_nonnegative(features, target / units, self.held_out)
        else:
            found = regress(features, target / units, self.ridge, self.held_out)
        if found.held_out_error is not None:
            varied = (values[:, self.held_out] - values.mean(axis=1, keepdims=True)) / units
            error = found.held_out_error / max(float(np.linalg.norm(varied)), np.finfo(np.float64).tiny)
            self.errors[name] = max(error, self.errors.get(name, 0.0))
        return found.matrix * units, found.shift * units[:, 0]


def row_units(values: np.ndarray) -> np.ndarray:
    """Return what each row of an argument (rows, k) is measured in (rows, 1): its deviation, or what is not rounding.

    Rows are scaled by it to count alike: networks may compute the same with arguments of other sizes.
    """
    size = np.sqrt(np.mean(values**2, axis=1, keepdims=True))
    units: np.ndarray = np.maximum(values.std(axis=1, keepdims=True), 1e-3 * size)
    return np.where(units > 0, units, 1.0)


def _blocks(matrix: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the columns (q, size) of each source."""
    return dict(zip(sizes, np.split(matrix, np.cumsum(list(sizes.values()))[:-1], axis=1), strict=True))


def _part(stage: Stage, arguments: Sequence[int]) -> AffineMap:
    """Return the map to some arguments of a stage, of the sources that they read."""
    rows = np.concatenate([stage.size * i + np.arange(stage.size) for i in arguments])
    affine = stage.argument.restrict(rows)
    return without(affine, [source for source in affine.sources if not len(affine.used(source))])


def without(affine: AffineMap, sources: list[str]) -> AffineMap:
    """Return an affine map without some of its sources."""
    return affine.select({name: np.zeros(0, dtype=np.int64) for name in sources})


def _adds_squares(chain: StageChain, affine: AffineMap) -> bool:
    """Whether a map is a constant plus squares, all of weights that are not negative."""
    stages = [stage for stage in chain.stages if affine.sources == (stage.name,)]
    if affine.is_opaque or not stages or factors(stages[0]) != (0, 0):
        return False
    block = affine.blocks()[stages[0].name]
    return block.min() >= 0
