"""Sums of squares and products as fewer squares: the same values, fewer components."""

import numpy as np
import pytest

from catalogue import CASE_NAMES, CASES, CATALOGUE, traced
from torchmor.engine.affine import AffineMap
from torchmor.engine.expressions import Expression, apply_primitive
from torchmor.engine.quadratics import SQUARE, compress_quadratics, factors
from torchmor.engine.stages import Stage, StageChain

rng = np.random.default_rng(0)


def quadratic(expression, rows=2, n=3, size=40, reads=("y", "t")):
    """A chain of one stage of products, read by a stage and by the output."""
    sizes = {"y": n, "t": 1, "u": 2}
    argument = AffineMap.from_blocks(
        {s: rng.normal(size=(expression.arity * size, sizes[s])) for s in reads},
        rng.normal(size=expression.arity * size),
    )
    weights = rng.normal(size=(rows, size))
    weights[0] = 0.0
    second = AffineMap.from_blocks({"y": rng.normal(size=(rows, n)), "g1": weights})
    output = AffineMap.from_blocks({"g1": rng.normal(size=(1, size)), "g2": rng.normal(size=(1, rows))})
    return StageChain(n, 2, (Stage("g1", expression, argument), Stage("g2", Expression.of("tanh"), second)), output)


@pytest.mark.parametrize("name", ["square", "mul", "pow", "traced"])
def test_sums_of_products_are_sums_of_few_squares(name):
    """The values stay the same; a sum needs at most one square more than there are entries of the sources."""
    expression = {
        "square": Expression.of("square"),
        "mul": Expression.of("mul"),
        "pow": apply_primitive("pow", [Expression.argument(0), 2.0]),
        "traced": SQUARE,
    }[name]
    chain = quadratic(expression)
    small = compress_quadratics(chain)
    assert [stage.size for stage in small.stages] == [10, 2]  # two sums of five squares, and one that is zero
    y, t = rng.normal(size=(3, 20)), rng.normal(size=20)
    np.testing.assert_allclose(small(y, None, t), chain(y, None, t), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(
        small.jacobian(y[:, :1], None, 0.3) @ np.eye(3), chain.jacobian(y[:, :1], None, 0.3) @ np.eye(3), rtol=1e-10
    )
    assert [stage.size for stage in compress_quadratics(small).stages] == [10, 2]


def test_weights_that_are_not_negative_keep_all_signs():
    """What is never negative stays so: with weights like those of a mean, all squares are added."""
    chain = quadratic(SQUARE)
    block = np.abs(chain.stages[1].argument.blocks()["g1"])
    second = Stage("g2", Expression.of("sqrt"), AffineMap.from_blocks({"g1": block}))
    chain = StageChain(3, 2, (chain.stages[0], second), AffineMap.from_blocks({"g2": np.eye(2)}))
    small = compress_quadratics(chain)
    assert small.stages[0].size == 5
    y, t = rng.normal(size=(3, 20)), rng.normal(size=20)
    np.testing.assert_allclose(small(y, None, t), chain(y, None, t), rtol=1e-11, atol=1e-11)
    assert np.all(small.stages[1].argument.linear >= 0)


def test_squares_of_sums_of_squares():
    """Two such stages, with one between them."""
    first = Stage("g1", SQUARE, AffineMap.from_blocks({"y": rng.normal(size=(20, 3))}))
    middle = Stage("g2", Expression.of("tanh"), AffineMap.from_blocks({"g1": rng.normal(size=(2, 20))}))
    last = Stage("g3", SQUARE, AffineMap.from_blocks({"g2": rng.normal(size=(30, 2)), "y": rng.normal(size=(30, 3))}))
    output = AffineMap.from_blocks({"g3": rng.normal(size=(3, 30))})
    chain = StageChain(3, 0, (first, middle, last), output)
    small = compress_quadratics(chain)
    assert [stage.size for stage in small.stages] == [6, 2, 15]
    y = rng.normal(size=(3, 20))
    np.testing.assert_allclose(small(y), chain(y), rtol=1e-11, atol=1e-11)


def test_what_would_not_shrink_stays():
    other = quadratic(apply_primitive("pow", [Expression.argument(0), 3.0]))
    many, few = quadratic(SQUARE, rows=40), quadratic(SQUARE, size=9)
    for chain in (other, many, few):
        assert compress_quadratics(chain) is chain
    assert factors(other.stages[0]) is None and factors(many.stages[0]) == (0, 0)


@pytest.mark.parametrize(("name", "opaque"), CASES, ids=CASE_NAMES)
def test_every_function_stays_the_same(name, opaque):
    """Also after a projection, which makes quadratic forms small."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    y, u = entry.columns(3)
    V = np.linalg.qr(rng.normal(size=(entry.n, min(2, entry.n))))[0]
    for before in (chain, chain.reduce(V, V)):
        z = y if before is chain else V.T @ y
        after = compress_quadratics(before)
        np.testing.assert_allclose(after(z, u, 0.3), before(z, u, 0.3), rtol=1e-9, atol=1e-10)
        assert all(a.size <= b.size for a, b in zip(after.stages, before.stages, strict=True))


def test_variances_of_a_reduced_state_need_few_squares():
    chain = traced("group normalisation")
    V = np.linalg.qr(rng.normal(size=(36, 5)))[0]
    small = compress_quadratics(chain.reduce(V, V))
    assert [stage.size for stage in small.stages[:3]] == [10, 2, 36]  # five squares for each group, instead of 18
