"""The reductor of ODE layers: Petrov–Galerkin, with an offset, with sampled stages."""

import numpy as np
import pytest
from pymor.reductors.basic import InstationaryRBReductor

from catalogue import CASE_NAMES, CASES, CATALOGUE, traced
from torchmor.engine.models import ode_layer_model
from torchmor.engine.reductors import OdeLayerReductor
from torchmor.engine.stages import Interpolation
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

TIMES = (0.3, 0.5, 0.9)


def model(name, opaque=False):
    return ode_layer_model(traced(name, opaque), RungeKuttaTimeStepper("rk4", TIMES), input_times=TIMES)


def biorthogonal(fom, r, seed=0):
    """V, W with ``Wᵀ V = I``, and c."""
    rng = np.random.default_rng(seed)
    V, W = rng.normal(size=(2, fom.solution_space.dim, r))
    W = W @ np.linalg.inv(V.T @ W)
    return (fom.solution_space.make_array(x) for x in (V, W, rng.normal(size=(len(V), 1))))


def orthonormal(fom, r):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(fom.solution_space.dim, r)))[0]
    return fom.solution_space.make_array(basis)


@pytest.mark.parametrize(("name", "opaque"), CASES, ids=CASE_NAMES)
def test_reduced_model(name, opaque):
    """``z' = Wᵀ f(t, c + V z, u)``, ``z(0) = Wᵀ (y(0) − c)`` and the output ``c + V z``."""
    entry, fom = CATALOGUE[name], model(name, opaque)
    V, W, c = biorthogonal(fom, min(3, entry.n))
    reductor = OdeLayerReductor(fom, V, test_basis=W, offset=c)
    rom = reductor.reduce()
    V, W, c = V.to_numpy(), W.to_numpy(), c.to_numpy()
    y, u = entry.columns(1)
    z = np.random.default_rng(1).normal(size=(V.shape[1], 4))
    mu = {"t": 0.4, "input": None if u is None else u[:, 0]}
    mu = rom.operator.parameters.parse({p: mu[p] for p in rom.operator.parameters})
    reduced = rom.operator.apply(rom.solution_space.make_array(z), mu=mu).to_numpy()
    np.testing.assert_allclose(reduced, -W.T @ entry.values(c + V @ z, u, 0.4), rtol=1e-12, atol=1e-12)

    constant = None if u is None else u[:, 0]
    solution = rom.solve(y[:, 0], input=constant)
    np.testing.assert_allclose(solution.to_numpy()[:, :1], W.T @ (y - c), atol=1e-12)
    lifted = reductor.reconstruct(solution).to_numpy()
    np.testing.assert_allclose(lifted, c + V @ solution.to_numpy(), atol=1e-12)
    np.testing.assert_allclose(rom.output(y[:, 0], input=constant), lifted, atol=1e-12)
    assert (rom.time_stepper, rom.input_times) == (fom.time_stepper, fom.input_times)


@pytest.mark.parametrize("name", ["dense", "residual", "Burgers", "forcing"])
def test_without_interpolation_it_is_pymors_reductor(name):
    fom, y = model(name), CATALOGUE[name].columns(1)[0][:, 0]
    V = orthonormal(fom, 4)
    ours, pymors = OdeLayerReductor(fom, V), InstationaryRBReductor(fom, V)
    solutions = [r.reconstruct(r.reduce().solve(y)).to_numpy() for r in (ours, pymors)]
    np.testing.assert_allclose(*solutions, rtol=1e-12, atol=1e-13)


def test_sampled_stages():
    """Only the points of a stage are evaluated; linear parts stay exact."""
    entry, fom = CATALOGUE["rate network"], model("rate network")
    V, (points, modes) = orthonormal(fom, 3), (np.array([5, 0, 2]), np.random.default_rng(0).normal(size=(8, 3)))
    lift = modes @ np.linalg.inv(modes[points])
    rom = OdeLayerReductor(fom, V, {"g1": Interpolation(points, lift)}).reduce()
    z, u = np.random.default_rng(1).normal(size=(3, 2)), entry.columns(1)[1]
    V, f = V.to_numpy(), entry.function()
    y, weights, inputs = V @ z, f.W.detach().numpy(), f.B.detach().numpy()
    expected = V.T @ (-y + weights @ lift @ np.tanh(y)[points] + inputs @ u)
    value = -rom.operator.apply(rom.solution_space.make_array(z), mu=rom.operator.parameters.parse({"input": u[:, 0]}))
    np.testing.assert_allclose(value.to_numpy(), expected, atol=1e-13)
    (stage,) = rom.operator.chain.stages
    assert stage.size == 3


def test_kept_state():
    """Without a basis only the stages are sampled."""
    fom, y = model("two hidden layers"), CATALOGUE["two hidden layers"].columns(1)[0][:, 0]
    same = Interpolation(np.arange(11)[::-1], np.eye(11)[:, ::-1])
    reductor = OdeLayerReductor(fom, None, {"g1": same})
    rom = reductor.reduce()
    solution = rom.solve(y)
    np.testing.assert_allclose(solution.to_numpy(), fom.solve(y).to_numpy(), atol=1e-13)
    np.testing.assert_array_equal(reductor.reconstruct(solution).to_numpy(), solution.to_numpy())


@pytest.mark.parametrize("q", [1, 2, 3])
def test_part_of_the_basis(q):
    """``reduce(q)`` is the reduction with the first q vectors, as with pyMOR's reductors."""
    entry, fom = CATALOGUE["rate network"], model("rate network")
    V, W, c = biorthogonal(fom, 3)
    interpolations = {"g1": Interpolation(np.arange(8), np.eye(8))}
    reductor = OdeLayerReductor(fom, V, interpolations, W, c)
    reductor.reduce()
    y, u = entry.columns(1)
    part = OdeLayerReductor(fom, V[:q], interpolations, W[:q], c).reduce().output(y[:, 0], input=u[:, 0])
    rom = reductor.reduce(q)
    np.testing.assert_allclose(rom.output(y[:, 0], input=u[:, 0]), part, rtol=1e-12, atol=1e-13)
    lifted = reductor.reconstruct(rom.solve(y[:, 0], input=u[:, 0])).to_numpy()
    np.testing.assert_allclose(lifted, part, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="expected as many trial as test vectors"):
        reductor.reduce({"RB": 1, "test": 2})


def test_reducing_a_reduced_model():
    """With the bases of each step it is the reduction with their product."""
    entry, fom = CATALOGUE["residual"], model("residual")
    V = orthonormal(fom, 6)
    rom = OdeLayerReductor(fom, V).reduce()
    inner = orthonormal(rom, 2)
    y = entry.columns(1)[0][:, 0]
    twice = InstationaryRBReductor(rom, inner).reduce()
    once = OdeLayerReductor(fom, V.lincomb(inner.to_numpy())).reduce()
    np.testing.assert_allclose(twice.output(y), once.output(y), rtol=1e-12, atol=1e-13)


def test_bases_that_do_not_fit():
    fom = model("dense")
    V, W, _ = biorthogonal(fom, 3)
    with pytest.raises(
        ValueError, match=r"expected bases with Wᵀ V = I, got 3 × 3 vectors and an error of .*orthonormalise V"
    ):
        OdeLayerReductor(fom, V)
    with pytest.raises(ValueError, match="got 2 × 3 vectors"):
        OdeLayerReductor(fom, V, test_basis=W[:2])
