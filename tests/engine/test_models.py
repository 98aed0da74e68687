"""The pyMOR model of an ODE function, without torch."""

from itertools import pairwise

import numpy as np
import pytest
from pymor.models.basic import InstationaryModel

from catalogue import CATALOGUE, traced
from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import InputError
from torchmor.engine.models import OdeLayerModel, ode_layer_model
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

TIMES = (1.0, 1.4, 1.5, 2.3)
STEPPER = RungeKuttaTimeStepper("rk4", TIMES)


def model(name="classic", **options) -> OdeLayerModel:
    return ode_layer_model(traced(name), STEPPER, input_times=TIMES, **options)


def rungekutta(f, y, times=TIMES):
    """Kutta's 3/8 rule, written out."""
    states = [y]
    for t, end in pairwise(times):
        h = end - t
        k1 = f(t, y)
        k2 = f(t + h / 3, y + h * k1 / 3)
        k3 = f(t + 2 * h / 3, y + h * (k2 - k1 / 3))
        k4 = f(t + h, y + h * (k1 - k2 + k3))
        y = y + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
        states.append(y)
    return np.hstack(states)


@pytest.mark.parametrize(
    "name", ["dense", "classic", "rate network", "forcing", "time channels", "GRU", "linear", "constant"]
)
def test_model_is_the_ode(name):
    """The operator is A = −f, from time 0 to the length of the layer's times; the solution is the trajectory."""
    entry, fom = CATALOGUE[name], model(name)
    y, u = entry.columns(2)
    assert isinstance(fom, InstationaryModel)
    assert pytest.approx(1.3) == fom.T
    assert dict(fom.parameters) == {"initial_state": entry.n} and fom.dim_input == entry.p
    mu = {"t": 1.5, "input": None if u is None else u[:, 0]}
    mu = fom.operator.parameters.parse({p: mu[p] for p in fom.operator.parameters})
    np.testing.assert_allclose(
        fom.operator.apply(fom.solution_space.make_array(y), mu=mu).to_numpy(),
        -entry.values(y, None if u is None else u[:, :1], 1.5),
        atol=1e-12,
    )
    constant = None if u is None else u[:, 0]
    solution = fom.solve({"initial_state": y[:, 0]}, input=constant).to_numpy()
    expected = rungekutta(lambda t, y: entry.values(y, None if u is None else u[:, :1], t), y[:, :1])
    np.testing.assert_allclose(solution, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(fom.output({"initial_state": y[:, 0]}, input=constant), solution)


@pytest.mark.parametrize("interpolation", ["linear", "previous"])
def test_inputs_given_in_any_way(interpolation):
    """Samples, a callable and pyMOR's own inputs of the same signal give the same solution."""
    entry, fom = CATALOGUE["classic"], model(interpolation=interpolation)
    y = entry.columns(1)[0][:, 0]
    samples = np.random.default_rng(0).normal(size=(len(TIMES), 3))

    def sampled(t):
        if interpolation == "previous":
            return samples[np.flatnonzero(np.array(TIMES) <= t)[-1]]
        return np.array([np.interp(t, TIMES, channel) for channel in samples.T])

    solution = fom.solve({"initial_state": y}, input=samples).to_numpy()
    expected = rungekutta(lambda t, y: entry.values(y, sampled(t)[:, np.newaxis], t), y[:, np.newaxis])
    np.testing.assert_allclose(solution, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fom.solve(y, input=sampled).to_numpy(), solution, rtol=1e-13)
    constant = fom.solve(y, input=samples[0]).to_numpy()
    written = f"[{', '.join(map(repr, samples[0].tolist()))}]"
    np.testing.assert_allclose(fom.solve(y, input=written).to_numpy(), constant, rtol=1e-13)
    expressions = fom.solve(y, input="[t[0], sin(t[0]), 2]").to_numpy()
    np.testing.assert_allclose(fom.solve(y, input=lambda t: [t, np.sin(t), 2]).to_numpy(), expressions, rtol=1e-13)


def test_encoding_and_decoding():
    """The initial state goes through `encode`, the output through `decode`."""
    rng = np.random.default_rng(0)
    V, c = np.linalg.qr(rng.normal(size=(9, 4)))[0], rng.normal(size=9)
    encode, decode = AffineMap(("y",), (9,), V.T, -V.T @ c), AffineMap(("y",), (4,), V, c)
    chain = traced("dense").reduce(V, V, c)
    rom = ode_layer_model(chain, STEPPER, encode=encode, decode=decode)
    y0 = rng.normal(size=9)
    z = rom.solve({"initial_state": y0}).to_numpy()
    np.testing.assert_allclose(z[:, 0], V.T @ (y0 - c), atol=1e-13)
    np.testing.assert_allclose(z, rungekutta(lambda t, z: chain(z, t=t), z[:, :1]), atol=1e-13)
    np.testing.assert_allclose(rom.output({"initial_state": y0}), c[:, np.newaxis] + V @ z, atol=1e-13)
    assert dict(rom.parameters) == {"initial_state": 9} and rom.solution_space.dim == 4


def test_change_by_with():
    fom, y = model(), np.ones(10)
    finer = fom.with_(time_stepper=STEPPER.with_(step_size=0.05))
    assert isinstance(finer, OdeLayerModel) and finer.input_times == TIMES
    samples = np.random.default_rng(0).normal(size=(len(TIMES), 3))
    solutions = [m.solve(y, input=samples).to_numpy() for m in (fom, finer)]
    assert 0 < np.abs(solutions[0] - solutions[1]).max() < 0.1


def test_cached_solutions_depend_on_state_and_input():
    fom = model()
    fom.enable_caching("memory")
    y, samples = np.ones(10), np.random.default_rng(0).normal(size=(2, len(TIMES), 3))
    plain = [model().solve(y, input=u).to_numpy() for u in samples]
    for _ in range(2):
        for u, expected in zip(samples, plain, strict=True):
            np.testing.assert_array_equal(fom.solve(y, input=u).to_numpy(), expected)
    assert np.abs(fom.solve(2 * y, input=samples[0]).to_numpy() - plain[0]).max() > 0.1


def test_missing_and_superfluous_inputs():
    with pytest.raises(InputError, match="expected an input of 3 channels, got none"):
        model().solve(np.ones(10))
    with pytest.raises(InputError, match="expected no input, because the ODE function does not read one"):
        model("dense").solve(np.ones(9), input=np.ones(2))
    with pytest.raises(InputError, match=r"expected input samples of shape \(4, 3\)"):
        model().solve(np.ones(10), input=np.ones((5, 3)))


def test_initial_state_of_another_size():
    with pytest.raises(ValueError, match=r"incompatible with Parameters {initial_state: 9}"):
        model("dense").solve(np.ones(8))
