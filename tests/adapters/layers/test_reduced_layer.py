"""`ReducedODELayer`: called, trained, copied and pickled like any layer, with the record of its reduction."""

import copy
import functools
import io
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.autograd import gradcheck
from torch.func import functional_call

from networks import DOUBLE, NETWORKS, Gated, Rate, dense
from operation_counter import Operations
from torchmor.adapters import ODELayer, ReducedODELayer, reduce_network
from torchmor.engine.errors import (
    DeviceError,
    DtypeError,
    InputError,
    NoRecordError,
    ShapeError,
    SolverError,
    TorchmorError,
)
from torchmor.engine.tableaux import OWN_METHODS

networks = pytest.mark.parametrize("name", NETWORKS)
RECORD = ("fom", "bases", "singular_values", "points")


def layer_of(name="dense", **settings) -> ReducedODELayer:
    return reduced(name, **settings) if settings else copy.deepcopy(reduced_once(name))


@functools.cache
def reduced_once(name):
    return reduced(name)


def reduced(name, **settings):
    entry = NETWORKS[name]
    network = entry.network()
    layer = network.get_submodule(entry.layer)
    for key, value in settings.items():
        setattr(layer, key, value)
    return reduce_network(network, entry.layer, entry.batch(), **entry.sizes).get_submodule(entry.layer)


def classic(name):
    entry = NETWORKS[name]
    method = {"basis": "pod", "selection": "deim", "fit": "interpolation"}
    return reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes, **method).get_submodule(
        entry.layer
    )


def arguments_of(layer, batch=3, seed=0):
    """A state and, if the layer reads one, samples of an input."""
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.randn(batch, *layer.state_shape, generator=generator, **DOUBLE)
    if layer.input_use == "none":
        return (y0,)
    times = len(layer.input_times or layer.t)
    return y0, torch.randn(batch, times, layer.ode.input_size, generator=generator, **DOUBLE)


def gated(**settings):
    layer = ODELayer(Gated(8), **settings).double()
    return reduce_network(layer, "", torch.randn(40, 8, **DOUBLE), state_dim=3, points=[4, 3])


def driven(**settings):
    layer = ODELayer(Rate(8, 2), **settings).double()
    states, inputs = torch.randn(40, 8, **DOUBLE), torch.randn(40, len(layer.t), 2, **DOUBLE)
    return reduce_network(layer, "", (states, inputs), state_dim=3, points=4)


# -- calls ----------------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("batch", [0, 1, 3, 7])
def test_shapes_are_those_of_the_full_layer(name, batch):
    entry, layer = NETWORKS[name], layer_of(name)
    full = entry.network().get_submodule(entry.layer)
    arguments = arguments_of(layer, batch)
    value, expected = layer(*arguments), full(*arguments)
    assert value.shape == expected.shape and value.dtype == expected.dtype
    assert value.requires_grad or batch == 0


@networks
def test_sample_alone_and_in_a_batch(name):
    layer = layer_of(name, method="rk4")
    arguments = arguments_of(layer, 5)
    together = layer(*arguments)
    alone = [layer(*(argument[i : i + 1] for argument in arguments)) for i in range(5)]
    batch = 1 if layer.output == "trajectory" else 0
    torch.testing.assert_close(torch.cat(alone, batch), together, rtol=1e-13, atol=1e-13)


def test_empty_batch_does_not_solve():
    layer = layer_of()
    layer.ode.forward = lambda *_: pytest.fail("the ODE function was called")
    assert layer(torch.empty(0, 10, **DOUBLE)).shape == (0, 10)
    layer.output = "trajectory"
    assert layer(torch.empty(0, 10, **DOUBLE), t=(0.0, 1.0, 2.0)).shape == (3, 0, 10)


def test_times_of_one_call():
    layer = layer_of(t=(0.0, 1.0), method="rk4")
    (y0,) = arguments_of(layer)
    value = layer(y0, t=(0.5, 0.0))
    assert layer.t == (0.0, 1.0)
    layer.t = (0.5, 0.0)
    assert torch.equal(layer(y0), value)
    there_and_back = layer(layer(y0, t=torch.linspace(0, 1, 20)), t=torch.linspace(1, 0, 20))
    projected = layer.decode(layer.encode(y0))
    torch.testing.assert_close(there_and_back, projected, rtol=0, atol=1e-4)


