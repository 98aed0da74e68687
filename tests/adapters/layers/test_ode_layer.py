import copy
import functools
import pickle

import pytest
import torch
import torchdiffeq
from torch import nn

from torchmor.adapters.layers.ode_layer import OdeFunction, ODELayer, call_convention
from torchmor.adapters.layers.placing import find_layer
from torchmor.adapters.solving.runge_kutta import solve_fixed_step
from torchmor.adapters.solving.solve_settings import ADAPTIVE_METHODS, METHODS, SolveSettings
from torchmor.engine.errors import (
    DtypeError,
    InputError,
    ShapeError,
    SignatureError,
    SolverError,
    UnknownLayerError,
)
from torchmor.engine.tableaux import OWN_METHODS, TABLEAUX

DOUBLE = {"dtype": torch.float64}
TORCHDIFFEQ_METHODS = [method for method in METHODS if method not in OWN_METHODS]
GRAD_METHODS = [method for method in TORCHDIFFEQ_METHODS if method != "scipy_solver"]


class Rate(nn.Module):
    """A rate network, y' = −y + W tanh(y) + u, that counts its evaluations."""

    def __init__(self, size=4):
        super().__init__()
        self.weight = nn.Linear(size, size, **DOUBLE)
        self.nfe = 0

    def forward(self, t, y, u):
        self.nfe += 1
        return self.weight(torch.tanh(y)) - y + u


class Plain(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.linear = nn.Linear(size, size, **DOUBLE)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) * torch.cos(t)


def state(batch=3, size=4, **kind):
    return torch.randn(batch, size, **(kind or DOUBLE))


# -- the solution
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TORCHDIFFEQ_METHODS)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, -0.5), (0.0, 0.3, 1.0)])
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
def test_equals_torchdiffeq(method, times):
    """Law: the same bits as ``torchdiffeq.odeint`` with the same settings and t in float64."""
    func, y0 = Plain(), state()
    options = {} if method in ADAPTIVE_METHODS or method == "scipy_solver" else {"step_size": 0.1}
    expected = torchdiffeq.odeint(
        func, y0, torch.tensor(times, **DOUBLE), method=method, rtol=1e-3, atol=1e-4, options=options
    )
    layer = ODELayer(func, times, method, 1e-3, 1e-4, options, output="trajectory")
    assert torch.equal(layer(y0), expected)
    layer.output = "final"
    assert torch.equal(layer(y0), expected[-1])


