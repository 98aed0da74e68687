"""Chains combine exactly: each operation equals the same operation on their values."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sps
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from torchmor.engine.affine import AffineMap
from torchmor.engine.chain_algebra import (
    block_chain,
    component_chain,
    componentwise,
    compose,
    constant_chain,
    fix,
    left_divide,
    linear_chain,
    linear_combination,
    stack,
    transpose,
    trim,
)
from torchmor.engine.errors import ShapeError, UnsupportedOperationError
from torchmor.engine.expressions import Expression, Instruction, apply_primitive
from torchmor.engine.stages import Stage, StageChain

GATE = Expression(2, (Instruction("sigmoid", ("%1",)), Instruction("mul", ("%0", "%2"))))
FORMS = ("dense", "sparse", "opaque")
forms = st.sampled_from(FORMS)
sizes = st.integers(1, 5)
seeds = st.integers(0, 10**6)


def in_form(chain: StageChain, form: str) -> StageChain:
    """The same chain with dense, sparse or opaque maps."""
    wrap = {"dense": lambda a: a, "sparse": sps.csr_array, "opaque": aslinearoperator}[form]

    def wrapped(affine):
        return replace(affine, linear=wrap(affine.linear)) if affine.sources else affine

    stages = tuple(replace(stage, argument=wrapped(stage.argument)) for stage in chain.stages)
    return replace(chain, stages=stages, output=wrapped(chain.output))


def random_chain(seed, n, size, p=2, form="dense", stages=2, reads=("y", "u", "t")) -> StageChain:
    """A chain with a gate, a skip link, and stages named as in every other chain."""
    rng = np.random.default_rng(seed)
    known = {s: width for s, width in {"y": n, "u": p, "t": 1}.items() if s in reads and width}

    def affine(rows):
        blocks = {s: rng.normal(size=(rows, width)) for s, width in known.items()}
        return AffineMap.from_blocks(blocks, rng.normal(size=rows))

    parts = []
    for number, expression in enumerate((Expression.of("tanh"), GATE)[:stages], start=1):
        width = int(rng.integers(1, 6))
        parts.append(Stage(f"g{number}", expression, affine(expression.arity * width)))
        known[f"g{number}"] = width
    return in_form(StageChain(n, p, tuple(parts), affine(size)), form)


def arguments(n, k=3, p=2):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, k)), rng.normal(size=(p, k)), 0.7


def assert_same(chain: StageChain, expected: np.ndarray, *at):
    value = chain(*at)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@given(
    n=sizes,
    middle=sizes,
    size=sizes,
    p=st.integers(1, 3),
    k=st.integers(0, 3),
    outer=forms,
    inner=forms,
    seed=seeds,
)
def test_compose(n, middle, size, p, k, outer, inner, seed):
    a = random_chain(seed, middle, size, p, outer)
    b = random_chain(seed + 1, n, middle, p, inner)
    y, u, t = arguments(n, k, p)
    chain = compose(a, b)
    assert_same(chain, a(b(y, u, t), u, t), y, u, t)
    assert [stage.name for stage in chain.stages] == ["g1", "g2", "g3", "g4"]
    assert (chain.state_size, chain.input_size, chain.output.size) == (n, p, size)


@given(
    n=sizes,
    size=sizes,
    coefficients=st.lists(st.sampled_from([0.0, -1.0, 2.5]), min_size=1, max_size=3),
    form=forms,
    seed=seeds,
)
def test_linear_combination(n, size, coefficients, form, seed):
    chains = [random_chain(seed + i, n, size, form=(form, *FORMS)[i]) for i in range(len(coefficients))]
    y, u, t = arguments(n)
    chain = linear_combination(chains, coefficients)
    assert_same(chain, sum(c * f(y, u, t) for c, f in zip(coefficients, chains, strict=True)), y, u, t)
    assert len(chain.stages) == 2 * np.count_nonzero(coefficients)


@given(n=sizes, rows=st.lists(sizes, min_size=1, max_size=3), form=forms, seed=seeds)
def test_stack(n, rows, form, seed):
    chains = [random_chain(seed + i, n, size, form=form) for i, size in enumerate(rows)]
    y, u, t = arguments(n)
    assert_same(stack(chains), np.vstack([f(y, u, t) for f in chains]), y, u, t)


@given(
    rows=st.lists(sizes, min_size=1, max_size=3),
    columns=st.lists(sizes, min_size=1, max_size=3),
    form=forms,
    seed=seeds,
)
def test_block_chain(rows, columns, form, seed):
    blocks = [
        [random_chain(seed + 10 * i + j, n, size, form=form) for j, n in enumerate(columns)]
        for i, size in enumerate(rows)
    ]
    y, u, t = arguments(sum(columns))
    parts = np.split(y, np.cumsum(columns)[:-1])
    expected = [sum(f(part, u, t) for f, part in zip(row, parts, strict=True)) for row in blocks]
    assert_same(block_chain(blocks), np.vstack(expected), y, u, t)


@pytest.mark.parametrize("form", FORMS)
def test_combined_jacobian_is_that_of_matrices(form):
    """Products and transposed products of opaque combinations are those of the matrices."""

    def combined(form):
        a, b, c = (random_chain(seed, 4, 4, form=form) for seed in range(3))
        return linear_combination([compose(a, b), c], [2.0, -1.0])

    y, u, t = arguments(4, k=1)
    expected = combined("dense").jacobian(y, u, t) @ np.eye(4)
    jacobian = combined(form).jacobian(y, u, t)
    np.testing.assert_allclose(jacobian @ np.eye(4), expected, atol=1e-13)
    np.testing.assert_allclose(jacobian.rmatmat(np.eye(4)), expected.T, atol=1e-13)
    np.testing.assert_allclose(jacobian.rmatvec(np.ones(4)), expected.T @ np.ones(4), atol=1e-13)


def test_combinations_keep_opaque_maps_opaque():
    a, b = (random_chain(seed, 4, 4, form="opaque") for seed in range(2))
    chain = linear_combination([compose(a, b), a], [1.0, 1.0])
    assert all(affine.is_opaque for affine in chain.maps)


def test_sparse_stays_sparse():
    a = componentwise("tanh", 50)
    chain = linear_combination([compose(a, linear_chain(sps.eye_array(50))), a], [1.0, 1.0])
    assert all(sps.issparse(affine.linear) for affine in chain.maps)


def test_compose_with_what_reads_no_state():
    constant, nonlinear = constant_chain(np.array([1.0, 2.0]), 3), random_chain(0, 2, 4)
    y, u, t = arguments(3)
    expected = np.repeat(nonlinear(np.array([[1.0], [2.0]]), u[:, :1], t), 3, axis=1)
    assert_same(compose(nonlinear, constant), expected, y, u[:, :1], t)
    opaque = in_form(random_chain(0, 2, 4, reads=("y",), stages=0), "opaque")
    assert compose(opaque, constant).output.sources == ()


@pytest.mark.parametrize("form", FORMS)
def test_linear_chain(form):
    matrix, shift = np.arange(6.0).reshape(2, 3), np.array([1.0, -1.0])
    y = arguments(3)[0]
    wrapped = {"dense": matrix, "sparse": sps.csc_matrix(matrix), "opaque": aslinearoperator(matrix)}[form]
    assert_same(linear_chain(wrapped, shift), matrix @ y + shift[:, None], y)
    assert_same(transpose(linear_chain(wrapped)), matrix.T @ y[:2], y[:2])


@pytest.mark.parametrize("form", FORMS)
def test_left_divide(form):
    matrix = np.array([[2.0, 1.0], [0.5, 3.0]])
    divisor = in_form(linear_chain(matrix), form)
    chain = random_chain(0, 3, 2, form=form)
    y, u, t = arguments(3)
    assert_same(left_divide(divisor, chain), np.linalg.solve(matrix, chain(y, u, t)), y, u, t)


def test_component_chain():
    y = arguments(4)[0]
    for components in ([], [3, 0, 3], range(4)):
        assert_same(component_chain(components, 4), y[list(components)], y)


def test_componentwise():
    y = arguments(4)[0]
    assert_same(componentwise("leaky_relu", 4, negative_slope=0.5), np.where(y > 0, y, 0.5 * y), y)
    assert_same(componentwise(apply_primitive("pow", [Expression.argument(0), 3.0]), 4), y**3, y)


@given(n=sizes, size=sizes, form=forms, seed=seeds)
def test_fix(n, size, form, seed):
    chain = random_chain(seed, n, size, form=form)
    y, u, t = arguments(n)
    u = u[:, :1]
    expected = chain(y, u, t)
    assert_same(fix(chain, u=u[:, 0], t=t), expected, y)
    assert_same(fix(chain, u=u[:, 0]), expected, y, None, t)
    assert_same(fix(chain, t=t), expected, y, u)
    fixed = fix(chain, u=u[:, 0], t=t)
    assert fixed.input_size == 0
    assert not fixed.reads("u")
    assert not fixed.reads("t")


@given(n=sizes, components=st.lists(st.integers(0, 3), max_size=4), form=forms, seed=seeds)
def test_trim(n, components, form, seed):
    chain = compose(component_chain(components, 4), random_chain(seed, n, 4, form=form))
    y, u, t = arguments(n)
    assert_same(trim(chain), chain(y, u, t), y, u, t)
    assert trim(chain).state_size == n


def test_trim_drops_what_nothing_reads():
    chain = compose(component_chain([7, 2], 10), compose(componentwise("tanh", 10), componentwise("sin", 10)))
    assert [stage.size for stage in trim(chain).stages] == [2, 2]
    assert trim(compose(constant_chain(np.ones(2), 10), componentwise("tanh", 10))).stages == ()


@pytest.mark.parametrize(
    ("operation", "error", "text"),
    [
        (
            lambda: compose(linear_chain(np.eye(2)), linear_chain(np.eye(3))),
            ShapeError,
            "expected an inner chain with 2",
        ),
        (
            lambda: linear_combination([linear_chain(np.eye(2)), linear_chain(np.eye(3))], [1, 1]),
            ShapeError,
            "one state",
        ),
        (
            lambda: compose(random_chain(0, 2, 2, p=1), random_chain(0, 2, 2, p=3)),
            ShapeError,
            r"sizes \[1, 3\]",
        ),
        (lambda: transpose(componentwise("tanh", 2)), UnsupportedOperationError, "linear chain to transpose"),
        (
            lambda: left_divide(random_chain(0, 2, 2), linear_chain(np.eye(2))),
            UnsupportedOperationError,
            "invert",
        ),
        (lambda: linear_chain(np.eye(2) * 1j), UnsupportedOperationError, "real and imaginary"),
        (
            lambda: linear_combination([linear_chain(np.eye(2))], [1j]),
            UnsupportedOperationError,
            "real and imaginary",
        ),
        (lambda: componentwise("mul", 2), ShapeError, "apply_primitive"),
        (lambda: componentwise("cube", 2), ValueError, "'cube'"),
        (lambda: componentwise(Expression.of("elu"), 2, alpha=2.0), ValueError, "into the Expression"),
    ],
)
def test_errors_say_what_was_expected(operation, error, text):
    with pytest.raises(error, match=text):
        operation()