def test_solution_is_the_projected_one():
    """Law: z(t_0) = Wᵀ y_0, z' = f_r(z), y = V z."""
    layer = layer_of(method="euler", options={"step_size": 0.25})
    (y0,) = arguments_of(layer)
    z = layer.encode(y0)
    for _ in range(4):
        z = z + 0.25 * layer.ode(z)
    torch.testing.assert_close(layer(y0), layer.decode(z), rtol=1e-14, atol=1e-14)


def test_trajectory_starts_with_the_projected_state():
    layer = layer_of("trajectories")
    (y0,) = arguments_of(layer)
    trajectory = layer(y0)
    assert trajectory.shape == (3, 3, 10)
    torch.testing.assert_close(trajectory[0], layer.decode(layer.encode(y0)), rtol=0, atol=1e-14)
    layer.output = "final"
    torch.testing.assert_close(layer(y0), trajectory[-1], rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")  # torchdiffeq's, to SciPy
def test_settings_can_be_changed():
    layer = layer_of("dense, adaptive", rtol=1e-9, atol=1e-9)
    (y0,) = arguments_of(layer)
    exact = layer(y0)
    layer.method, layer.options = "rk4", {"step_size": 0.02}
    torch.testing.assert_close(layer(y0), exact, rtol=0, atol=1e-7)
    layer.method, layer.options = "scipy_solver", {"solver": "RK45"}
    torch.testing.assert_close(layer(y0), exact.detach(), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="expected method to be one of"):
        layer.method = "rk5"


def test_callable_and_sampled_input_agree():
    layer = driven(t=(0.0, 0.5, 1.0), method="rk4")
    y0, u = arguments_of(layer)

    def signal(t):
        return torch.lerp(u[:, 0], u[:, 1], 2 * t) if t <= 0.5 else torch.lerp(u[:, 1], u[:, 2], 2 * t - 1)

    torch.testing.assert_close(layer(y0, signal), layer(y0, u), rtol=1e-12, atol=1e-12)


def test_adaptive_error_is_measured_in_the_full_state():
    """Law: with absolute tolerances, the steps are the same in any reduced coordinates z = T z'."""
    layer = layer_of("dense, adaptive", rtol=0.0, atol=1e-5)
    other = copy.deepcopy(layer)
    T = torch.randn(4, 4, **DOUBLE)
    with torch.no_grad():
        for affine in (other.encode, other.ode.output):
            affine.weight.copy_(T.inverse() @ affine.weight)
            affine.bias.copy_(T.inverse() @ affine.bias)
        for affine in (other.decode, other.ode.stages[0]):
            affine.weight.copy_(affine.weight @ T)
    calls = []
    for each in (layer, other):
        each.ode.register_forward_hook(lambda module, *_: calls.append(module))
    (y0,) = arguments_of(layer)
    torch.testing.assert_close(other(y0), layer(y0), rtol=0, atol=1e-10)
    assert calls.count(other.ode) == calls.count(layer.ode) > 7


def test_norm_of_the_full_state():
    shapes = []

    def norm(y):
        shapes.append(y.shape)
        return y.square().mean().sqrt()

    layer = layer_of("dense, adaptive", rtol=0.0, atol=1e-5)
    (y0,) = arguments_of(layer)
    expected = layer(y0)
    layer.options = {"norm": norm}
    torch.testing.assert_close(layer(y0), expected, rtol=0, atol=1e-10)
    assert set(shapes) == {(3, 10)}


# -- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("make", [gated, driven])
def test_gradients_in_state_input_and_every_parameter(make, method, adjoint):
    layer = make(t=(0.0, 0.4), method=method, rtol=1e-8, atol=1e-10, adjoint=adjoint)
    names, values = zip(*layer.named_parameters(), strict=True)
    arguments = [a.requires_grad_() for a in arguments_of(layer, 2)]

    def f(*tensors):
        state = dict(zip(names, tensors[len(arguments) :], strict=True))
        return functional_call(layer, state, tensors[: len(arguments)])

    tolerance = 1e-2 if adjoint and method == "rk4" else 1e-4  # the adjoint equation has an error of its own
    assert gradcheck(f, (*arguments, *values), fast_mode=True, rtol=tolerance, atol=tolerance)
    f(*arguments, *values).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in (*arguments, *values))


