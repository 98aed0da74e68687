"""Runge–Kutta methods with fixed steps, on pyMOR models."""

import numpy as np
import pytest
import torch
from pymor.operators.constructions import LincombOperator, VectorOperator
from pymor.operators.numpy import NumpyMatrixOperator
from pymor.parameters.functionals import ExpressionParameterFunctional
from scipy.linalg import expm
from torchdiffeq import odeint

from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import SolverError
from torchmor.engine.expressions import Expression
from torchmor.engine.models import ode_layer_model
from torchmor.engine.stages import Stage, StageChain
from torchmor.engine.tableaux import OWN_METHODS, TABLEAUX
from torchmor.engine.time_steppers import LayerTimeStepper, RungeKuttaTimeStepper

METHODS = pytest.mark.parametrize("method", TABLEAUX)
TORCHDIFFEQ_METHODS = pytest.mark.parametrize("method", [name for name in TABLEAUX if name not in OWN_METHODS])
A = np.array([[-0.4, 1.0, 0.0], [-1.0, -0.4, 0.3], [0.0, 0.2, -0.9]])
Y0 = np.array([1.0, -0.5, 2.0])
TIMES = (1.0, 1.1, 1.6)


def linear(matrix=A) -> StageChain:
    n = len(matrix)
    return StageChain(n, 0, (), AffineMap.from_blocks({"y": matrix}))


def driven() -> StageChain:
    """y' = tanh(A y + t b) − y: nonlinear, and dependent on time."""
    argument = AffineMap.from_blocks({"y": 3 * A, "t": np.array([[1.0], [-2.0], [0.5]])})
    stage = Stage("g1", Expression.of("tanh"), argument)
    return StageChain(3, 0, (stage,), AffineMap.from_blocks({"y": -np.eye(3), "g1": np.eye(3)}))


def solve(chain, method, times, y0=Y0, **options):
    model = ode_layer_model(chain, RungeKuttaTimeStepper(method, times, **options))
    return model.solve({"initial_state": y0}).to_numpy()


@METHODS
def test_order(method):
    """y' = A y against the matrix exponential: observed order within 0.1 of the stated one, and small errors."""
    exact = expm(2 * A) @ Y0
    errors = [
        np.linalg.norm(solve(linear(), method, np.linspace(0, 2, steps + 1))[:, -1] - exact) for steps in (40, 80)
    ]
    order = TABLEAUX[method].order
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)
    assert errors[0] < 5 * 0.05**order


@TORCHDIFFEQ_METHODS
@pytest.mark.parametrize(
    "times",
    [(0.0, 0.1, 0.5, 0.6, 2.0), (1.5, 1.6, 2.9), (1.0, 0.3, -0.4), (-3.0, -1.0)],
    ids=["not uniform", "late start", "backward", "one step"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"step_size": 0.17}, {"step_size": 0.17, "interp": "cubic"}, {"step_size": 10.0}],
    ids=["from time to time", "own steps", "cubic", "one long step"],
)
def test_steps_are_those_of_torchdiffeq(method, times, options):
    chain = driven()

    def f(t, y):
        return torch.from_numpy(chain(y.numpy().T, t=float(t)).T)

    y0, t = torch.from_numpy(Y0[np.newaxis]), torch.tensor(times, dtype=torch.float64)
    expected = odeint(f, y0, t, method=method, options=options)[:, 0].numpy().T
    np.testing.assert_allclose(solve(chain, method, times, **options), expected, rtol=1e-13, atol=1e-13)


@METHODS
def test_time_is_the_layers_time(method):
    """y' = t: every method of order 2 is exact, Euler is the left sum; from any start, in both directions."""
    chain = StageChain(1, 0, (), AffineMap.from_blocks({"t": np.ones((1, 1))}))
    for times in ((2.0, 2.5, 4.0), (4.0, 2.5, 2.0)):
        y = solve(chain, method, times, np.zeros(1))[0]
        t = np.array(times)
        if method == "euler":
            np.testing.assert_allclose(y, np.append(0.0, np.cumsum(np.diff(t) * t[:-1])), atol=1e-14)
        else:
            np.testing.assert_allclose(y, (t**2 - t[0] ** 2) / 2, atol=1e-14)


def test_rhs_is_added():
    """y' + A y = F with F constant, and F a function of time."""
    base = ode_layer_model(linear(-np.eye(3)), RungeKuttaTimeStepper("rk4", np.linspace(1, 2, 30)))
    vector = VectorOperator(base.solution_space.from_numpy(Y0[:, np.newaxis]))
    forced = base.with_(rhs=vector)
    end = forced.solve({"initial_state": np.zeros(3)}).to_numpy()[:, -1]
    np.testing.assert_allclose(end, (1 - np.exp(-1)) * Y0, atol=1e-7)
    time = ExpressionParameterFunctional("t[0]", {"t": 1})
    forced = base.with_(rhs=LincombOperator([vector], [time]))
    end = forced.solve({"initial_state": np.zeros(3)}).to_numpy()[:, -1]
    np.testing.assert_allclose(end, Y0, atol=1e-7)  # y = (t − 1) Y0 from t = 1


def test_mass_matrix():
    """M y' + A y = F is y' = M⁻¹ (F − A y)."""
    mass = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    model = ode_layer_model(linear(), RungeKuttaTimeStepper("rk4", TIMES))
    vector = VectorOperator(model.solution_space.from_numpy(Y0[:, np.newaxis]))
    with_mass = model.with_(mass=NumpyMatrixOperator(mass), rhs=vector)
    divided = AffineMap.from_blocks({"y": np.linalg.solve(mass, A)}, np.linalg.solve(mass, Y0))
    expected = solve(StageChain(3, 0, (), divided), "rk4", TIMES)
    np.testing.assert_allclose(with_mass.solve({"initial_state": Y0}).to_numpy(), expected, rtol=1e-12)


def test_number_of_values_is_that_of_the_times():
    model = ode_layer_model(linear(), RungeKuttaTimeStepper("euler", (0.0, 0.5, 1.0)))
    with pytest.raises(NotImplementedError, match="one value at each of the 3 times of the layer, got 2"):
        model.with_(num_values=2).solve({"initial_state": Y0})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_initial_state_that_is_not_finite(bad):
    with pytest.raises(SolverError, match=r"expected a finite solution at t = 3, got NaN or infinity"):
        solve(linear(), "euler", (3.0, 4.0), Y0 * bad)


def test_diverging_solution():
    stiff = linear(-1e6 * np.eye(3))
    with (
        pytest.raises(SolverError, match=r"at t = \d+, got NaN or infinity: use smaller steps"),
        np.errstate(all="ignore"),
    ):
        solve(stiff, "euler", np.arange(100.0))


def test_initial_state_is_not_changed():
    y0 = Y0.copy()
    trajectory = solve(linear(), "rk4", (0.0, 1.0), y0)
    np.testing.assert_array_equal(y0, Y0)
    np.testing.assert_array_equal(trajectory[:, 0], Y0)


def test_init_arguments_are_attributes():
    stepper = RungeKuttaTimeStepper("rk4", np.array([0, 1]))
    assert stepper.times == (0.0, 1.0) and stepper.estimate_time_step_count(0, 1) == 1
    other = stepper.with_(method="euler", step_size=0.1)
    assert (other.method, other.step_size, other.times) == ("euler", 0.1, (0.0, 1.0))
    assert isinstance(other, LayerTimeStepper)