@pytest.mark.parametrize("method", OWN_METHODS)
def test_methods_that_torchdiffeq_lacks(method):
    """Law: they are solved by our own solver, with gradients through the steps."""
    func, y0, t, options = Plain(), state().requires_grad_(), (1.0, 0.2, -0.5), {"step_size": 0.25}
    layer = ODELayer(func, t, method, options=options, output="trajectory")
    expected = solve_fixed_step(func, y0, t, TABLEAUX[method], **options)
    assert torch.equal(layer(y0), expected)
    exact = ODELayer(func, t, "dopri5", 1e-10, 1e-10, output="trajectory")(y0)
    torch.testing.assert_close(expected, exact, rtol=0, atol=5e-3)
    for found, wanted in zip(
        *(torch.autograd.grad(y.sum(), (y0, func.linear.weight)) for y in (expected, exact)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2 * wanted.abs().max().item())


def test_methods_that_torchdiffeq_lacks_refuse_what_only_it_can_do():
    use = "or one of euler, midpoint, heun2, heun3, rk4$"
    with pytest.raises(
        ValueError, match="adjoint=False, because method='rk4_classic' is not .* through the steps, " + use
    ):
        ODELayer(Plain(), method="rk4_classic", adjoint=True)
    with pytest.raises(ValueError, match=r"no options\['perturb'\], because .* use step_size and interp, " + use):
        ODELayer(Plain(), method="bosh3_fixed", options={"perturb": True})
    layer = ODELayer(Plain(), method="dopri5_fixed")
    with pytest.raises(ValueError, match=r"expected times t without gradients, because .* use t.detach\(\), " + use):
        layer(state(), t=torch.tensor([0.0, 1.0], requires_grad=True))
    layer.func.callback_step = lambda t, y, dt: None
    with pytest.raises(ValueError, match="expected no callback_step, because .* use another function, " + use):
        layer(state())


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("times", [(0.0, 0.7), (0.7, 0.0)])
def test_linear_ode_against_the_matrix_exponential(times, adjoint):
    func = nn.Linear(4, 4, bias=False, **DOUBLE)  # f(y)
    y0 = state()
    layer = ODELayer(func, times, "dopri5", 1e-10, 1e-10, adjoint=adjoint)
    expected = y0 @ torch.linalg.matrix_exp((times[1] - times[0]) * func.weight).T
    torch.testing.assert_close(layer(y0), expected, rtol=1e-9, atol=1e-9)


def test_float32_is_the_default_of_torch():
    layer = ODELayer(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    y0 = torch.randn(3, 4)
    expected = torchdiffeq.odeint(
        lambda t, y: layer.func(y), y0, torch.tensor([0.0, 1.0], **DOUBLE), rtol=1e-3, atol=1e-3
    )[-1]
    assert torch.equal(layer(y0), expected)


def test_state_of_any_shape():
    layer = ODELayer(nn.Conv2d(2, 2, 3, padding=1, **DOUBLE), method="euler", output="trajectory")
    assert layer(torch.randn(5, 2, 6, 6, **DOUBLE)).shape == (2, 5, 2, 6, 6)


@pytest.mark.parametrize("times", [[0.0, 0.25, 2.0], torch.tensor([0.0, 0.25, 2.0]), (0, 0.25, 2)])
def test_times_of_a_call_override_those_of_the_layer(times):
    func, y0 = Plain(), state()
    layer = ODELayer(func, output="trajectory")
    assert torch.equal(layer(y0, t=times), ODELayer(func, (0.0, 0.25, 2.0), output="trajectory")(y0))
    assert layer.t == (0.0, 1.0)


def test_settings_can_be_read_and_set():
    layer = ODELayer(Plain(), torch.tensor([0.0, 2.0]), "rk4", options={"step_size": 0.5})
    assert layer.t == (0.0, 2.0)
    assert all(type(time) is float for time in layer.t)
    layer.method = "euler"
    assert layer.settings == SolveSettings((0.0, 2.0), "euler", options={"step_size": 0.5})
    with pytest.raises(ValueError, match="expected method to be one of"):
        layer.method = "eulr"


def test_options_of_the_user_are_not_shared():
    options = {"step_size": 0.5}
    layer = ODELayer(Plain(), method="rk4", options=options)
    options["step_size"] = 0.1
    assert layer.options == {"step_size": 0.5}


def test_repr_shows_the_settings():
    text = repr(ODELayer(lambda t, y: y))
    assert text == "ODELayer(func=<lambda>, t=(0.0, 1.0), method='dopri5', rtol=0.001, atol=0.001)"
    layer = ODELayer(Plain(), torch.linspace(0, 1, 9), "rk4", options={"step_size": 0.5}, output="trajectory")
    assert "t=(0.0, 0.125, 0.25, …, 1.0) of length 9, method='rk4', options={'step_size': 0.5}" in repr(layer)
    assert "output='trajectory'" in repr(layer)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("output", ["final", "trajectory"])
def test_batch_of_nothing_does_not_call_the_solver(method, output):
    func = Rate()
    layer = ODELayer(func, (0.0, 0.5, 1.0), method, output=output)
    y0 = state(0).requires_grad_()
    result = layer(y0, torch.zeros(0, 3, 4, **DOUBLE))
    assert result.shape == ((0, 4) if output == "final" else (3, 0, 4))
    assert func.nfe == 0
    result.sum().backward()


def test_a_sample_alone_gives_the_same_result_with_fixed_steps():
    layer, y0 = ODELayer(Plain(), method="rk4", options={"step_size": 0.1}), state()
    torch.testing.assert_close(layer(y0[1:2]), layer(y0)[1:2], rtol=1e-14, atol=1e-14)


def test_callbacks_of_torchdiffeq_are_called():
    steps = []

    class Counting(Plain):
        def callback_accept_step(self, t0, y0, dt):
            steps.append(t0.item())

    with torch.no_grad():
        ODELayer(Counting(), (1.0, 0.0))(state())
    assert steps[0] == 1.0
    assert len(steps) > 1 and steps == sorted(steps, reverse=True)


def test_autocast():
    layer, y0 = ODELayer(nn.Linear(4, 4), method="midpoint"), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(y0)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, layer(y0), rtol=0.02, atol=0.02)


# -- the input
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["linear", "previous"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_kinks_of_the_input_are_jump_times(interpolation, sign, method):
    """y' = u(t) is solved to the integral of u, though u jumps."""
    times = [sign * time for time in (0.0, 0.3, 0.35, 0.8, 1.0)]
    u = torch.tensor([1.0, -2.0, 40.0, 3.0, 0.5], **DOUBLE).reshape(1, 5, 1)
    h = torch.tensor(times, **DOUBLE).diff()[:, None]
    values = u[0, :-1] if interpolation == "previous" else (u[0, :-1] + u[0, 1:]) / 2
    evaluations = []

    def func(t, y, u):
        evaluations.append(t)
        return u

    layer = ODELayer(func, (0.0, sign), method, 1e-6, 1e-6, input_times=times, interpolation=interpolation)
    torch.testing.assert_close(layer(torch.zeros(1, 1, **DOUBLE), u), (h * values).sum(0)[None], rtol=1e-9, atol=1e-9)
    assert len(evaluations) < 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jump_times_spare_evaluations(dtype):
    """A callable hides its jumps: the solver has to find them, with ten times the evaluations."""
    times = torch.linspace(0, 1, 7).tolist()
    u, y0, func = torch.randn(2, 7, 4, **DOUBLE), state(2), Rate()
    knots = torch.tensor(times, **DOUBLE)

    def blind(t):
        return u[:, (knots[1:] <= t).sum()]

    settings = {"rtol": 1e-7, "atol": 1e-7, "input_times": times, "interpolation": "previous"}
    expected = ODELayer(func, **settings)(y0, blind)
    blind_evaluations, func.nfe = func.nfe, 0
    result = ODELayer(func.to(dtype), **(settings | {"rtol": 1e-5, "atol": 1e-5}))(y0.to(dtype), u.to(dtype))
    assert 10 * func.nfe < blind_evaluations
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_jump_times_are_merged_with_those_of_the_user():
    """Times that come twice, up to rounding or in both options, are refused by torchdiffeq or cost tiny steps."""
    func, y0, u = Rate(), state(), torch.randn(3, 4, 4, **DOUBLE)
    layer = ODELayer(func, rtol=1e-6, atol=1e-6, input_times=(0.0, 0.3, 0.5, 1.0))
    expected, evaluations = layer(y0, u), func.nfe
    layer.options = {"jump_t": torch.tensor([0.1 + 0.2, 0.5], **DOUBLE), "step_t": [0.3, 0.5]}
    assert torch.equal(layer(y0, u), expected)
    assert func.nfe == 2 * evaluations
    layer.options = {"jump_t": [0.7], "step_t": [0.6, 0.7]}
    assert not torch.equal(layer(y0, u), expected)
    torch.testing.assert_close(layer(y0, u), expected, rtol=1e-5, atol=1e-5)


def test_input_times_default_to_the_times_of_the_call():
    func, y0, u = Rate(), state(), torch.randn(3, 3, 4, **DOUBLE)
    layer = ODELayer(func, method="rk4")
    expected = ODELayer(func, (0.0, 0.4, 1.0), "rk4", input_times=(0.0, 0.4, 1.0))(y0, u)
    assert torch.equal(layer(y0, u, t=(0.0, 0.4, 1.0)), expected)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "scipy_solver"])
