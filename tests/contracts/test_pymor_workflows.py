"""pyMOR's own algorithms on the model of an ODE layer: each runs as it is, and its numbers are right."""

import gc
from functools import cache

import numpy as np
import pytest
import torch
from pymor.algorithms.ei import deim, ei_greedy, interpolate_operators, qdeim
from pymor.algorithms.gram_schmidt import gram_schmidt
from pymor.algorithms.hapod import inc_vectorarray_hapod
from pymor.algorithms.pod import pod
from pymor.algorithms.projection import project
from pymor.algorithms.timestepping import ExplicitEulerTimeStepper, ImplicitEulerTimeStepper
from pymor.operators.constructions import IdentityOperator
from pymor.operators.ei import EmpiricalInterpolatedOperator
from pymor.operators.numpy import NumpyMatrixOperator
from pymor.reductors.basic import InstationaryRBReductor

from catalogue import CATALOGUE
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.models.to_pymor import full_order_model
from torchmor.engine.bases import pod as our_pod
from torchmor.engine.operators import OdeFunctionOperator
from torchmor.engine.points import interpolate
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.reductors import OdeLayerReductor

#: Autonomous functions: dense, layered, convolutions, products.
NAMES = ("dense", "two hidden layers", "convolution", "bottleneck", "Burgers", "gate")
autonomous = pytest.mark.parametrize("name", NAMES)
ALGORITHMS = {"ei_greedy": ei_greedy, "deim": deim, "qdeim": qdeim}
algorithms = pytest.mark.parametrize("alg", ALGORITHMS)
TIMES = tuple(np.linspace(0.0, 1.0, 11))


@cache
def model(name, method="rk4"):
    return full_order_model(ODELayer(CATALOGUE[name].function(), TIMES, method), *CATALOGUE[name].example())


def initial_states(name, k=4):
    parameters = model(name).parameters
    return [parameters.parse({"initial_state": y}) for y in 0.3 * CATALOGUE[name].columns(k, seed=3)[0].T]


@cache
def solutions(name, method):
    return np.hstack([model(name, method).solve(mu).to_numpy() for mu in initial_states(name)])


def snapshots(name, method="rk4"):
    return model(name).solution_space.make_array(solutions(name, method).copy())


def evaluations(fom, U):
    """f at snapshots."""
    return -fom.operator.apply(U)


def relative(approximate, exact):
    return np.linalg.norm(approximate - exact) / np.linalg.norm(exact)


@autonomous
def test_pod(name):
    U = snapshots(name)
    modes, values = pod(U, modes=5)
    left, spectrum, _ = np.linalg.svd(U.to_numpy(), full_matrices=False)
    r = len(modes)
    assert r == 5
    np.testing.assert_allclose(values, spectrum[:r], rtol=1e-7)
    np.testing.assert_allclose(modes.to_numpy() @ modes.to_numpy().T, left[:, :r] @ left[:, :r].T, atol=1e-6)


@autonomous
def test_hapod(name):
    """The l2-mean projection error of incremental HAPOD is below its bound."""
    U = snapshots(name)
    eps = 1e-3
    modes, _, count = inc_vectorarray_hapod(5, U, eps, omega=0.75)
    assert count == len(U) and (0 < len(modes) < min(U.dim, len(U)) or U.dim < 10)
    V = modes.to_numpy()
    np.testing.assert_allclose(V.T @ V, np.eye(len(modes)), atol=1e-9)
    error = np.linalg.norm(U.to_numpy() - V @ (V.T @ U.to_numpy())) / np.sqrt(len(U))
    assert error <= eps


@autonomous
def test_projection_on_a_pod_basis(name):
    """``project(A, V, V) == Vᵀ A(V z)``."""
    fom = model(name)
    V, _ = pod(snapshots(name), modes=4)
    z = np.random.default_rng(0).normal(size=(len(V), 5))
    value = project(fom.operator, V, V).apply(project(fom.operator, V, V).source.make_array(z)).to_numpy()
    expected = -V.to_numpy().T @ CATALOGUE[name].values(V.to_numpy() @ z)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@algorithms
