"""Networks in forms that people have: compiled, scripted, of numbers, diverging, with values that are not finite."""

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from torchmor.adapters import ODELayer, reduce_network
from torchmor.engine.errors import CalibrationError, NonFiniteError, NotCompiledWarning, ShapeError, SolverError

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
SIZES = {"state_dim": 3, "points": 5, "progress": False}


class Tanh(nn.Module):
    def __init__(self, n=10):
        super().__init__()
        self.linear = nn.Linear(n, n)

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(y))


def network(method="rk4"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 10), ODELayer(Tanh(), method=method), nn.Linear(10, 3))


def errors(net, name="1", x=X, **options):
    return reduce_network(net, name, x, **SIZES | options).get_submodule(name).explain().errors


@pytest.fixture(scope="module")
def expected():
    return errors(network())


def compiled(net):
    net.compile()
    return net


def scripted(part):
    def form(net):
        owner, name = (net[1], "func") if part == "func" else (net, "0")
        setattr(owner, name, torch.jit.script(getattr(owner, name)))
        return net

    return form


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", [torch.compile, compiled], ids=["wrapped", "in place"])
def test_compiled(form, expected):
    with pytest.warns(NotCompiledWarning, match=r"its original is used, .* torch\.compile\(small\)"):
        assert errors(form(network())) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", ["stem", "func"])
def test_scripted(part, expected):
    net = scripted(part)(network())
    small = reduce_network(net, "1", X, **SIZES)
    assert small[1].explain().errors == pytest.approx(expected)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in small.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["0.weight", "1.func.linear.bias", "2.bias"])
def test_weights_that_are_not_finite_are_named(key, value):
    net = network()
    with torch.no_grad():
        net.get_parameter(key).flatten()[0] = value
    with pytest.raises(NonFiniteError, match=f"finite weights, got NaN or infinity in '{key}'"):
        errors(net)


def test_one_diverging_sample_is_named():
    layer = ODELayer(lambda t, y: y**3, t=(0.0, 1.0), method="rk4", options={"step_size": 0.1})
    x = 0.1 * X
    x[17] = 40
    with pytest.raises(NonFiniteError, match=r"got NaN or infinity at t = .* for sample 17 of the calibration data"):
        errors(layer, "", x)


def test_half_precision_without_a_way_is_told():
    with pytest.raises(SolverError, match=r"float16 is too coarse for adaptive steps.*network\.float\(\)"):
        errors(network("dopri5").half(), x=X.half())


def test_states_that_are_numbers():
    with pytest.raises(ShapeError, match=r"y0\[:, None\] for a batch of numbers"):
        errors(nn.Sequential(nn.Linear(5, 1), nn.Flatten(0), ODELayer(lambda t, y: -y, method="rk4")), "2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"speedup": 0}, "speedup to be at least 1, got 0"),
        ({"max_loss": -0.1}, "max_loss to be at least 0, got -0.1"),
        ({"max_loss": float("nan")}, "max_loss to be at least 0, got nan"),
    ],
)
def test_impossible_goals(options, text):
    with pytest.raises(ValueError, match=text):
        reduce_network(network(), "1", X, progress=False, **options)


def test_a_search_needs_samples_to_choose_by():
    with pytest.raises(CalibrationError, match=r"expected at least 4 calibration samples, .* got 1"):
        reduce_network(network(), "1", X[:1], max_loss=0.1, progress=False)


class Cube(nn.Module):
    def __init__(self):
        super().__init__()
        self.func = nn.Linear(5, 5)

    def forward(self, x):
        times = torch.tensor([0.0, 1.0])
        return odeint(lambda t, y: y**3 + self.func(y), x, times, method="rk4", options={"step_size": 0.1})[-1]


def test_one_diverging_sample_of_a_module_that_solves_is_named():
    x = 0.1 * X
    x[17] = 40
    with pytest.raises(NonFiniteError, match="got NaN or infinity in sample 17, and 0 others, of a batch of 60"):
        errors(nn.Sequential(Cube()), "0", x)
