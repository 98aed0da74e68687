"""The stage chain as a pyMOR operator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymor.algorithms.projection import project, project_to_subbasis
from pymor.core.exceptions import LinAlgError
from pymor.operators.numpy import NumpyMatrixOperator
from pymor.vectorarrays.numpy import NumpyVectorSpace

from catalogue import CASE_NAMES, CASES, CATALOGUE, traced
from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import ShapeError
from torchmor.engine.expressions import Expression, Instruction
from torchmor.engine.operators import InitialStateOperator, OdeFunctionOperator, componentwise_operator

TIME = 0.3
over_catalogue = pytest.mark.parametrize(("name", "opaque"), CASES, ids=CASE_NAMES)


def problem(name, opaque, k=3):
    """An entry, its operator, states, and parameter values with those inputs."""
    entry, op = CATALOGUE[name], OdeFunctionOperator(traced(name, opaque))
    y, u = entry.columns(k)
    mu = {"t": TIME, "input": None if u is None else u[:, 0]}
    return entry, op, op.source.make_array(y), op.parameters.parse({p: mu[p] for p in op.parameters})


def expected(entry, Y, mu):
    u = mu["input"][:, np.newaxis] if entry.p else None
    return entry.values(Y.to_numpy(), u, TIME)


def assert_same(actual, desired, tolerance=1e-12):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def vectors(dim, count, seed=0):
    return NumpyVectorSpace.make_array(np.random.default_rng([seed, dim]).normal(size=(dim, count)))


@over_catalogue
def test_apply_to_many_vectors(name, opaque):
    entry, op, Y, mu = problem(name, opaque)
    assert_same(op.apply(Y, mu=mu).to_numpy(), expected(entry, Y, mu))
    assert_same(op.apply(Y[1], mu=mu).to_numpy(), expected(entry, Y, mu)[:, 1:2])
    assert len(op.apply(op.source.empty(), mu=mu)) == 0


@over_catalogue
def test_parameters_are_what_the_function_reads(name, opaque):
    entry, op, _, _ = problem(name, opaque)
    assert dict(op.parameters) == ({"input": entry.p} if entry.p else {}) | ({"t": 1} if entry.reads_time else {})
    assert op.linear == (name in ("linear", "decay", "zero"))


@over_catalogue
def test_restricted(name, opaque):
    """``op.apply(Y).dofs(dofs) == restricted_op.apply(Y.dofs(source_dofs))``, as in pyMOR."""
    entry, op, Y, mu = problem(name, opaque)
    n = entry.n
    for dofs in ([], [n - 1], [n // 2, 0, n - 1, 0], np.arange(n)):
        dofs = np.array(dofs, dtype=int)
        restricted, source_dofs = op.restricted(dofs)
        small = restricted.source.make_array(Y.dofs(source_dofs))
        assert_same(restricted.apply(small, mu=mu).to_numpy(), op.apply(Y, mu=mu).dofs(dofs))
        assert restricted.range.dim == len(dofs)
        assert set(dict(restricted.parameters)) <= set(dict(op.parameters))


@given(case=st.sampled_from(CASES), data=st.data())
def test_restricted_to_any_dofs_twice(case, data):
    entry, op, Y, mu = problem(*case)
    dofs = np.array(data.draw(st.lists(st.integers(0, entry.n - 1), min_size=1, max_size=6)))
    again = np.array(data.draw(st.lists(st.integers(0, len(dofs) - 1), max_size=6)), dtype=int)
    first, first_sources = op.restricted(dofs)
    second, second_sources = first.restricted(again)
    small = second.source.make_array(Y.dofs(first_sources[second_sources]))
    assert_same(second.apply(small, mu=mu).to_numpy(), op.apply(Y, mu=mu).dofs(dofs[again]))


@over_catalogue
def test_jacobian(name, opaque):
    """A matrix where the maps are matrices, else an operator of products; with an adjoint either way."""
    entry, op, Y, mu = problem(name, opaque)
    jacobian = op.jacobian(Y[0], mu=mu)
    V, W = vectors(entry.n, 3), vectors(entry.n, 2, seed=1)
    reference = op.chain.jacobian(Y[0].to_numpy(), *op._input_and_time(mu)) @ np.eye(entry.n)
    assert jacobian.linear and (jacobian.source, jacobian.range) == (op.source, op.range)
    assert_same(jacobian.apply(V).to_numpy(), reference @ V.to_numpy())
    assert_same(jacobian.apply_adjoint(W).to_numpy(), reference.T @ W.to_numpy())
    assert_same(jacobian.apply2(W, V), W.inner(jacobian.apply(V)))
    if not op.linear:
        opaque = any(affine.is_opaque for affine in op.chain.maps)
        assert isinstance(jacobian, OdeFunctionOperator if opaque else NumpyMatrixOperator)


@pytest.mark.parametrize("opaque", [False, True], ids=["matrices", "opaque"])
@pytest.mark.parametrize("name", ["linear", "decay", "zero"])
def test_adjoint_of_linear_functions(name, opaque):
    """``(W, op(V)) == (op*(W), V)``."""
    entry, op, _, _ = problem(name, opaque)
    V, W = vectors(entry.n, 3), vectors(entry.n, 2, seed=1)
    assert op.linear and op.jacobian(V[0]) is op
    assert_same(W.inner(op.apply(V)), op.apply_adjoint(W).inner(V))
    assert_same(op.H.apply(W).to_numpy(), op.apply_adjoint(W).to_numpy())


def test_nonlinear_functions_have_no_adjoint():
    _, op, Y, _ = problem("dense", False)
    with pytest.raises(LinAlgError, match="not linear"):
        op.apply_adjoint(Y)


@over_catalogue
def test_project(name, opaque):
    """``project(op, W, V) == Wᵀ f(V z)``: a small chain, nothing lifted, nothing distributed over sums."""
    entry, op, _, mu = problem(name, opaque)
    r = min(3, entry.n)
    V, W, z = vectors(entry.n, r), vectors(entry.n, r, seed=1), vectors(r, 4)
    lifted = V.to_numpy() @ z.to_numpy()
    value = expected(entry, op.source.make_array(lifted), mu)
    projected = project(op, W, V)
    assert isinstance(projected, OdeFunctionOperator)
    assert projected.chain.state_size == projected.chain.output.size == r
    assert_same(projected.apply(z, mu=mu).to_numpy(), W.to_numpy().T @ value)
    assert_same(project(op, None, V).apply(z, mu=mu).to_numpy(), value)
    assert_same(project(op, W, None).apply(op.source.make_array(lifted), mu=mu).to_numpy(), W.to_numpy().T @ value)
    assert projected.parameters == op.parameters


@over_catalogue
def test_project_with_a_product(name, opaque):
    """``project(op, W, V, product) == Wᵀ P f(V z)``."""
    entry, op, _, mu = problem(name, opaque)
    r = min(3, entry.n)
    V, W, z = vectors(entry.n, r), vectors(entry.n, r, seed=1), vectors(r, 4)
    product = NumpyMatrixOperator(np.diag(1.0 + np.arange(entry.n)))
    value = expected(entry, op.source.make_array(V.to_numpy() @ z.to_numpy()), mu)
    projected = project(op, W, V, product=product)
    assert_same(projected.apply(z, mu=mu).to_numpy(), W.to_numpy().T @ product.matrix @ value)


@over_catalogue
def test_project_to_subbasis(name, opaque):
    entry, op, _, mu = problem(name, opaque)
    r = min(3, entry.n)
    V, W = vectors(entry.n, r), vectors(entry.n, r, seed=1)
    q = max(1, r - 1)
    z = vectors(q, 4)
    small = project_to_subbasis(project(op, W, V), q, q)
    assert_same(small.apply(z, mu=mu).to_numpy(), project(op, W[:q], V[:q]).apply(z, mu=mu).to_numpy())
    assert (small.source.dim, small.range.dim) == (q, q)


def test_project_twice_is_projecting_once():
    entry, op, _, mu = problem("GRU", False)
    V, W = vectors(entry.n, 4), vectors(entry.n, 4, seed=1)
    inner_V, inner_W = vectors(4, 2), vectors(4, 2, seed=1)
    twice = project(project(op, W, V), inner_W, inner_V)
    once = project(op, W.lincomb(inner_W.to_numpy()), V.lincomb(inner_V.to_numpy()))
    z = vectors(2, 5)
    assert_same(twice.apply(z, mu=mu).to_numpy(), once.apply(z, mu=mu).to_numpy())


def test_sums_are_pymors():
    """−f and sums of operators remain pyMOR's to form; f itself is one operator in them."""
    entry, op, Y, mu = problem("GRU", False)
    value = expected(entry, Y, mu)
    assert_same((-op).apply(Y, mu=mu).to_numpy(), -value)
    assert_same((2 * op - op).apply(Y, mu=mu).to_numpy(), value)