@pytest.mark.parametrize("method", ["midpoint", "dopri5"])
def test_training_lowers_a_loss(method):
    entry = NETWORKS["dense"]
    network, (x,) = dense(method=method).double(), entry.batch(60)
    target = network(x).detach()
    classic = {"basis": "pod", "selection": "deim", "fit": "interpolation"}  # leaves something to learn
    small = reduce_network(network, "ode", x, state_dim=3, points=4, **classic)
    optimiser = torch.optim.Adam(small.ode.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(small(x), target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(network(x), target)


# -- as a module ----------------------------------------------------------------------------------------------------


@networks
def test_state_dict_round_trip(name):
    layer = layer_of(name)
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    arguments = arguments_of(layer)
    assert not torch.equal(other(*arguments), layer(*arguments))
    assert not other.load_state_dict(layer.state_dict(), strict=True).missing_keys
    assert torch.equal(other(*arguments), layer(*arguments))
    assert all(isinstance(value, torch.Tensor) for value in layer.state_dict().values())


@networks
def test_to_float(name):
    layer = layer_of(name)
    arguments = arguments_of(layer)
    expected = layer(*arguments)
    layer.float()
    value = layer(*(a.float() for a in arguments))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)


@networks
def test_deepcopy_keeps_the_record_and_shares_no_tensors(name):
    layer = layer_of(name)
    twin = copy.deepcopy(layer)
    arguments = arguments_of(layer)
    assert torch.equal(twin(*arguments), layer(*arguments))
    assert all(getattr(twin, entry) is getattr(layer, entry) for entry in RECORD)
    assert str(twin.explain()) == str(layer.explain())
    pointers = [{p.data_ptr() for p in each.parameters()} for each in (layer, twin)]
    assert pointers[0].isdisjoint(pointers[1])


@networks
def test_pickle_drops_the_record(name):
    layer = layer_of(name)
    clone = pickle.loads(pickle.dumps(layer))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    assert len(buffer.getvalue()) < 40_000, "no bases, no full model"
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    arguments = arguments_of(layer)
    for other in (clone, loaded):
        assert torch.equal(other(*arguments), layer(*arguments))
        assert other.settings == layer.settings and str(other.explain()) == str(layer.explain())
        with pytest.raises(NoRecordError, match="holds the reduced operators only, and no 'fom'"):
            _ = other.fom
    assert layer.fom is not None


def test_record_is_not_in_the_state():
    layer = layer_of()
    assert {key.split(".")[0] for key in layer.state_dict()} == {"encode", "ode", "decode"}
    assert sum(p.numel() for p in layer.parameters()) == (10 * 4 + 4) + (4 * 5 + 5) + (5 * 4 + 4) + (4 * 10 + 10)


def test_layer_without_a_record():
    layer = pickle.loads(pickle.dumps(layer_of()))
    for name in ("fom", "bases"):
        assert not hasattr(layer, name) and name in dir(layer)
        with pytest.raises(NoRecordError, match=f"loaded from a file: .* no '{name}'; reduce the network again"):
            getattr(layer, name)
    assert issubclass(NoRecordError, TorchmorError) and issubclass(NoRecordError, AttributeError)
    with pytest.raises(AttributeError, match="'ReducedODELayer' object has no attribute 'foo'"):
        _ = layer.foo
    assert hasattr(layer, "rom") and not hasattr(layer, "foo") and getattr(layer, "foo", 1) == 1
    assert "record" not in repr(layer)


@networks
def test_spectra_and_points_survive_pickling(name):
    layer = layer_of(name)
    clone = pickle.loads(pickle.dumps(layer))
    assert clone.points.keys() == layer.points.keys() and clone.singular_values.keys() == layer.singular_values.keys()
    for part, points in layer.points.items():
        assert np.array_equal(clone.points[part], points) and clone.points[part].dtype == points.dtype
    for part, values in layer.singular_values.items():
        assert np.array_equal(clone.singular_values[part], values[:512])


def test_layer_of_an_earlier_version_has_no_spectra_and_points():
    layer = pickle.loads(pickle.dumps(layer_of()))
    layer.explanation = replace(layer.explanation, singular_values={}, points={}, state_shape=())
    for name in ("singular_values", "points"):
        with pytest.raises(NoRecordError, match=f"loaded from a file: .* no '{name}'; reduce the network again"):
            getattr(layer, name)


def test_layer_made_by_hand_has_nothing_to_explain():
    made = layer_of()
    layer = ReducedODELayer(made.settings, made.state_shape, made.ode, 4)
    with pytest.raises(NoRecordError, match="not made by reduce_network: there is nothing to explain"):
        layer.explain()


def test_record():
    entry = NETWORKS["dense"]
    layer = layer_of()
    assert layer.fom.solution_space.dim == 10 and layer.rom.solution_space.dim == 4
    assert {key: basis.shape for key, basis in layer.bases.items()} == {"state": (10, 4), "test": (10, 4)}
    np.testing.assert_allclose(layer.bases["test"].T @ layer.bases["state"], np.eye(4), atol=1e-12)
    assert set(layer.singular_values) == {"state"}
    assert list(layer.points) == ["g1"] and len(set(layer.points["g1"])) == 5 and max(layer.points["g1"]) < 10
    y0 = torch.randn(1, 10, **DOUBLE)
    U = layer.fom.solve({"initial_state": y0[0].numpy()}).to_numpy()
    expected = entry.network().ode(y0)[0].detach().numpy()
    np.testing.assert_allclose(U[:, -1], expected, rtol=1e-12)


def test_record_of_the_classic_method():
    layer = classic("dense")
    assert {key: basis.shape for key, basis in layer.bases.items()} == {"state": (10, 4), "g1": (10, 5)}
    assert set(layer.singular_values) == {"state", "g1"}
    for basis in layer.bases.values():
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)