def test_callable_and_sampled_input_agree(method):
    func, y0, u = Rate(), state(), torch.randn(3, 2, 4, **DOUBLE)
    layer = ODELayer(func, method=method, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(y0, u), layer(y0, lambda t: torch.lerp(u[:, 0], u[:, 1], t)), rtol=1e-5, atol=1e-5)


def test_optional_input():
    layer = ODELayer(lambda t, y, u=None: -y if u is None else u - y, method="euler")
    y0 = state()
    torch.testing.assert_close(layer(y0), torch.zeros_like(y0))
    torch.testing.assert_close(layer(y0, lambda t: torch.ones_like(y0)), torch.ones_like(y0))


def test_missing_and_superfluous_input_are_refused():
    with pytest.raises(InputError, match=r"expected the input u of the ODE function f\(t, y, u\), got none: call"):
        ODELayer(Rate())(state())
    with pytest.raises(InputError, match="expected no input u, because the ODE function does not take one, got u"):
        ODELayer(Plain())(state(), state())


# -- gradients
# ---------------------------------------------------------------------------------------------------------


def gradients(func, method, adjoint, tolerance, options=None):
    y0, weights = torch.linspace(-1, 1, 6, **DOUBLE).reshape(3, 2), func.weight.weight
    u = torch.linspace(-3, 5, 18, **DOUBLE).sin().reshape(3, 3, 2).requires_grad_()
    y0.requires_grad_()
    layer = ODELayer(func, (0.0, 0.5), method, tolerance, tolerance, options, adjoint, input_times=(0.0, 0.1, 0.5))
    return torch.autograd.grad(layer(y0, u).square().sum(), (y0, u, weights))


