"""Laws of the stage chain, each over the whole catalogue, with matrices and with maps known by products only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalogue import ACTIVATIONS, CASE_NAMES, CASES, CATALOGUE, FUNCTIONS, rows, traced
from torchmor.adapters.layers.ode_layer import OdeFunction
from torchmor.engine import functions
from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import ShapeError
from torchmor.engine.expressions import Expression
from torchmor.engine.stages import Interpolation, Stage, StageChain

TIME = 0.3
over_catalogue = pytest.mark.parametrize(("name", "opaque"), CASES, ids=CASE_NAMES)
both_forms = pytest.mark.parametrize("opaque", [False, True], ids=["matrices", "opaque"])

#: torch computes these derivatives with constants in single precision.
ROUNDED = {"CELU": 1e-7, "Hardsigmoid": 1e-7}


def assert_same(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def orthonormal(n, r, seed=0):
    return np.linalg.qr(np.random.default_rng([seed, n]).normal(size=(n, r)))[0]


# -- jacobian ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "opaque"), [*CASES, *((name, False) for name in ACTIVATIONS)])
def test_jacobian(name, opaque):
    """∂f/∂y is that of autograd, and of central differences; transposed products are those of the transpose."""
    entry, chain = FUNCTIONS[name], traced(name, opaque)
    y, u = entry.columns(1, seed=5)
    f, time = OdeFunction(entry.function()), torch.tensor(TIME, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda state: f(time, state, rows(u)), entry.batch(y), vectorize=True)
    expected = expected.reshape(entry.n, entry.n).numpy()

    jacobian = chain.jacobian(y, u, TIME)
    assert_same(jacobian @ np.eye(entry.n), expected, ROUNDED.get(name, 1e-12))
    expected = jacobian @ np.eye(entry.n)
    assert_same(jacobian.rmatmat(np.eye(entry.n)), expected.T)
    v = np.random.default_rng(0).normal(size=(entry.n, 1))
    assert_same(jacobian @ v[:, 0], expected @ v[:, 0])
    assert_same(jacobian.rmatvec(v[:, 0]), expected.T @ v[:, 0])
    h = 1e-6
    difference = (chain(y + h * v, u, TIME) - chain(y - h * v, u, TIME)) / (2 * h)
    assert_same(jacobian @ v, difference, 1e-7)


# -- restriction -------------------------------------------------------------------------------------------------


def check_restricted(entry, chain, dofs):
    dofs = np.asarray(dofs, dtype=np.int64)
    restricted, source_dofs = chain.restrict(dofs)
    y, u = entry.columns(3, seed=2)
    assert_same(restricted(y[source_dofs], u, TIME), entry.values(y, u, TIME)[dofs])
    assert restricted.state_size == len(source_dofs) and restricted.output.size == len(dofs)
    assert np.all(np.diff(source_dofs) > 0)
    return restricted, source_dofs


@over_catalogue
def test_restrict(name, opaque):
    """``chain(y)[dofs] == restricted(y[source_dofs])`` for no dofs, some twice and in any order, and all."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    n = entry.n
    _, none = check_restricted(entry, chain, [])
    assert len(none) == 0
    for dofs in ([n - 1], [n - 1, 0, n // 2, 0, n - 1], range(n), np.arange(n)[::-1]):
        check_restricted(entry, chain, dofs)


@given(case=st.sampled_from(CASES), data=st.data())
def test_restrict_to_any_dofs(case, data):
    entry = CATALOGUE[case[0]]
    dofs = data.draw(st.lists(st.integers(0, entry.n - 1), max_size=6))
    check_restricted(entry, traced(*case), dofs)


@over_catalogue
def test_restrict_twice(name, opaque):
    """Restricting to ``dofs`` and then to ``again`` is restricting to ``dofs[again]``."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    dofs, again = np.array([entry.n - 1, 0, entry.n // 2]), np.array([2, 0, 2])
    first, first_sources = chain.restrict(dofs)
    second, second_sources = first.restrict(again)
    direct, direct_sources = chain.restrict(dofs[again])
    np.testing.assert_array_equal(first_sources[second_sources], direct_sources)
    y, u = entry.columns(3, seed=2)
    assert_same(second(y[direct_sources], u, TIME), direct(y[direct_sources], u, TIME), 1e-14)


@both_forms
@pytest.mark.parametrize("name", ["convolution", "residual", "time channels", "bottleneck", "Burgers", "second order"])
def test_restricted_reads_what_it_needs_and_no_more(name, opaque):
    """The source dofs are those of which some component depends, and stages shrink with them."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    dofs = np.array([entry.n // 2, 1])
    restricted, source_dofs = chain.restrict(dofs)
    depends = np.zeros(entry.n, dtype=bool)
    for seed in range(20):  # relu hides some dependence at each state
        y, u = entry.columns(1, seed)
        depends |= np.any((chain.jacobian(y, u, TIME) @ np.eye(entry.n))[dofs] != 0, axis=0)
    np.testing.assert_array_equal(source_dofs, np.flatnonzero(depends))
    assert sum(s.size for s in restricted.stages) < sum(s.size for s in chain.stages)


def test_stages_that_are_not_needed_are_dropped():
    chain = traced("second order")
    restricted, source_dofs = chain.restrict(np.array([0, 2]))  # velocities
    assert restricted.stages == ()
    np.testing.assert_array_equal(source_dofs, [4, 6])


# -- reduction ---------------------------------------------------------------------------------------------------


def galerkin(entry, seed=0):
    n = entry.n
    r = min(4, n)
    rng = np.random.default_rng(seed)
    return orthonormal(n, r, seed), rng.normal(size=(n, r)), rng.normal(size=n), rng.normal(size=(r, 3))


@over_catalogue
def test_reduce_is_projection(name, opaque):
    """``Wᵀ f(t, c + V z, u)``, exactly; and with parts of it left out."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    trial, test, offset, z = galerkin(entry)
    _, u = entry.columns(3)
    lifted = offset[:, np.newaxis] + trial @ z
    reduced = chain.reduce(trial, test, offset)
    assert_same(reduced(z, u, TIME), test.T @ entry.values(lifted, u, TIME))
    assert not any(affine.is_opaque and "y" in affine.sources for affine in reduced.maps)
    assert_same(chain.reduce(trial)(z, u, TIME), entry.values(trial @ z, u, TIME))
    assert_same(chain.reduce(test=test)(lifted, u, TIME), test.T @ entry.values(lifted, u, TIME))
    assert_same(chain.reduce(offset=offset)(trial @ z, u, TIME), entry.values(lifted, u, TIME))
    assert_same(chain.reduce()(lifted, u, TIME), entry.values(lifted, u, TIME))


@over_catalogue
def test_reduce_twice_is_reducing_once(name, opaque):
    entry, chain = CATALOGUE[name], traced(name, opaque)
    trial, test, offset, _ = galerkin(entry)
    r = trial.shape[1]
    rng = np.random.default_rng(1)
    inner_trial, inner_test, inner_offset = rng.normal(size=(r, 2)), rng.normal(size=(r, 2)), rng.normal(size=r)
    twice = chain.reduce(trial, test, offset).reduce(inner_trial, inner_test, inner_offset)
    once = chain.reduce(trial @ inner_trial, test @ inner_test, offset + trial @ inner_offset)
    _, u = entry.columns(3)
    z = rng.normal(size=(2, 3))
    assert_same(twice(z, u, TIME), once(z, u, TIME))


@over_catalogue
def test_jacobian_of_the_reduced_chain(name, opaque):
    """``Wᵀ f'(c + V z) V``."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    trial, test, offset, z = galerkin(entry)
    _, u = entry.columns(1)
    jacobian = chain.reduce(trial, test, offset).jacobian(z[:, :1], u, TIME)
    expected = test.T @ (chain.jacobian(offset[:, np.newaxis] + trial @ z[:, :1], u, TIME) @ trial)
    assert_same(jacobian @ np.eye(len(z)), expected)
    assert_same(jacobian.rmatmat(np.eye(test.shape[1])), expected.T)


def sampling(chain, share=0.5, seed=0):
    """An interpolation of every stage, on random modes."""
    rng = np.random.default_rng(seed)
    found = {}
    for stage in chain.stages:
        m = max(1, int(share * stage.size))
        points, modes = rng.permutation(stage.size)[:m], rng.normal(size=(stage.size, m))
        found[stage.name] = Interpolation(points, np.linalg.solve(modes[points].T, modes.T).T)
    return found


def sampled_values(chain, interpolations, y, u, t):
    """The interpolated f, by its definition: every stage is evaluated in full, sampled and lifted."""
    values = {"y": y, "u": u, "t": np.array([[t]])}
    for stage in chain.stages:
        arguments = np.split(stage.argument.apply(values), stage.expression.arity)
        g = np.broadcast_to(functions.evaluate(stage.expression, arguments), (stage.size, y.shape[1]))
        sampled = interpolations.get(stage.name)
        values[stage.name] = g if sampled is None else sampled.lift @ g[sampled.points]
    return np.broadcast_to(chain.output.apply(values), y.shape)


@over_catalogue
def test_interpolated_stages(name, opaque):
    """Each stage g becomes ``lift @ g[points]``, also where a later stage reads it."""
    entry, chain = CATALOGUE[name], traced(name, opaque)
    trial, test, offset, z = galerkin(entry)
    _, u = entry.columns(3)
    interpolations = sampling(chain)
    reduced = chain.reduce(trial, test, offset, interpolations)
    lifted = offset[:, np.newaxis] + trial @ z
    assert_same(reduced(z, u, TIME), test.T @ sampled_values(chain, interpolations, lifted, u, TIME), 1e-10)
    assert [s.size for s in reduced.stages] == [len(i.points) for i in interpolations.values()]


@over_catalogue
def test_interpolation_at_all_points_is_exact(name, opaque):
    entry, chain = CATALOGUE[name], traced(name, opaque)
    y, u = entry.columns(3)
    assert_same(chain.reduce(interpolations=sampling(chain, 1.0))(y, u, TIME), entry.values(y, u, TIME), 1e-9)


def test_classic_method_in_numpy():
    """``z' = N σ_m(A_m z + b_m) + Z_r u`` with the matrices of the literature."""
    entry = CATALOGUE["classic"]
    f = entry.function()
    A, b, Z = (p.detach().numpy() for p in (f.A.weight, f.A.bias, f.Z.weight))
    trial, rng = orthonormal(10, 4), np.random.default_rng(0)
    U, points = orthonormal(10, 5, seed=1), np.array([7, 2, 3, 9, 0])
    lift = U @ np.linalg.inv(U[points])
    chain = traced("classic").reduce(trial, trial, interpolations={"g1": Interpolation(points, lift)})
    z, u = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))
    N, A_m, b_m, Z_r = trial.T @ lift, A[points] @ trial, b[points], trial.T @ Z
    assert_same(chain(z, u), N @ np.tanh(A_m @ z + b_m[:, np.newaxis]) + Z_r @ u)
    (stage,) = chain.stages
    assert_same(stage.argument.linear, A_m)
    assert_same(stage.argument.shift, b_m)
    blocks = chain.output.blocks()
    assert_same(blocks["g1"], N)
    assert_same(blocks["u"], Z_r)