@networks
@pytest.mark.parametrize("method", ["own", "rk4", "dopri5", "explicit_adams", *OWN_METHODS])
def test_rom_follows_the_parameters(name, method):
    """Law: ``rom.output({"initial_state": y0}, input=u)`` is the layer's trajectory from y0, also after training."""
    layer = layer_of(name)
    if method != "own":
        layer.options, layer.method = {}, method
    layer.output = "trajectory"
    tolerance = 1e-9 if layer.method == "dopri5" else 1e-12
    for changed in (False, True):
        if changed:
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter += 0.1 * torch.rand_like(parameter)
        y0, *u = arguments_of(layer, 1, seed=2)
        trajectory = layer(y0, *u).detach()[:, 0].flatten(1).T.numpy()
        given = {"input": u[0][0].numpy()} if u else {}
        output = layer.rom.output({"initial_state": y0.flatten().numpy()}, **given)
        assert np.abs(output - trajectory).max() <= tolerance * np.abs(trajectory).max()


def test_explanation_in_words():
    text = str(layer_of("trajectories").explain())
    for words in (
        "basis balanced, selection omp, fit least_squares",
        "solver: t=(1.0, 0.7, -0.5), method='heun3', output='trajectory'",
        "of 32 samples",
        "evaluations of the ODE function in a forward pass",
        "elu(a1",
        "sigmoid(a2)",
        "as asked",
        "times fewer",
        "relative error on held-out calibration data: network output ",
        ", layer output ",
        "sizes: state 10 -> 5, g1 14 -> 6, g2 10 -> 7",
    ):
        assert words in text
    rows = rows_of(text)
    assert rows["state"].startswith("state y 10 5 ") and rows["state"].endswith("balanced, as asked")
    assert " y 14 6 0." in rows["g1"] and " g1 10 7 0." in rows["g2"] and rows["g2"].endswith(" - omp, as asked")
    assert "constant" not in text
    assert "kept: as asked" in str(layer_of("state kept").explain())