@pytest.mark.parametrize("method", GRAD_METHODS)
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
def test_gradients_of_every_method(method, adjoint):
    """Gradients in y0, u and the parameters are those of the ODE, up to the error of the method."""
    func = Rate(2)
    options = {} if method in ADAPTIVE_METHODS else {"step_size": 0.02}
    if method.endswith("adams"):
        options["max_order"] = 4  # higher orders are unstable at the kink of u
    result = gradients(func, method, adjoint, 1e-5, options)
    error = 5e-2 if method == "euler" else 1e-2
    for value, expected in zip(result, gradients(func, "dopri5", False, 1e-9), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=error * expected.abs().max().item())


@pytest.mark.parametrize(("method", "adjoint"), [("dopri5", False), ("dopri5", True), ("rk4", False)])
def test_gradcheck(method, adjoint):
    func = Rate(2)
    layer = ODELayer(func, (0.0, 0.2), method, 1e-9, 1e-9, adjoint=adjoint, input_times=(0.0, 0.1, 0.2))
    y0, u = state(1, 2).requires_grad_(), torch.randn(1, 3, 2, **DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(lambda y0, u, weight: layer(y0, u), (y0, u, func.weight.weight), atol=1e-5)


@pytest.mark.parametrize("times", [(0.0, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("interpolation", ["linear", "previous"])
def test_adjoint_gradients_equal_those_through_the_solver(times, interpolation):
    """Both ways, backward in time and with jump times too."""
    func, y0 = Rate(), state()
    knots = [times[0] + (times[1] - times[0]) * x for x in (0.0, 0.3, 0.45, 1.0)]
    gradients = []
    for adjoint in (False, True):
        u = torch.linspace(-3, 5, 48, **DOUBLE).sin().reshape(3, 4, 4).requires_grad_()
        evaluations = func.nfe
        layer = ODELayer(
            func, times, "dopri5", 1e-9, 1e-9, adjoint=adjoint, input_times=knots, interpolation=interpolation
        )
        start = y0.clone().requires_grad_()
        layer(start, u).square().sum().backward()
        gradients.append((start.grad, u.grad, func.weight.weight.grad.clone()))
        func.zero_grad()
        assert func.nfe - evaluations < 400  # thousands where the adjoint misses the jumps
    for direct, adjoint in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, direct, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_in_time(adjoint):
    """Law: without t in f, ``∂y_i/∂t_i = f(y_i)`` and ``∂y_i/∂t_0 = −f(y_i)``: only the time that passes counts."""
    torch.manual_seed(0)
    func = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    t = torch.tensor([0.0, 0.3, 0.8], **DOUBLE).requires_grad_()
    layer = ODELayer(func, method="dopri8", rtol=1e-10, atol=1e-10, adjoint=adjoint, output="trajectory")
    states = layer(state(1, 2), t=t)
    for i in (1, 2):
        for component in (0, 1):
            expected = torch.zeros(3, **DOUBLE)
            expected[i] = func(states[i])[0, component].detach()
            expected[0] = -expected[i]
            (found,) = torch.autograd.grad(states[i, 0, component], t, retain_graph=True)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_adjoint_finds_the_parameters_of_a_callable_module():
    class Source(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.ones(1, 4, **DOUBLE))

        def forward(self, t):
            return (self.level * t).expand(3, 4)

    source, y0, gradients = Source(), state(), []
    func = Rate()
    for adjoint in (False, True):
        ODELayer(func, rtol=1e-8, atol=1e-8, adjoint=adjoint)(y0, source).sum().backward()
        gradients.append(source.level.grad)
        source.level.grad = None
    torch.testing.assert_close(*gradients)


def test_adjoint_refuses_tensors_it_cannot_see():
    level = torch.ones(3, 4, **DOUBLE).requires_grad_()
    with pytest.raises(InputError, match=r"a callable whose value requires a gradient: make it an nn\.Module"):
        ODELayer(Rate(), adjoint=True)(state(), lambda t: level * t)
    func = Plain()
    with pytest.raises(ValueError, match=r"expected func to be an nn\.Module, .* got <lambda>"):
        ODELayer(lambda t, y: func(t, y), adjoint=True)(state())
    with torch.no_grad():
        ODELayer(lambda t, y: func(t, y), adjoint=True)(state())


def test_adjoint_finds_the_parameters_behind_a_method():
    func, y0 = Plain(), state()
    through_steps, by_adjoint = (
        torch.autograd.grad(ODELayer(func.forward, rtol=1e-8, atol=1e-8, adjoint=adjoint)(y0).sum(), func.linear.weight)
        for adjoint in (False, True)
    )
    torch.testing.assert_close(by_adjoint, through_steps, rtol=1e-6, atol=1e-6)


def test_no_grad():
    with torch.no_grad():
        assert not ODELayer(Plain())(state()).requires_grad


# -- the module
# --------------------------------------------------------------------------------------------------------


def test_state_dict_copy_and_pickle_round_trip():
    layer, y0 = ODELayer(Plain(), (0.0, 0.5, 1.0), "rk4", output="trajectory"), state()
    expected = layer(y0)
    assert sorted(layer.state_dict()) == ["func.linear.bias", "func.linear.weight"]
    other = ODELayer(Plain(), (0.0, 0.5, 1.0), "rk4", output="trajectory")
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(y0), expected)
    assert layer.float()(y0.float()).dtype == torch.float32


def test_training_mode_reaches_func():
    layer = ODELayer(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), method="euler")
    assert layer.eval().func[1].training is False
    assert torch.equal(layer(torch.ones(2, 4)), layer(torch.ones(2, 4)))


@pytest.mark.parametrize("with_input", [False, True])
def test_observers_see_every_evaluation(with_input):
    func = Rate()
    layer = ODELayer(func if with_input else lambda t, y: func(t, y, 0.0))
    seen = []
    with layer.observe(lambda t, y, u: seen.append((t, y, u))):
        layer(state(), *([torch.randn(3, 2, 4, **DOUBLE)] if with_input else []))
    assert len(seen) == func.nfe > 0
    for t, y, u in seen:
        assert t.shape == ()
        assert y.shape == (3, 4)
        assert not y.requires_grad
        assert (u.shape == (3, 4)) if with_input else (u is None)
    layer(state(), *([torch.randn(3, 2, 4, **DOUBLE)] if with_input else []))
    assert len(seen) < func.nfe


def test_observers_leave_after_an_exception():
    layer = ODELayer(Plain())
    with pytest.raises(KeyError), layer.observe(lambda t, y, u: None):
        raise KeyError
    assert layer._observers == []


def test_function_is_a_module_of_t_y_u():
    t, y = torch.tensor(0.5, **DOUBLE), state()
    linear = nn.Linear(4, 4, **DOUBLE)
    assert torch.equal(ODELayer(linear).function(t, y, None), linear(y))
    assert isinstance(copy.deepcopy(ODELayer(linear).function), OdeFunction)


# -- bad functions
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "convention"),
    [
        (nn.Linear(2, 2), (1, "none")),
        (nn.Sequential(nn.Tanh()), (1, "none")),
        (Plain(), (2, "none")),
        (Rate(), (3, "required")),
        (lambda t, y, u=None: y, (3, "optional")),
        (lambda t, x, args=None: x, (2, "none")),
        (lambda x: x, (1, "none")),
        (lambda y, t=None: y, (1, "none")),
        (lambda s, v: v, (2, "none")),
        (lambda x, y: y, (2, "none")),
        (lambda t, u: u, (2, "none")),
        (lambda t, h, x: h, (3, "required")),
        (lambda *args: args[1], (2, "none")),
        (functools.partial(lambda a, t, y: y, 1.0), (2, "none")),
    ],
)
def test_call_convention(func, convention):
    assert call_convention(func) == convention