@autonomous
def test_empirical_interpolation(name, alg):
    """``EmpiricalInterpolatedOperator(f) == U (U[dofs])⁻¹ f[dofs]``, its jacobian, and its projection."""
    fom = model(name)
    states = snapshots(name)
    data = evaluations(fom, states)
    limit = {"max_interpolation_dofs": 4} if alg == "ei_greedy" else {"modes": 4}
    dofs, basis, _ = ALGORITHMS[alg](data, **limit)
    f = OdeFunctionOperator(-fom.operator.chain)  # pyMOR keeps a weak reference: this is the one that holds it
    interpolated = EmpiricalInterpolatedOperator(f, dofs, basis, alg == "ei_greedy")
    gc.collect()

    U, y = basis.to_numpy(), states.to_numpy()[:, ::5]
    lift = U @ np.linalg.inv(U[dofs])
    values = CATALOGUE[name].values
    result = interpolated.apply(f.source.make_array(y)).to_numpy()
    np.testing.assert_allclose(result, lift @ values(y)[dofs], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(result[dofs], values(y)[dofs], rtol=1e-9, atol=1e-11)  # exact at its points

    v, h = np.random.default_rng(0).normal(size=(f.source.dim, 1)), 1e-6
    jacobian = interpolated.jacobian(f.source.make_array(y[:, :1]))
    difference = lift @ (values(y[:, :1] + h * v) - values(y[:, :1] - h * v))[dofs] / (2 * h)
    product = jacobian.apply(f.source.make_array(v)).to_numpy()
    np.testing.assert_allclose(product, difference, rtol=1e-6, atol=1e-7)

    V, _ = pod(states, modes=4)
    projected, V = project(interpolated, V, V), V.to_numpy()
    z = np.random.default_rng(1).normal(size=(V.shape[1], 3))
    reduced = projected.apply(projected.source.make_array(z)).to_numpy()
    np.testing.assert_allclose(reduced, V.T @ lift @ values(V @ z)[dofs], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["dense", "residual"])
def test_jacobian_after_garbage_collection(name):
    """With a held reference to the full operator, also where it is restricted for the first time."""
    fom = model(name)
    dofs, basis, _ = deim(evaluations(fom, snapshots(name)), modes=3)
    interpolated = EmpiricalInterpolatedOperator(fom.operator, dofs, basis, False)
    gc.collect()
    y = fom.solution_space.make_array(CATALOGUE[name].columns(1)[0])
    assert np.all(np.isfinite(interpolated.jacobian(y).apply(y).to_numpy()))


@algorithms
@pytest.mark.parametrize("name", ["dense", "two hidden layers", "bottleneck", "Burgers"])
def test_interpolate_operators_and_reduce(name, alg):
    """pyMOR's whole pipeline gives ``z' = Vᵀ U (U[dofs])⁻¹ f(V z)[dofs]``, which comes near the full solution."""
    fom, mus = model(name, "euler"), initial_states(name)
    states = snapshots(name, "euler")
    errors = []
    for size in (3, 7):
        m = min(2 * size, fom.solution_space.dim)
        interpolated, data = interpolate_operators(fom, ["operator"], mus, alg=alg, max_interpolation_dofs=m)
        assert isinstance(interpolated.operator, EmpiricalInterpolatedOperator)
        V, _ = pod(states, modes=size)
        reductor = InstationaryRBReductor(interpolated, V)
        rom = reductor.reduce()
        solution = np.hstack([reductor.reconstruct(rom.solve(mu)).to_numpy() for mu in mus])
        errors.append(relative(solution, states.to_numpy()))

        dofs, U, V = data["dofs"], data["basis"].to_numpy(), V.to_numpy()
        assert U.shape == (fom.solution_space.dim, len(dofs)) and 0 < len(dofs) <= m
        z = V.T @ mus[0]["initial_state"][:, np.newaxis]
        for _ in range(10):
            z = z + 0.1 * V.T @ U @ np.linalg.solve(U[dofs], CATALOGUE[name].values(V @ z)[dofs])
        np.testing.assert_allclose(solution[:, 10:11], V @ z, rtol=1e-9, atol=1e-10)
    assert errors[1] < errors[0] / 3 and errors[1] < 0.1


@autonomous
def test_reduced_basis_reductor(name):
    """``z' = −Vᵀ A(V z)``: with all of the space the full solution, with part of a basis that of the part."""
    fom, mu = model(name), initial_states(name, 1)[0]
    exact = fom.solve(mu).to_numpy()
    n = fom.solution_space.dim
    V = fom.solution_space.make_array(np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0])
    reductor = InstationaryRBReductor(fom, V)
    rom = reductor.reduce()
    assert isinstance(rom.operator, OdeFunctionOperator)
    np.testing.assert_allclose(reductor.reconstruct(rom.solve(mu)).to_numpy(), exact, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(rom.output(mu), exact, rtol=1e-11, atol=1e-12)
    part = reductor.reduce(2)
    direct = InstationaryRBReductor(fom, V[:2].copy()).reduce()
    assert part.solution_space.dim == 2
    np.testing.assert_allclose(part.solve(mu).to_numpy(), direct.solve(mu).to_numpy(), rtol=1e-12, atol=1e-13)


def test_reduced_basis_reductor_with_a_product():
    """A basis that is orthonormal in another product gives a model with a mass matrix, and the same solutions."""
    fom, mu = model("dense"), initial_states("dense", 1)[0]
    product = NumpyMatrixOperator(np.diag(1.0 + np.arange(9)))
    V = fom.solution_space.random(9)
    gram_schmidt(V, product, copy=False)
    reductor = InstationaryRBReductor(fom, V, product, initial_data_product=IdentityOperator(fom.solution_space))
    rom = reductor.reduce()
    np.testing.assert_allclose(rom.mass.matrix, V.gramian(), atol=1e-13)
    solution = reductor.reconstruct(rom.solve(mu)).to_numpy()
    np.testing.assert_allclose(solution, fom.solve(mu).to_numpy(), rtol=1e-10, atol=1e-11)


@algorithms
def test_our_interpolation_of_one_stage_is_pymors_of_the_function(alg):
    """Where f is a single stage, sampling it is the EmpiricalInterpolatedOperator of f, projected."""
    name = "dense"
    fom = model(name)
    states = snapshots(name)
    reduction = SnapshotReductor(fom, states.to_numpy()).reduce(state_dim=4, points=5, selection=alg)
    points, f = reduction.points["g1"], OdeFunctionOperator(-fom.operator.chain)
    basis = fom.solution_space.make_array(reduction.bases["g1"])
    interpolated = EmpiricalInterpolatedOperator(f, points, basis, alg == "ei_greedy")
    V = fom.solution_space.make_array(reduction.bases["state"])
    pymors = project(interpolated, V, V)
    z = pymors.source.make_array(np.random.default_rng(0).normal(size=(4, 6)))
    ours = -reduction.rom.operator.apply(z)
    np.testing.assert_allclose(ours.to_numpy(), pymors.apply(z).to_numpy(), rtol=1e-9, atol=1e-11)

    values = evaluations(fom, states)
    limit = {"max_interpolation_dofs": 5} if alg == "ei_greedy" else {"modes": 5}
    dofs, _, _ = ALGORITHMS[alg](values, **limit)
    np.testing.assert_array_equal(np.sort(points), np.sort(dofs))


@pytest.mark.parametrize("name", ["dense", "rate network", "residual", "time channels", "GRU"])
def test_output_is_the_state(name):
    entry, fom = CATALOGUE[name], model(name)
    y, u = entry.columns(1)
    constant = None if u is None else u[:, 0]
    np.testing.assert_array_equal(
        fom.output({"initial_state": y[:, 0]}, input=constant),
        fom.solve({"initial_state": y[:, 0]}, input=constant).to_numpy(),
    )


def test_change_by_with():
    """pyMOR's `with_` and `with_time_stepper` on the model, and on the reduced model."""
    fom, mu = model("dense", "euler"), initial_states("dense", 1)[0]
    finer = fom.with_time_stepper(method="rk4", step_size=0.01)
    reference = ODELayer(CATALOGUE["dense"].function(), t=TIMES, method="rk4", options={"step_size": 0.01})
    end = reference(torch.tensor(mu["initial_state"])[None])[0].detach().numpy()
    np.testing.assert_allclose(finer.solve(mu).to_numpy()[:, -1], end, rtol=1e-12)
    V, _ = pod(fom.solve(mu))
    rom = OdeLayerReductor(finer, V).reduce()
    assert rom.time_stepper is finer.time_stepper
    named = fom.with_(name="mine", operator=fom.operator.with_(name="A"))
    assert (named.name, named.operator.name) == ("mine", "A")
    np.testing.assert_array_equal(named.solve(mu).to_numpy(), fom.solve(mu).to_numpy())


def test_caching(monkeypatch):
    fom, (first, second) = model("dense").with_(name="cached"), initial_states("dense", 2)
    plain = [fom.solve(mu).to_numpy() for mu in (first, second)]
    fom.enable_caching("memory")
    fom.solve(first), fom.solve(second)
    monkeypatch.setattr(type(fom.time_stepper), "integrate", None)  # no further solve
    for mu, solution in zip((first, second), plain, strict=True):
        np.testing.assert_array_equal(fom.solve(mu).to_numpy(), solution)


@autonomous
def test_pymors_explicit_euler(name):
    """The same model with pyMOR's own time stepper, from time 0 in uniform steps."""
    fom, mu = model(name, "euler"), initial_states(name, 1)[0]
    other = fom.with_(time_stepper=ExplicitEulerTimeStepper(10))
    np.testing.assert_allclose(other.solve(mu).to_numpy(), fom.solve(mu).to_numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["dense", "Burgers", "linear"])
def test_pymors_implicit_euler(name):
    """``(y_k − y_{k−1}) / h = f(y_k)``, by pyMOR's Newton method with our jacobian."""
    fom, mu = model(name), initial_states(name, 1)[0]
    y = fom.with_(time_stepper=ImplicitEulerTimeStepper(5)).solve(mu).to_numpy()
    slopes = CATALOGUE[name].values(y[:, 1:])
    np.testing.assert_allclose((y[:, 1:] - y[:, :-1]) * 5, slopes, atol=1e-5)


def test_interpolation_data_of_our_stages_in_pymors_operator():
    """`interpolate` and pyMOR's algorithms on the same values give the same points."""
    fom = model("dense")
    values = evaluations(fom, snapshots("dense")).to_numpy()
    for alg, function in (("deim", deim), ("qdeim", qdeim)):
        dofs, _, _ = function(fom.solution_space.make_array(values), modes=5)
        np.testing.assert_array_equal(interpolate(values, our_pod(values), 5, alg).points, dofs)