def test_explanation_of_the_classic_method():
    text = str(classic("trajectories").explain())
    assert "basis pod, selection deim, fit interpolation" in text
    assert "constant: the interpolation error is at most this times the best possible" in text
    rows = rows_of(text)
    assert re.fullmatch(r"state y 10 5 \d+ % 0\.\S+ - POD, as asked", rows["state"])
    assert re.search(r" y 14 6 \d+ % 0\.", rows["g1"])
    assert re.search(r" g1 10 7 \d+ % 0\..* deim, as asked$", rows["g2"])


def rows_of(text):
    return {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line}


def test_repr_says_what_is_inside():
    text = repr(layer_of())
    for words in ("ReducedODELayer", "state (10,) -> 4", "method='rk4'", "g1 = tanh(a1)", "y(4) -> 5", "g1(5) -> 4"):
        assert words in text


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "state kept"])
def test_wrong_states(name):
    layer = layer_of(name)
    with pytest.raises(ShapeError, match=r"shape \(batch, 10\), for which the layer was reduced, got \(3, 11\)"):
        layer(torch.zeros(3, 11, **DOUBLE))
    with pytest.raises(ShapeError, match=r"got \(3, 2, 5\): reshape it"):
        layer(torch.zeros(3, 2, 5, **DOUBLE))
    with pytest.raises(ShapeError, match=r"shape \(batch, …\), got \(10,\): add a batch dimension"):
        layer(torch.zeros(10, **DOUBLE))
    with pytest.raises(DtypeError, match=r"the state y0 of torch.float64, as the parameters, got torch.float32"):
        layer(torch.zeros(3, 10))
    with pytest.raises(DtypeError, match=r"floating-point Tensor, got torch.int64"):
        layer(torch.zeros(3, 10, dtype=torch.int64))
    with pytest.raises(DtypeError, match=r"floating-point Tensor, got ndarray"):
        layer(np.zeros((3, 10)))
    with pytest.raises(ValueError, match="strictly increasing or strictly decreasing"):
        layer(torch.zeros(3, 10, **DOUBLE), t=(0.0, 1.0, 0.5))


def test_wrong_device():
    layer = layer_of().to("meta")
    with pytest.raises(DeviceError, match="the state y0 on meta, as the parameters, got cpu"):
        layer(torch.zeros(3, 10, **DOUBLE))


def test_wrong_inputs():
    layer = driven(t=(0.0, 0.5, 1.0), method="rk4")
    y0, u = arguments_of(layer)
    with pytest.raises(InputError, match="expected the input u of the ODE function"):
        layer(y0)
    with pytest.raises(InputError, match="expected an input of 2 channels, for which the layer was reduced"):
        layer(y0, u[..., :1])
    with pytest.raises(InputError, match="expected 3 input samples"):
        layer(y0, u[:, :2])
    with pytest.raises(InputError, match="for a batch of 3, got 2"):
        layer(y0, u[:2])
    with pytest.raises(DtypeError, match=r"expected u of the state's dtype torch.float64, got torch.float32"):
        layer(y0, u.float())
    with pytest.raises(InputError, match="one row per sample"):
        layer(y0, lambda t: u[:1, 0])
    with pytest.raises(InputError, match="expected no input u"):
        layer_of()(torch.zeros(3, 10, **DOUBLE), torch.zeros(3, 2, 1, **DOUBLE))


def test_diverging_solution():
    layer = layer_of("dense, adaptive")
    with torch.no_grad():
        layer.ode.output.weight.fill_(torch.nan)
    with pytest.raises(SolverError, match="the ODE solver failed"):
        layer(torch.ones(2, 10, **DOUBLE))


# -- compilers, GPUs ------------------------------------------------------------------------------------------------