@pytest.mark.parametrize(
    ("func", "text"),
    [
        (lambda: None, r"of 1 to 3 required arguments, got f\(\): write f\(t, y\), f\(t, y, u\) or f\(y\)"),
        (lambda t, y, u, v: y, r"of 1 to 3 required arguments, got f\(t, y, u, v\)"),
        (lambda y, t: y, r"in the order t, y, u, got f\(y, t\): write f\(t, y\)"),
        (lambda y, u: y, r"in the order t, y, u, got f\(y, u\)"),
        (lambda t, u, y: y, r"in the order t, y, u, got f\(t, u, y\)"),
        (lambda y, u, t: y, r"in the order t, y, u"),
        (lambda t: t, r"in the order t, y, u, got f\(t\)"),
        (lambda t, y, *, scale: y, "without required keywords"),
        (max, "expected an ODE function with a signature"),
        (3.0, "expected an ODE function, got float"),
    ],
)
def test_wrong_signature_is_refused(func, text):
    with pytest.raises(SignatureError, match=text):
        ODELayer(func)


@pytest.mark.parametrize("method", ["dopri5", "euler", "scipy_solver"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_wrong_result_is_refused(method, adjoint):
    with pytest.raises(
        SignatureError,
        match=r"Linear returned shape \(8, 10\) for a state of shape \(8, 16\): torchmor needs dy/dt in",
    ):
        ODELayer(nn.Linear(16, 10), method=method, adjoint=adjoint)(torch.zeros(8, 16))
    with pytest.raises(SignatureError, match=r"<lambda> returned torch.float64 for a state of torch.float32"):
        ODELayer(lambda t, y: y.double(), method=method)(torch.zeros(8, 16))
    with pytest.raises(SignatureError, match=r"returned a tuple for a state of shape \(8, 16\)"):
        ODELayer(lambda t, y: (y, y), method=method)(torch.zeros(8, 16))


# -- bad settings and arguments
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "rk5"}, "expected method to be one of dopri5, dopri8, .*, scipy_solver, got 'rk5'"),
        ({"output": "last"}, "expected output to be one of final, trajectory, got 'last'"),
        ({"interpolation": "cubic"}, "expected interpolation to be one of linear, previous, got 'cubic'"),
        ({"rtol": -1.0}, "expected rtol to be a number ≥ 0, got -1.0"),
        ({"t": (0.0,)}, r"expected t to hold at least 2 times, got \(0.0,\)"),
        ({"t": 1.0}, "expected t to be a one-dimensional sequence of numbers, got 1.0"),
        ({"t": torch.zeros(2, 2)}, "expected t to be a one-dimensional sequence"),
        ({"t": (0.0, 1.0, 1.0)}, "expected t to be strictly increasing or strictly decreasing"),
        ({"t": (0.0, 1.0, 0.5)}, "expected t to be strictly increasing or strictly decreasing"),
        ({"t": (0.0, float("nan"))}, "expected t to hold finite times"),
        ({"input_times": (0.0, 0.0)}, "expected input_times to be strictly increasing"),
        ({"input_times": ()}, "expected input_times to hold at least 1 times"),
        (
            {"options": {"step_size": -0.1}, "method": "rk4"},
            r"expected options\['step_size'\] to be a number > 0",
        ),
        (
            {"options": {"interp": "spline"}, "method": "rk4"},
            r"options\['interp'\] to be one of linear, cubic",
        ),
        ({"options": {"jump_t": [0.1, 0.1]}}, r"expected options\['jump_t'\] to be strictly increasing"),
    ],
)
def test_impossible_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        ODELayer(Plain(), **settings)


