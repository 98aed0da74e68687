"""torchdyn's NeuralODE as its documentation uses it: found, replaced by what does the same, reduced."""

import warnings

import pytest
import torch
from torch import nn

from networks import Parts
from torchmor.adapters import ODELayer, ReducedODELayer, find_ode_layers, reduce_network
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.stand_in import with_ode_layer
from torchmor.adapters.networks.torchdyn_layers import METHOD_NAMES
from torchmor.engine.errors import UnsupportedOperationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, of its dependencies
    core = pytest.importorskip("torchdyn.core", reason="needs torchdyn (pip install --no-deps), it is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:Setting tolerances has no effect")
SPAN = torch.linspace(0, 1, 6)
SIZES = {"state_dim": 5, "points": 8}


def node(solver, **settings):
    field = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))
    return core.NeuralODE(field, solver=solver, **{"sensitivity": "adjoint", **settings})


def network(solver="dopri5", span=SPAN, dtype=torch.float32, **settings):
    def forward(self, x):
        times, states = self.node(self.stem(x)) if span is None else self.node(self.stem(x), span.to(x))
        return self.head(states[-1]) * times[-1]

    parts = {"stem": nn.Linear(4, 12), "node": node(solver, **settings), "head": nn.Linear(12, 3)}
    return Parts(forward, **parts).to(dtype)


def inputs(dtype=torch.float32, size=60):
    return torch.randn(size, 4, dtype=dtype)


@pytest.mark.parametrize("span", [SPAN, None, SPAN.flip(0), SPAN**2], ids=["forward", "default", "backward", "uneven"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_fixed_steps_are_the_same_numbers(solver, span):
    whole, x = network(solver, span), inputs()
    other, name = with_ode_layer(whole, "node", Calibration(x))
    assert name == "node.layer" and isinstance(other.node.layer, ODELayer)
    torch.testing.assert_close(other(x), whole(x), rtol=1e-5, atol=1e-6)
    arguments = (whole.stem(x),) if span is None else (whole.stem(x), span)
    for value, expected in zip(other.node(*arguments), whole.node(*arguments), strict=True):  # times, states
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["dopri5", "tsit5"])
def test_adaptive_steps_are_the_same_within_tolerances(solver):
    whole, x = network(solver, atol=1e-5, rtol=1e-5), inputs()
    other, _ = with_ode_layer(whole, "node", Calibration(x))
    assert (other.node.layer.method, other.node.layer.rtol, other.node.layer.atol) == ("dopri5", 1e-5, 1e-5)
    torch.testing.assert_close(other(x), whole(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [False, True])
def test_reduced_network_returns_times_and_states_as_before(dtype, trained):
    whole, x = network(dtype=dtype), inputs(dtype)
    if trained:  # torchdyn keeps tensors that cannot be copied
        whole(x).sum().backward()
    nfe = whole.node.vf.nfe
    small = reduce_network(whole, "node", x, **SIZES)
    assert whole.node.vf.nfe == nfe and isinstance(small.node.layer, ReducedODELayer)
    times, states = small.node(small.stem(x), SPAN.to(dtype))
    expected = whole.node(whole.stem(x), SPAN.to(dtype))
    assert torch.equal(times, expected[0]) and times.dtype == dtype
    assert states.shape == expected[1].shape and states.dtype == dtype
    assert (small(x) - whole(x)).norm() < 0.3 * whole(x).norm()


def test_states_alone_in_a_sequence():
    """As in torchdyn's documentation, with return_t_eval=False."""
    whole = nn.Sequential(nn.Linear(4, 12), node("midpoint", return_t_eval=False)).eval()
    small = reduce_network(whole, "1", inputs(), **SIZES)
    assert small(inputs()).shape == (2, 60, 12)
    (found,) = find_ode_layers(whole, inputs())
    assert (found.name, found.kind, found.function) == ("1", "torchdyn", "1.vf")
    assert (found.output, found.evaluations, found.state_shape) == ("trajectory", 2, (12,))
    assert found.solver.startswith("torchdyn's Midpoint as 1 midpoint step") and found.reducible


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_trajectory(solver):
    """Sampling of flow matching: a method that is no forward, with times of its own."""

    def forward(self, x):
        return self.head(self.node.trajectory(self.stem(x), t_span=SPAN.to(x))[-1])

    parts = {"stem": nn.Linear(4, 12), "node": node(solver, atol=1e-6, rtol=1e-6), "head": nn.Linear(12, 3)}
    whole, x = Parts(forward, **parts), inputs()
    (found,) = find_ode_layers(whole, x)
    assert (found.name, found.kind, found.output, found.reducible) == ("node", "torchdyn", "trajectory", True)
    other, name = with_ode_layer(whole, "node", Calibration(x))
    assert name == "node.layer" and "trajectory" not in vars(whole.node)
    torch.testing.assert_close(other(x), whole(x), rtol=1e-4, atol=1e-4)
    small = reduce_network(whole, "node", x, **SIZES)
    assert (small(x) - whole(x)).norm() < 0.3 * whole(x).norm()
    assert small.node.trajectory(small.stem(x), SPAN[:3]).shape == (3, 60, 12), "other times"


def test_found_with_the_solver_in_words():
    (found,) = find_ode_layers(network("tsit5", atol=1e-4), inputs())
    assert found.solver == "torchdyn's Tsitouras45 as dopri5, rtol 0.001, atol 0.0001, adjoint"
    assert found.output == "(times, trajectory)" and found.evaluations > 6 and 0.1 < found.time_share <= 1


def test_solver_that_torchmor_has_not():
    whole = network("ieuler")
    with pytest.raises(UnsupportedOperationError, match=r"one of Euler, Midpoint, .*got ImplicitEuler: build"):
        with_ode_layer(whole, "node", Calibration(inputs()))
    assert set(METHOD_NAMES) >= {"Euler", "Midpoint", "RungeKutta4", "DormandPrince45", "Tsitouras45"}


def test_integral_loss():
    whole = network(integral_loss=lambda t, y: y.square().sum(1), sensitivity="interpolated_adjoint")
    with pytest.raises(UnsupportedOperationError, match="integral_loss, which torchdyn adds to the state"):
        with_ode_layer(whole, "node", Calibration(inputs()))


def test_data_control():
    """A field that is given the initial state reads more than (t, y)."""

    class Controlled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self._control = nn.Linear(24, 12), None

        def forward(self, t, x, args=None):
            return torch.tanh(self.linear(torch.cat([x, self._control], 1)))

    whole = network()
    whole.node = core.NeuralODE(Controlled(), solver="dopri5")
    with pytest.raises(UnsupportedOperationError, match=r"fails when it is repeated.*depends on something else"):
        with_ode_layer(whole, "node", Calibration(inputs()))