def test_init_arguments_are_attributes():
    op = problem("dense", False)[1]
    renamed = op.with_(name="other")
    assert renamed.name == "other" and renamed.chain is op.chain
    other = op.with_(chain=traced("sequential"))
    assert other.chain is traced("sequential") and other.name == op.name


# -- the other operators -------------------------------------------------------------------------------------------


def test_componentwise_operator():
    U = vectors(5, 3)
    assert_same(componentwise_operator("tanh", 5).apply(U).to_numpy(), np.tanh(U.to_numpy()))
    scaled = componentwise_operator("leaky_relu", 5, negative_slope=0.5)
    assert_same(scaled.apply(U).to_numpy(), np.where(U.to_numpy() > 0, U.to_numpy(), 0.5 * U.to_numpy()))
    cube = Expression(1, (Instruction("pow", ("%0", 3.0)),))
    op = componentwise_operator(cube, 5)
    assert_same(op.apply(U).to_numpy(), U.to_numpy() ** 3)
    assert_same(op.jacobian(U[0]).matrix, np.diag(3 * U[0].to_numpy()[:, 0] ** 2))
    restricted, source_dofs = op.restricted(np.array([3, 0, 3]))
    np.testing.assert_array_equal(source_dofs, [0, 3])
    assert_same(restricted.apply(restricted.source.make_array(U.dofs([0, 3]))).to_numpy(), U.dofs([3, 0, 3]) ** 3)
    assert op.name == "y ** 3"