@pytest.mark.parametrize(
    ("y0", "error", "text"),
    [
        (
            torch.zeros(3, 4, dtype=torch.int64),
            DtypeError,
            r"floating-point Tensor, got torch.int64: use y0.float\(\)",
        ),
        ([0.0], DtypeError, "floating-point Tensor, got list"),
        (torch.zeros(4), ShapeError, r"shape \(batch, …\), got \(4,\): add a batch dimension"),
        (
            torch.zeros(3, 4),
            DtypeError,
            "expected the state y0 of torch.float64, as the parameters, got torch.float32",
        ),
    ],
)
def test_bad_states_are_refused(y0, error, text):
    with pytest.raises(error, match=text):
        ODELayer(Plain())(y0)


def test_bad_times_of_a_call_are_refused():
    with pytest.raises(ValueError, match="expected t to be strictly increasing or strictly decreasing"):
        ODELayer(Plain())(state(), t=torch.tensor([0.0, 1.0, 1.0]))


# -- solver failures
# ---------------------------------------------------------------------------------------------------


def test_diverging_solution_is_a_solver_error():
    layer = ODELayer(lambda t, y: y**2, (0.0, 2.0), rtol=1e-6, atol=1e-6)
    with pytest.raises(SolverError, match=r"ODE solver failed \(underflow in dt .*grows without bound.*fixed-step"):
        layer(torch.ones(1, 1, **DOUBLE))