# -- values ------------------------------------------------------------------------------------------------------


@over_catalogue
def test_evaluate_returns_every_source(name, opaque):
    entry, chain = CATALOGUE[name], traced(name, opaque)
    y, u = entry.columns(3)
    values = chain.evaluate(y, u, TIME)
    assert {s.name: (s.size, 3) for s in chain.stages} == {s.name: values[s.name].shape for s in chain.stages}
    np.testing.assert_array_equal(values["output"], chain(y, u, TIME))


@over_catalogue
def test_times_and_inputs_may_differ_between_columns(name, opaque):
    entry, chain = CATALOGUE[name], traced(name, opaque)
    y, u = entry.columns(3)
    times = np.array([0.0, -0.4, 2.0])
    value = chain(y, u, times)
    for i, t in enumerate(times):
        alone = None if u is None else u[:, i : i + 1]
        assert_same(value[:, i : i + 1], chain(y[:, i : i + 1], alone, t), 1e-13)
        if u is not None:
            assert_same(chain(y, alone, t), chain(y, np.repeat(alone, 3, axis=1), t), 1e-13)


@over_catalogue
def test_no_columns(name, opaque):
    entry, chain = CATALOGUE[name], traced(name, opaque)
    u = np.zeros((entry.p, 0)) if entry.p else None
    assert chain(np.zeros((entry.n, 0)), u, TIME).shape == (entry.n, 0)


