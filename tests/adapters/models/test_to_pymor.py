"""ODE layers as pyMOR models: the same trajectory, by the same steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from catalogue import CATALOGUE, module
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.models.to_pymor import (
    TorchdiffeqTimeStepper,
    full_order_model,
    reduced_order_model,
    time_stepper,
)
from torchmor.adapters.reduction.reduce import reduce_network
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.engine.errors import InputError, ShapeError, SolverError, UnsupportedOperationError
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver")
GRIDS = {
    "uniform": (0.0, 0.25, 0.5, 0.75, 1.0),
    "not uniform": (0.0, 0.1, 0.6, 0.7),
    "late start": (2.0, 2.4, 3.1),
    "backward": (1.0, 0.4, -0.3),
}


def layer_of(name, **settings) -> ODELayer:
    return ODELayer(CATALOGUE[name].function(), **{"output": "trajectory"} | settings)


def model_of(layer, name):
    return full_order_model(layer, *CATALOGUE[name].example())


def compare(layer, name, tolerance, u=None, u_of_model=None):
    """Relative difference of the layer's and the model's trajectory of one sample."""
    entry = CATALOGUE[name]
    y0 = 0.5 * entry.example(1, seed=3)[0]
    with torch.no_grad():
        expected = layer(y0, u).flatten(1).numpy().T
    fom = model_of(layer, name)
    solution = fom.solve({"initial_state": y0.flatten().numpy()}, input=u_of_model).to_numpy()
    assert solution.shape == expected.shape
    assert np.linalg.norm(solution - expected) <= tolerance * np.linalg.norm(expected)


def signal(p):
    """An input as a callable for the layer, (batch, p), and for the model, (p,)."""
    phases = torch.arange(p, dtype=torch.float64)
    return lambda t: torch.cos(3 * t + phases)[None], lambda t: np.cos(3 * t + np.arange(p))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_function(name):
    """``fom.solve == layer`` and ``fom.operator == −f``, through the whole catalogue."""
    p = CATALOGUE[name].p
    u, u_of_model = signal(p) if p else (None, None)
    compare(layer_of(name, method="rk4", t=(0.2, 0.5, 0.9)), name, 1e-12, u, u_of_model)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", [*FIXED, *ADAMS])
@pytest.mark.parametrize("options", [None, {"step_size": 0.13}], ids=["from time to time", "own steps"])
def test_methods_of_fixed_steps(method, grid, options):
    layer = layer_of("forcing", method=method, t=GRIDS[grid], options=options)
    compare(layer, "forcing", 1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", FIXED)
def test_cubic_interpolation_between_steps(method, grid):
    layer = layer_of("time as attribute", method=method, t=GRIDS[grid], options={"step_size": 0.17, "interp": "cubic"})
    compare(layer, "time as attribute", 1e-12)


@pytest.mark.parametrize("options", [{"perturb": True}, {"step_size": 0.1, "perturb": True}])
def test_further_options_of_torchdiffeq(options):
    layer = layer_of("forcing", method="rk4", t=(0.0, 0.5, 1.0), options=options)
    assert isinstance(time_stepper(layer.settings), TorchdiffeqTimeStepper)
    compare(layer, "forcing", 1e-12)


def fast(t, y):
    """A network whose solutions need small steps: error estimates are far above rounding, and the steps the same."""
    weights = torch.cos(torch.arange(36, dtype=torch.float64) ** 2).view(6, 6)
    return 4 * torch.tanh(2 * y @ weights + torch.sin(t))


def compare_fast(tolerance, **settings):
    layer = ODELayer(fast, output="trajectory", **settings)
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64)[None]
    solution = full_order_model(layer, y0).solve(y0[0].numpy()).to_numpy()
    expected = layer(y0)[:, 0].numpy().T
    assert np.linalg.norm(solution - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods(method, grid):
    """The same sequence of steps, as the layer solves one sample."""
    compare_fast(1e-9, method=method, t=GRIDS[grid])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_of_easy_problems(method):
    """Here the error estimate of dopri8 is rounding, and its steps differ within the tolerance asked for."""
    layer = layer_of("forcing", method=method, rtol=1e-6, atol=1e-6)
    compare(layer, "forcing", 1e-6 if method == "dopri8" else 1e-9)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {"first_step": 0.01, "safety": 0.8}),
        ("dopri5", {"jump_t": [0.3, 0.6]}),
        ("bosh3", {"step_t": torch.tensor([0.3], dtype=torch.float64), "max_num_steps": 1000}),
    ],
)
def test_options_of_adaptive_methods(method, options):
    compare_fast(1e-9, method=method, t=(0.0, 0.5, 1.0), options=options)


@pytest.mark.parametrize("interpolation", ["linear", "previous"])
@pytest.mark.parametrize("grid", ["uniform", "late start", "backward"])
@pytest.mark.parametrize(("method", "tolerance"), [("rk4", 1e-12), ("explicit_adams", 1e-12), ("dopri5", 1e-9)])
def test_sampled_inputs(method, tolerance, grid, interpolation):
    """Samples at the layer's times; adaptive methods stop at their kinks in the layer and in the model."""
    times = GRIDS[grid]
    layer = layer_of("classic", method=method, t=times, interpolation=interpolation)
    samples = torch.randn(1, len(times), 3, dtype=torch.float64)
    compare(layer, "classic", tolerance, samples, samples[0].numpy())


@pytest.mark.parametrize(("method", "tolerance"), [("midpoint", 1e-12), ("dopri5", 1e-9), ("scipy_solver", 1e-9)])
def test_input_times_of_their_own(method, tolerance):
    layer = layer_of("GRU", method=method, t=(0.0, 0.5, 1.0), input_times=(0.1, 0.2, 0.45, 0.9))
    samples = torch.randn(1, 4, 3, dtype=torch.float64)
    compare(layer, "GRU", tolerance, samples, samples[0].numpy())