def test_bad_initial_state_is_a_solver_error():
    with pytest.raises(SolverError, match="the initial state y0 contains NaN or infinity"):
        ODELayer(lambda t, y: -y)(torch.full((2, 2), torch.nan))


def test_too_many_steps_are_a_solver_error():
    with pytest.raises(SolverError, match=r"max_num_steps exceeded.*raise options\['max_num_steps'\]"):
        ODELayer(lambda t, y: 50 * torch.cos(50 * t) * y, rtol=1e-8, options={"max_num_steps": 3})(torch.ones(1, 1))


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
def test_scipy_giving_up_is_a_solver_error():
    layer = ODELayer(lambda t, y: y**2, (0.0, 2.0), "scipy_solver", options={"solver": "RK45"})
    with pytest.raises(SolverError, match="expected states at 2 times, got 1: the solver gave up"):
        layer(torch.ones(1, 1, **DOUBLE))


def test_assertions_of_the_users_function_pass_through():
    def func(t, y):
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        ODELayer(func)(state())


# -- finding layers
# ----------------------------------------------------------------------------------------------------


def test_find_layer():
    layer = ODELayer(Plain())
    network = nn.ModuleDict({"stem": nn.Linear(4, 4), "ode": layer, "twin": layer})
    assert find_layer(network, "ode") is layer
    assert find_layer(network, "twin") is layer
    assert find_layer(layer, "") is layer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("od", r"got 'od' \(did you mean 'ode'\?\): its ODE layers are 'ode'"),
        ("xyz", "got 'xyz': its ODE layers are 'ode'"),
        ("stem", "expected an ODELayer as 'stem', got a Linear: its ODE layers are 'ode'"),
        ("", "expected an ODELayer as '', got a ModuleDict"),
    ],
)
def test_unknown_layer(name, text):
    network = nn.ModuleDict({"stem": nn.Linear(4, 4), "ode": ODELayer(Plain())})
    with pytest.raises(UnknownLayerError, match=text):
        find_layer(network, name)
    with pytest.raises(UnknownLayerError, match="it has no ODE layer"):
        find_layer(nn.Linear(2, 2), "ode")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_on_a_gpu(method):
    func, y0, u = Rate(), state(), torch.randn(3, 3, 4, **DOUBLE)
    layer = ODELayer(func, (0.0, 0.5, 1.0), method)
    expected = layer(y0, u)
    result = layer.cuda()(y0.cuda(), u.cuda())
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-9, atol=1e-9)
