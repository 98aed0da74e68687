"""Reduced operators by regression: what sampled stages say about the projected ODE function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.linalg as spla

from torchmor.engine import functions
from torchmor.engine.affine import AffineMap, Lift
from torchmor.engine.stages import StageChain

#: Ridge weights that are tried where none is given.
RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)

#: Part of the training columns, the last ones, that chooses among them.
HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Training:
    """Where an ODE function is known, for fits: columns of states, inputs and times, neighbours of one sample.

    Parameters
    ----------
    y, u, t
        States (n, k), inputs (p, k) or None, times (k,).
    values
        Name of a stage → its values (size, k); "output" → f.
    """

    y: np.ndarray
    u: np.ndarray | None
    t: np.ndarray
    values: Mapping[str, np.ndarray]

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
        held out of its fit; empty where the ridge was given.
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
) -> FittedChain:
    """Project a chain, and fit what follows its sampled stages instead of interpolating them.

    Every map that reads sampled stages becomes ``exact(ẑ) + N g[points] + L ẑ + b``: the exact linear part at the
    projected states ``ŷ = c + V Wᵀ (y − c)``, and N, L and b by ridge regression of what the map yields at the true
    states less that part. The stages g are evaluated as in the reduced chain, at ŷ and after the fits before them, so
    that a fit makes up for what projection and earlier fits lose too. The linear correction L costs little and says
    much where points are few; it reads the state, and the input and the time where f does, where they are no more than
    the points.

    Law: with ridge 0, states in the trial space and stage values in the span of an interpolation's basis, the values
    equal those of the interpolation; with ridge 0 no other N, L and b have a smaller residual on the training data.

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

    Returns
    -------
    FittedChain
        The chain, and how well its maps fit.
    """
    lifts = {} if trial is None else {"y": Lift(trial, offset)}
    true = training.sources
    reduced = {name: true[name] for name in ("y", "u", "t") if name in true}
    if trial is not None:
        reduced["y"] = test.T @ (training.y if offset is None else training.y - offset[:, np.newaxis])

    errors: dict[str, float] = {}

    def fitted(name: str, affine: AffineMap) -> AffineMap:
        """Return the map of the reduced sources that comes nearest to what the map yields at the true ones."""
        sampled = [source for source in affine.sources if source in points]
        if not sampled:
            return affine.substitute(lifts)
        exact = without(affine, sampled).substitute(lifts)
        g = np.concatenate([reduced[source] for source in sampled])
        read = [source for source in ("y", "u", "t") if source == "y" or chain.reads(source)]
        linear = [source for source in read if len(reduced[source]) <= len(g)]
        scales = {source: _deviation(g) / (_deviation(reduced[source]) or np.inf) for source in linear}
        features = np.concatenate([g, *(scales[source] * reduced[source] for source in linear)])
        values = np.broadcast_to(affine.apply(true), (affine.size, features.shape[1]))
        matrix, shift, error = regress(features, values - exact.apply(reduced), ridge)
        if error is not None:
            varied = values[:, _fitted_columns(features) :] - values.mean(axis=1, keepdims=True)
            errors[name] = error / max(float(np.linalg.norm(varied)), np.finfo(np.float64).tiny)
        blocks, sources = exact.blocks(), [*sampled, *linear]
        bounds = np.cumsum([0, *(len(reduced[source]) for source in sources)])
        for source, a, b in zip(sources, bounds, bounds[1:], strict=False):
            block = scales.get(source, 1.0) * matrix[:, a:b]
            blocks[source] = blocks[source] + block if source in blocks else block
        return AffineMap.from_blocks(blocks, exact.shift + shift)

    stages = []
    for stage in chain.stages:
        argument = stage.argument
        if stage.name in points:
            argument = argument.restrict(stage.rows(points[stage.name]))
        stage = replace(stage, argument=fitted(stage.name, argument))
        g = functions.evaluate(stage.expression, stage.split(stage.argument.apply(reduced)))
        reduced[stage.name] = np.broadcast_to(g, (stage.size, training.y.shape[1]))
        stages.append(stage)
    output = fitted("output", chain.output if test is None else chain.output.project(test))
    state_size = chain.state_size if trial is None else trial.shape[1]
    return FittedChain(StageChain(state_size, chain.input_size, tuple(stages), output), errors)


def without(affine: AffineMap, sources: list[str]) -> AffineMap:
    """Return an affine map without some of its sources."""
    return affine.select({name: np.zeros(0, dtype=np.int64) for name in sources})


def _deviation(values: np.ndarray) -> float:
    """Return the root mean square of values (m, k) less their means."""
    return float(np.sqrt(np.mean((values - values.mean(axis=1, keepdims=True)) ** 2)))


class Regression(NamedTuple):
    """What :func:`regress` returns: ``target ≈ matrix @ features + shift``.

    Parameters
    ----------
    matrix, shift
        Arrays N (q, m) and b (q,).
    held_out_error
        Norm of the residual on the columns that chose the ridge weight, of the fit to the others; None where the
        weight was given.
    """

    matrix: np.ndarray
    shift: np.ndarray
    held_out_error: float | None


def regress(features: np.ndarray, target: np.ndarray, ridge: float | None = None) -> Regression:
    """Return N and b that minimise ``‖target − N features − b‖² + λ ‖N‖²`` (Frobenius), with b unpenalised.

    Parameters
    ----------
    features, target
        Arrays (m, k) and (q, k).
    ridge
        ``λ m / ‖features − mean‖²``; 0 gives the least-norm solution. None chooses the one among :data:`RIDGES` that is
        best for the last fifth of the columns when fitted to the others, and then fits to all.
    """
    held_out_error = None
    if ridge is None:
        kept = _fitted_columns(features)
        solve = _regression(features[:, :kept], target[:, :kept])

        def error(candidate: float) -> float:
            matrix, shift = solve(candidate)
            return float(np.linalg.norm(target[:, kept:] - matrix @ features[:, kept:] - shift[:, np.newaxis]))

        tried = [error(candidate) for candidate in RIDGES]
        held_out_error = min(tried)
        ridge = RIDGES[tried.index(held_out_error)]
    return Regression(*_regression(features, target)(ridge), held_out_error)


def _fitted_columns(features: np.ndarray) -> int:
    """Return how many columns are fitted to where the others choose the ridge weight."""
    return features.shape[1] - int(HELD_OUT * features.shape[1])


def _regression(features: np.ndarray, target: np.ndarray):
    """Return ridge → (N, b)."""
    middle, aim = features.mean(axis=1), target.mean(axis=1)
    centered = features - middle[:, np.newaxis]
    factor = spla.qr(centered.T, mode="r", check_finite=False)[0] if centered.shape[1] > len(centered) else centered.T
    _, values, right = spla.svd(factor[: len(centered)] if len(factor) > len(centered) else factor, full_matrices=False)
    products = (target - aim[:, np.newaxis]) @ centered.T @ right.T
    known = values > values.max(initial=0.0) * max(centered.shape) * np.finfo(np.float64).eps

    def solution(ridge: float) -> tuple[np.ndarray, np.ndarray]:
        weights = np.where(known, values**2 + ridge * np.sum(values**2) / len(centered), np.inf)
        matrix = (products / weights) @ right
        return matrix, aim - matrix @ middle

    return solution
