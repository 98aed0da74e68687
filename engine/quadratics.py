"""Stages of squares and products of which only few sums are read: fewer squares say the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torchmor.engine.affine import AffineMap, dense
from torchmor.engine.expressions import Expression, Instruction
from torchmor.engine.stages import Stage, StageChain

#: The square of the one argument, as functions of squares are traced.
SQUARE = Expression(1, (Instruction("mul", ("%0", "%0")),))

_FACTORS = {
    SQUARE: (0, 0),
    Expression.of("square"): (0, 0),
    Expression(1, (Instruction("pow", ("%0", 2.0)),)): (0, 0),
    Expression.of("mul"): (0, 1),
}


def factors(stage: Stage) -> tuple[int, int] | None:
    """Return which two arguments a stage multiplies; None for all other functions."""
    return _FACTORS.get(stage.expression)


def squares_needed(rows: int, source_size: int) -> int:
    """Return how many squares say what so many sums of products of affine functions of the sources are, at most."""
    return rows * (source_size + 1)


def compress_quadratics(chain: StageChain) -> StageChain:
    """Replace stages of products by fewer squares, where all that is read of them are few sums.

    Every sum ``Σ_i w_i a_i b_i`` of products of affine functions of the sources x is a quadratic form ``[x; 1]ᵀ Q
    [x; 1]``, and with the eigenvectors q_j of Q it is ``Σ_j λ_j (q_jᵀ [x; 1])²``. A group's variance, for example, is
    at most r + 1 squares of a reduced state of size r, however large the group is.

    Law: the values stay the same, and no stage grows; one that nothing reads is gone.

    Parameters
    ----------
    chain
        A chain; stages whose maps, or those that read them, are opaque stay as they are.
    """
    for number in range(len(chain.stages)):
        chain = _compress(chain, number)
    return chain.without_empty_stages()


def _compress(chain: StageChain, number: int) -> StageChain:
    stage, maps = chain.stages[number], list(chain.maps)
    pair = factors(stage)
    readers = [i for i, affine in enumerate(maps) if stage.name in affine.sources]
    if pair is None or stage.argument.is_opaque or any(maps[i].is_opaque for i in readers):
        return chain
    sums = [dense(maps[i].blocks()[stage.name]) for i in readers]
    weights = np.concatenate([np.zeros((0, stage.size)), *sums])
    read = np.flatnonzero(np.any(weights != 0, axis=1))
    if squares_needed(len(read), sum(stage.argument.sizes)) >= stage.size:
        return chain
    squares, signs = _squares(stage, pair, weights[read])
    lifted = np.zeros((len(weights), len(squares)))
    lifted[read] = signs
    for i, block in zip(readers, np.split(lifted, np.cumsum([len(b) for b in sums])[:-1]), strict=True):
        maps[i] = AffineMap.from_blocks({**maps[i].blocks(), stage.name: block}, maps[i].shift)
    maps[number] = replace(stage.argument, linear=squares[:, :-1], shift=squares[:, -1])
    stages = [replace(one, argument=affine) for one, affine in zip(chain.stages, maps, strict=False)]
    stages[number] = replace(stages[number], expression=SQUARE)
    return replace(chain, stages=tuple(stages), output=maps[-1])


def _squares(stage: Stage, pair: tuple[int, int], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows q_j of ``[x; 1]`` (d, s + 1), and which of their squares, with which sign, make each sum (·, d)."""
    rows = np.column_stack((dense(stage.argument.linear), stage.argument.shift))
    a, b = (rows[i * stage.size : (i + 1) * stage.size] for i in pair)
    found, signs = [], []
    for weight in weights:
        form = a.T @ (weight[:, np.newaxis] * b)
        values, vectors = np.linalg.eigh((form + form.T) / 2)
        known = np.abs(values) > np.abs(values).max() * len(values) * np.finfo(np.float64).eps
        found.append(np.sqrt(np.abs(values[known]))[:, np.newaxis] * vectors[:, known].T)
        signs.append(np.sign(values[known]))
    lifted = np.zeros((len(weights), sum(len(s) for s in signs)))
    start = 0
    for row, sign in enumerate(signs):
        lifted[row, start : start + len(sign)] = sign
        start += len(sign)
    return np.concatenate([np.zeros((0, rows.shape[1])), *found]), lifted