def test_componentwise_operator_of_two_arguments():
    with pytest.raises(ShapeError, match=r"expected a function of one argument, got .* of 2: fix the others"):
        componentwise_operator(Expression.of("mul"), 5)
    with pytest.raises(ValueError, match="expected a primitive, got 'tanhh'"):
        componentwise_operator("tanhh", 5)
    with pytest.raises(ValueError, match="expected a parameter of tanh"):
        componentwise_operator("tanh", 5, slope=1.0)


def test_initial_state():
    state = np.arange(4.0)
    op = InitialStateOperator(4)
    assert op.linear and dict(op.parameters) == {"initial_state": 4}
    mu = op.parameters.parse({"initial_state": state})
    np.testing.assert_array_equal(op.as_vector(mu).to_numpy()[:, 0], state)
    np.testing.assert_array_equal(
        op.apply(op.source.make_array([[2.0, -1.0]]), mu=mu).to_numpy(), np.outer(state, [2, -1])
    )


def test_initial_state_of_a_reduced_model():
    W, c = np.random.default_rng(0).normal(size=(4, 2)), np.ones(4)
    op = InitialStateOperator(4, AffineMap(("y",), (4,), W.T, -W.T @ c))
    mu = op.parameters.parse({"initial_state": np.arange(4.0)})
    assert_same(op.as_vector(mu).to_numpy()[:, 0], W.T @ (np.arange(4.0) - c))
    assert (op.source.dim, op.range.dim) == (1, 2)