@pytest.mark.parametrize(("method", "tolerance"), [("rk4", 1e-12), ("dopri5", 1e-9)])
def test_inputs_as_functions(method, tolerance):
    layer = layer_of("classic", method=method, t=(0.5, 0.9, 1.6))
    u, u_of_model = signal(3)
    compare(layer, "classic", tolerance, u, u_of_model)
    compare(layer, "classic", tolerance, u, "[cos(3*t[0]), cos(3*t[0] + 1), cos(3*t[0] + 2)]")
    constant = np.array([1.0, -1.0, 0.5])
    compare(layer, "classic", tolerance, lambda t: torch.from_numpy(constant)[None], constant)


def test_operator_is_minus_f():
    entry, fom = CATALOGUE["residual"], model_of(layer_of("residual"), "residual")
    y, _ = entry.columns(4)
    value = fom.operator.apply(fom.solution_space.make_array(y)).to_numpy()
    np.testing.assert_allclose(value, -entry.values(y), rtol=1e-12, atol=1e-13)
    assert (dict(fom.parameters), fom.dim_input, fom.dim_output) == ({"initial_state": 32}, 0, 32)


def test_times_of_the_model_may_be_others():
    name, times = "forcing", (1.0, 1.3, 2.0)
    layer = layer_of(name, method="rk4")
    y0 = CATALOGUE[name].example(1)[0]
    fom = full_order_model(layer, y0, t=times)
    expected = layer(y0, t=times)[:, 0].detach().numpy().T
    np.testing.assert_allclose(fom.solve(y0[0].numpy()).to_numpy(), expected, rtol=1e-12)
    assert layer.t == (0.0, 1.0)


def test_layer_of_single_precision():
    """The model is that of the weights in float64."""
    name = "two hidden layers"
    layer = layer_of(name, method="rk4", t=(0.0, 0.5, 1.0)).float()
    y0 = CATALOGUE[name].example(1)[0]
    fom = full_order_model(layer, y0.float())
    assert all(p.dtype == torch.float32 for p in layer.parameters())
    expected = layer.double()(y0)[:, 0].detach().numpy().T
    np.testing.assert_allclose(fom.solve(y0[0].numpy()).to_numpy(), expected, rtol=1e-12)


def test_layer_is_unchanged():
    layer = layer_of("counted, in place").train()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    model_of(layer, "counted, in place")
    assert layer.func.nfe == 0 and layer.func.training
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_reduced_model_from_the_current_parameters(method):
    """``rom.output == layer``, also after the layer was trained."""
    entry = CATALOGUE["classic"]
    layer = layer_of("classic", method=method, t=(0.5, 0.9, 1.6))
    y0, u = entry.example(30)[0], torch.randn(30, 3, 3, dtype=torch.float64)
    small = reduce_network(layer, "", (y0, u), state_dim=4, points=6, progress=False)
    samples = u[0].numpy()
    for _ in range(2):
        with torch.no_grad():
            expected = small(y0[:1], u[:1])[:, 0].numpy().T
        output = reduced_order_model(small).output(y0[0].numpy(), input=samples)
        assert np.linalg.norm(output - expected) <= 1e-9 * np.linalg.norm(expected)
        with torch.no_grad():
            small.ode.output.weight.mul_(1.1)


def test_time_steppers():
    assert isinstance(time_stepper(SolveSettings(method="rk4", options={"step_size": 0.1})), RungeKuttaTimeStepper)
    assert isinstance(time_stepper(SolveSettings(method="dopri5")), TorchdiffeqTimeStepper)
    assert isinstance(time_stepper(SolveSettings(method="implicit_adams")), TorchdiffeqTimeStepper)


# -- errors --------------------------------------------------------------------------------------------------------


def test_no_ode_layer():
    with pytest.raises(TypeError, match=r"expected an ODELayer, got a Sequential: pass network.get_submodule"):
        full_order_model(nn.Sequential(nn.Linear(3, 3)), torch.zeros(1, 3))


@pytest.mark.parametrize("shape", [(5,), (0, 9), ()])
def test_example_without_a_sample(shape):
    with pytest.raises(ShapeError, match=r"expected an example state of shape \(batch, …\) with at least one sample"):
        full_order_model(layer_of("dense"), torch.zeros(shape, dtype=torch.float64))


def test_missing_example_input():
    with pytest.raises(
        InputError, match=r"expected an example_input \(batch, p\), because the ODE function is f\(t, y, u\)"
    ):
        full_order_model(layer_of("classic"), CATALOGUE["classic"].example()[0])


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3), (5, 3)])
def test_example_input_of_another_shape(shape):
    with pytest.raises(InputError, match=r"expected an example_input of shape \(2, p\)"):
        full_order_model(layer_of("classic"), CATALOGUE["classic"].example()[0], torch.zeros(shape).double())


def test_superfluous_example_input():
    with pytest.raises(InputError, match="expected no example_input, because the ODE function does not take one"):
        full_order_model(layer_of("dense"), CATALOGUE["dense"].example()[0], torch.zeros(2, 3).double())


def test_unsupported_function():
    layer = ODELayer(module(lambda self, t, y: torch.softmax(y, 1)))
    with pytest.raises(UnsupportedOperationError, match=f"'_softmax' at .*{Path(__file__).name}"):
        full_order_model(layer, torch.zeros(1, 3))


def test_diverging_solution():
    layer = ODELayer(lambda t, y: y * y, t=(0.0, 10.0), method="dopri5")
    fom = full_order_model(layer, torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(SolverError, match=r"the ODE solver failed .* the solution grows without bound"):
        fom.solve(np.ones(2))