def graphs(module, arguments_of_batch, backend) -> int:
    """Compile without breaks or warnings, run at several batch sizes; how many graphs that took."""
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for batch in (7, 30, 2):
        arguments = arguments_of_batch(batch)
        torch.testing.assert_close(compiled(*arguments), module(*arguments), rtol=1e-13, atol=1e-13)
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", ["dense", "convolutional", "sampled input", "trajectories", "state kept"])
@pytest.mark.slow
def test_compiles_as_one_graph_with_a_dynamic_batch(name):
    layer = layer_of(name)
    assert graphs(layer, lambda batch: arguments_of(layer, batch), "eager") == 1


@pytest.mark.parametrize("name", ["dense", "sampled input"])
@pytest.mark.slow
def test_network_compiles_as_one_graph_with_a_dynamic_batch(name):
    entry = NETWORKS[name]
    small = reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes, solver=("midpoint", 2))
    assert graphs(small, entry.batch, "aot_eager") == 1


@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inductor uses it
@pytest.mark.slow
def test_compiles_with_inductor():
    layer = layer_of("dense")
    layer.options = {"step_size": 0.5}
    with torch.no_grad():
        assert graphs(layer, lambda batch: arguments_of(layer, batch), "inductor") == 1


def test_compiled_layer_follows_its_settings_and_parameters():
    layer = layer_of("dense")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    arguments = arguments_of(layer)
    for settings in ({"method": "euler"}, {"method": "heun2"}, {"options": {"step_size": 0.3}}):
        layer.settings = replace(layer.settings, **settings)
        with torch.no_grad():
            layer.ode.output.weight *= 1.1
        torch.testing.assert_close(compiled(*arguments), layer(*arguments), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["dense", "convolutional", "sampled input", "trajectories"])
@pytest.mark.parametrize("method", ["midpoint", "dopri5_fixed"])
@pytest.mark.slow
def test_exports_with_a_dynamic_batch(name, method):
    """Law: the exported program is the layer at any batch size; it holds no number that is not exact in float32."""
    layer = layer_of(name)
    options = {"step_size": 0.3, "interp": "cubic" if layer.output == "trajectory" else "linear"}
    layer.settings = replace(layer.settings, method=method, options=options)
    batch = torch.export.Dim("batch", min=1, max=64)
    arguments = arguments_of(layer, 4)
    program = torch.export.export(layer, arguments, dynamic_shapes=tuple({0: batch} for _ in arguments))
    for size in (1, 9):
        arguments = arguments_of(layer, size, seed=size)
        torch.testing.assert_close(program.module()(*arguments), layer(*arguments), rtol=1e-12, atol=1e-12)
    numbers = [a for node in program.graph.nodes for a in (*node.args, *node.kwargs.values()) if type(a) is float]
    assert all(number == torch.tensor(number, dtype=torch.float32).item() for number in numbers)


# -- what a solve costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 40])
def test_a_step_costs_its_matrix_products_only(steps):
    """z' = N tanh(A z + b) + L z + Z u + d: what reads the input is one product for all steps."""
    layer = driven(t=tuple(i / steps for i in range(steps + 1)), method="euler")
    assert set(layer.ode.output.sources) == {"y", "g1", "u"}
    arguments = arguments_of(layer)
    with torch.no_grad(), Operations() as count:
        layer(*arguments)
    assert count.of["tanh"] == steps
    assert count.of["addmm"] + count.of["mm"] <= 3 * steps + 3, "products per step, encoder, decoder, input"
    assert count.of["add"] <= steps + 1
    assert count.of["_local_scalar_dense"] <= 1, "the samples are finite: the only look at the data"
    assert not {"cat", "lerp"} & count.of.keys()


def test_autocast_returns_the_dtype_of_the_state():
    layer = layer_of("dense").float()
    y0 = torch.randn(3, 10)
    with torch.autocast("cpu", torch.bfloat16):
        value = layer(y0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, layer(y0), rtol=0.05, atol=0.05)


@pytest.mark.gpu
@networks
def test_on_a_gpu(name):
    layer = layer_of(name)
    arguments = arguments_of(layer)
    expected = layer(*arguments)
    on_gpu = copy.deepcopy(layer).cuda()
    value = on_gpu(*(a.cuda() for a in arguments))
    assert value.is_cuda
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(DeviceError, match=r"expected (the state y0|u) on"):
        on_gpu(*arguments)