@over_catalogue
def test_negation(name, opaque):
    entry, chain = CATALOGUE[name], traced(name, opaque)
    y, u = entry.columns(3)
    np.testing.assert_array_equal((-chain)(y, u, TIME), -chain(y, u, TIME))


@pytest.mark.slow
def test_linear_chains():
    linear = {name for name in CATALOGUE if traced(name).is_linear}
    assert linear == {"linear", "decay", "zero"}


# -- construction ------------------------------------------------------------------------------------------------

TANH = Expression.of("tanh")


def affine(shift_size=2, **sizes):
    return AffineMap.from_blocks({s: np.ones((shift_size, n)) for s, n in sizes.items()}, np.zeros(shift_size))


def test_a_chain_reads_sources_that_exist():
    stage = Stage("g1", TANH, affine(y=3))
    with pytest.raises(ShapeError, match="'output' reads 2 entries of 'h', which has None"):
        StageChain(3, 0, (stage,), affine(h=2))
    with pytest.raises(ShapeError, match="'g1' reads 3 entries of 'y', which has 4"):
        StageChain(4, 0, (stage,), affine(g1=2))
    with pytest.raises(ShapeError, match="'g1' reads 2 entries of 'g2', which has None"):
        StageChain(3, 0, (replace(stage, argument=affine(g2=2)), replace(stage, name="g2")), affine(g1=2))
    with pytest.raises(ShapeError, match="'output' reads 1 entries of 'u', which has 0"):
        StageChain(3, 0, (), affine(u=1))


@pytest.mark.parametrize("name", ["g1", "y", "u", "t"])
def test_names_are_unique(name):
    stages = (Stage("g1", TANH, affine(y=3)), Stage(name, TANH, affine(y=3)))
    with pytest.raises(ShapeError, match=f"there are two stages named '{name}'"):
        StageChain(3, 0, stages, affine(g1=2))


def test_rows_of_a_stage_divide_by_its_arguments():
    with pytest.raises(
        ShapeError, match="stage 'g' has 2 arguments, so its map needs a multiple of that many rows, got 3"
    ):
        Stage("g", Expression.of("mul"), affine(3, y=3))
    stage = Stage("g", Expression.of("mul"), affine(6, y=3))
    assert stage.size == 3
    np.testing.assert_array_equal(stage.rows([2, 0, 2]), [2, 0, 2, 5, 3, 5])
