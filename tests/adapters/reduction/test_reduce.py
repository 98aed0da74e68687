"""`reduce_network`: laws over a catalogue of networks, choices of sizes, calibration data, and errors."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from networks import NETWORKS, Parts, Tanh, chain, dense
from torchmor.adapters import (
    NetworkReductor,
    ODELayer,
    ReducedODELayer,
    collect_snapshots,
    load,
    reduce_network,
    save,
)
from torchmor.adapters.networks.timing import Timing
from torchmor.adapters.reduction import clock, material
from torchmor.adapters.solving.solve_settings import METHODS
from torchmor.adapters.solving.steps import Steps, set_solver
from torchmor.engine.errors import (
    CalibrationError,
    DeviceError,
    DtypeError,
    InputError,
    LittleGainWarning,
    NonFiniteError,
    NotReducedWarning,
    ShapeError,
    SignatureError,
    SizeError,
    SolverError,
    TorchmorError,
    UnknownLayerError,
    UnsupportedOperationError,
)
from torchmor.engine.held_out import held_out_mask
from torchmor.engine.points import INTERPOLATING
from torchmor.engine.tableaux import OWN_METHODS
from torchmor.experiments.measure.comparison import evaluations

networks = pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in NETWORKS.items()])
DENSE = NETWORKS["dense"]
SIZES = {"state_dim": 4, "points": 5}
CLASSIC = {"basis": "pod", "selection": "deim", "fit": "interpolation"}
BALANCED = {"basis": "balanced", "selection": "omp", "fit": "least_squares"}


def reduced(entry=DENSE, network=None, **changes):
    network = entry.network() if network is None else network
    return reduce_network(network, entry.layer, entry.batch(), **entry.sizes | changes)


def layer_of(network, entry=DENSE) -> ReducedODELayer:
    return network.get_submodule(entry.layer)


def parts(small, name="ode"):
    return {part.name: part for part in small.get_submodule(name).explain().parts}


def state(network):
    """All that a reduction must not change, in comparable form."""
    modules = {
        name: (
            module.training,
            getattr(module, "nfe", None),
            [list(value) for key, value in vars(module).items() if key.endswith("_hooks")],
            [id(child) for child in module.children()],
        )
        for name, module in network.named_modules()
    }
    tensors = {
        name: (id(value), value.requires_grad, value.grad, value._version, value.tolist())
        for name, value in network.state_dict(keep_vars=True).items()
    }
    return modules, tensors, torch.get_rng_state().tolist()


# -- laws over the catalogue ----------------------------------------------------------------------------------------


@networks
def test_full_sizes_reproduce_the_network(entry):
    """Law: r = n and m = n reproduces the full network."""
    network, arguments = entry.network(), entry.batch()
    n = collect_snapshots(network, entry.layer, arguments).y.shape[0]
    with pytest.warns(NotReducedWarning, match=r"nothing was reduced.*keep their sizes"):
        same = reduced(entry, network, state_dim=n, points="full")
    torch.testing.assert_close(same(*arguments), network(*arguments), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [CLASSIC, {**CLASSIC, "selection": "qdeim"}, BALANCED])
def test_one_offline_stage_serves_all_sizes(method, monkeypatch):
    """Law: NetworkReductor(…).reduce(…) equals reduce_network(…), whatever was reduced before; snapshots come once."""
    network, (x,) = dense(12).double(), DENSE.batch(60)
    collected = []
    collect = material.collect_snapshots
    monkeypatch.setattr(
        material, "collect_snapshots", lambda *args, **kwargs: collected.append(1) or collect(*args, **kwargs)
    )
    reductor = NetworkReductor(network, "ode", x, seed=3)
    shared = {size: reductor.reduce(state_dim=size, points=size + 1, **method) for size in (4, 6, 5)}
    assert len(collected) == 1
    for size, small in shared.items():
        alone = reduce_network(network, "ode", x, state_dim=size, points=size + 1, **method, seed=3)
        torch.testing.assert_close(small(x), alone(x), rtol=0, atol=1e-11)
        for stage, points in alone.ode.points.items():
            assert points.tolist() == small.ode.points[stage].tolist()
        assert small.ode.explain().errors == pytest.approx(alone.ode.explain().errors, abs=1e-12)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_all_dimensions_and_points_of_a_tanh_network_reproduce_it(method):
    network, (x,) = dense(12, method=method).double(), DENSE.batch(60)
    with pytest.warns(NotReducedWarning):
        same = reduce_network(network, "ode", x, state_dim=12, points=12)
    torch.testing.assert_close(same(x), network(x), rtol=0, atol=1e-10)
    fewer = reduce_network(network, "ode", x, state_dim=11, points=11)
    assert torch.isfinite(fewer(x)).all() and not torch.equal(fewer(x), network(x))


@pytest.mark.parametrize("selection", INTERPOLATING)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_redundant_network_is_reproduced_by_what_it_needs(method, selection):
    """Law: with states in r dimensions and stage values in m dimensions, POD–DEIM of these sizes is exact."""
    r, n, size = 4, 12, 15
    basis = torch.linalg.qr(torch.randn(n, r, dtype=torch.float64)).Q
    weight = torch.randn(5, r, dtype=torch.float64)
    weight = torch.cat([weight, -weight, weight])  # tanh is odd: 15 components that span 5 dimensions
    lift = basis @ torch.randn(r, size, dtype=torch.float64) / size
    settings = {"method": method, "rtol": 1e-8, "atol": 1e-8}
    layer = ODELayer(lambda t, y: torch.tanh(y @ basis @ weight.T) @ lift.T, **settings)
    y0 = torch.randn(60, r, dtype=torch.float64) @ basis.T
    small = reduce_network(layer, "", y0, state_dim=r, points=5, **{**CLASSIC, "selection": selection})
    torch.testing.assert_close(small(y0), layer(y0), rtol=0, atol=1e-10 if method == "rk4" else 1e-7)
    with pytest.raises(SizeError, match=r"'g1', tanh\(a1\): expected at most as many points .* numerically 5; got 6"):
        reduce_network(layer, "", y0, state_dim=r, points=6, **{**CLASSIC, "selection": selection})
    with pytest.raises(SizeError, match=r"at most the numerical rank 4 of the calibration states, got 5: ask for 4"):
        reduce_network(layer, "", y0, state_dim=5, points=5, **{**CLASSIC, "selection": selection})


@networks
def test_network_is_unchanged(entry):
    network = entry.network().train()
    next(network.parameters()).requires_grad_(False)
    network.register_forward_pre_hook(lambda module, arguments: None)
    before = state(network)
    reduced(entry, network)
    assert state(network) == before


@networks
def test_rest_of_the_network_is_the_same_and_independent(entry):
    network = entry.network()
    for index, module in enumerate(network.modules()):
        module.training = index % 2 == 0
    small = reduced(entry, network)
    assert isinstance(layer_of(small, entry), ReducedODELayer)
    replaced = network.get_submodule(entry.layer)
    for name, module in network.named_modules(remove_duplicate=False):
        twin = dict(small.named_modules(remove_duplicate=False)).get(name)
        if module is replaced:
            assert twin is layer_of(small, entry) and twin.training == module.training
        elif twin is not None:
            assert type(twin) is type(module) and twin is not module and twin.training == module.training
    old, new = network.state_dict(), small.state_dict()
    rest = [key for key in old if key in new and not key.startswith((entry.layer, "again"))]
    assert entry.layer == "" or rest
    assert all(torch.equal(old[key], new[key]) for key in rest)
    storages = {value.untyped_storage().data_ptr() for value in old.values()}
    assert storages.isdisjoint(value.untyped_storage().data_ptr() for value in new.values())
    assert layer_of(small, entry).options is not replaced.options


@networks
def test_reduced_network_is_smaller_near_and_says_so(entry):
    network, arguments = entry.network(), entry.batch(30, seed=5)
    small = reduced(entry, network)
    with torch.no_grad():
        value, expected = small(*arguments), network(*arguments)
    assert value.shape == expected.shape and value.dtype == expected.dtype
    explanation = layer_of(small, entry).explain()
    assert (value - expected).norm() < 2 * explanation.errors["network output"] * expected.norm()
    assert set(explanation.errors) == {"layer output", "network output"}
    assert all(0 < error < 1 for error in explanation.errors.values())
    assert explanation.operations[1] < explanation.operations[0]


@networks
def test_same_seed_gives_the_same_bits(entry):
    first, second = reduced(entry).state_dict(), reduced(entry, progress=False, batch_size=256).state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@networks
@pytest.mark.parametrize(("method", "output"), [(CLASSIC, "layer output"), (BALANCED, "network output")])
def test_larger_sizes_are_better(entry, method, output):
    network, arguments = entry.network(), entry.batch(200)
    errors = []
    for sizes in ({"state_dim": 3, "points": 4}, {"state_dim": 9, "points": 10}):
        small = reduce_network(network, entry.layer, arguments, **sizes, **method)
        errors.append(layer_of(small, entry).explain().errors[output])
    assert errors[1] < 0.8 * errors[0]


# -- networks as they come ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reduced_layer_has_the_dtype_of_the_network(dtype, method):
    network, (x,) = dense(method=method, rtol=1e-2, atol=1e-2).to(dtype), DENSE.batch(40)
    small = reduce_network(network, "ode", x.to(dtype), **SIZES)
    assert all(parameter.dtype == dtype for parameter in small.parameters())
    value = small(x.to(dtype))
    assert value.dtype == dtype and value.isfinite().all()
    assert value.shape == (40, 3)


def test_low_precision_agrees_with_float64():
    network, (x,) = dense().double(), DENSE.batch(40)
    exact = reduce_network(network, "ode", x, state_dim=8, points=9)(x)
    for dtype in (torch.float32, torch.bfloat16):
        small = reduce_network(copy.deepcopy(network).to(dtype), "ode", x.to(dtype), state_dim=8, points=9)
        error = (small(x.to(dtype)).double() - exact).norm() / exact.norm()
        assert error < 10 * torch.finfo(dtype).eps


def test_frozen_network():
    network = DENSE.network().requires_grad_(False)
    small = reduced(network=network)
    assert not any(parameter.requires_grad for parameter in (*small.stem.parameters(), *small.head.parameters()))
    assert all(parameter.requires_grad for parameter in small.ode.parameters())


def test_several_layers_one_call_each():
    a, b = ODELayer(Tanh(10), method="rk4"), ODELayer(Tanh(10), method="heun2")
    network, (x,) = chain(stem=nn.Linear(5, 10), a=a, b=b).double(), DENSE.batch()
    once = reduce_network(network, "a", x, **SIZES)
    twice = reduce_network(once, "b", x, state_dim=3, points=4)
    assert isinstance(twice.a, ReducedODELayer) and isinstance(twice.b, ReducedODELayer)
    assert isinstance(once.b, ODELayer) and once.a is not twice.a
    assert twice.a.fom is once.a.fom, "a copy keeps the record"
    torch.testing.assert_close(twice.a(twice.stem(x)), once.a(once.stem(x)), rtol=0, atol=0)


def test_shared_layer_is_replaced_in_all_places():
    entry = NETWORKS["called twice"]
    for name in ("ode", "again"):
        small = reduce_network(entry.network(), name, entry.batch(), **SIZES)
        assert small.ode is small.again and isinstance(small.ode, ReducedODELayer)
    assert small.ode.explain().evaluations == 8, "of both calls"


def test_layer_keeps_its_solver_settings():
    network = dense(t=(2.0, 1.5, 0.0), method="midpoint", options={"step_size": 0.125}, output="trajectory").double()
    (x,) = DENSE.batch()
    layer = reduce_network(network, "ode", x, **SIZES).ode
    assert layer.settings == network.ode.settings
    layer.options["step_size"] = 1.0
    assert network.ode.options == {"step_size": 0.125}


def test_optional_input():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, t, y, u=None):
            return torch.tanh(self.linear(y)) + (0.0 if u is None else u @ torch.ones(2, 8, dtype=y.dtype))

    layer = ODELayer(Optional(), method="rk4").double()
    y0, u = torch.randn(30, 8, dtype=torch.float64), torch.randn(30, 2, 2, dtype=torch.float64)
    without, driven = reduce_network(layer, "", y0, **SIZES), reduce_network(layer, "", (y0, u), **SIZES)
    assert without(y0).shape == driven(y0, u).shape == (30, 8)
    with pytest.raises(InputError, match="expected no input u"):
        without(y0, u)
    with pytest.raises(InputError, match="expected the input u"):
        driven(y0)


def test_linear_function_has_no_stages():
    layer = ODELayer(nn.Linear(8, 8), method="rk4").double()
    small = reduce_network(layer, "", torch.randn(30, 8, dtype=torch.float64), state_dim=3, points=1)
    assert [part.name for part in small.explain().parts] == ["state"]
    assert small(torch.randn(2, 8, dtype=torch.float64)).shape == (2, 8)


def test_stage_that_is_silent_on_the_calibration_data_is_kept():
    """Its values span nothing to interpolate in."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    nn.init.constant_(first.bias, -100.0)
    layer = ODELayer(nn.Sequential(first, nn.ReLU(), second, nn.Tanh()), method="rk4").double()
    y0 = torch.randn(50, 6, dtype=torch.float64)
    small = reduce_network(layer, "", y0, state_dim=5, energy_rtol=0.3, **CLASSIC)
    silent = small.explain().parts[1]
    assert silent.reduced == silent.full == 6 and "zero on all calibration data" in silent.why
    assert small(100 * y0).isfinite().all()
    small = reduce_network(layer, "", y0, state_dim="full", points=[2, "full"], **CLASSIC)
    assert small.explain().parts[1].reduced == 0
    torch.testing.assert_close(small(y0), layer(y0))


def test_state_that_is_always_zero_is_refused():
    layer = ODELayer(nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh()), method="rk4").double()
    with pytest.raises(SizeError, match="not all zero, got nothing else"):
        reduce_network(layer, "", torch.zeros(50, 6, dtype=torch.float64), energy_rtol=0.1)


def test_times_given_in_the_call():
    parts = {"stem": nn.Linear(5, 10), "ode": ODELayer(Tanh(10), method="rk4", output="trajectory")}
    network = Parts(lambda self, x, t: self.ode(self.stem(x), t=t[0]), **parts).double()
    (x,), t = DENSE.batch(), torch.linspace(2, 0, 5).expand(40, -1)
    small = reduce_network(network, "ode", (x, t), state_dim=9, points="full")
    assert small(x, t).shape == network(x, t).shape == (5, 40, 10)
    assert small.ode.explain().errors["network output"] < 0.2 and small.ode.explain().evaluations == 16


@pytest.mark.parametrize(
    ("method", "adjoint"),
    [(method, adjoint) for method in METHODS for adjoint in ((False,) if method in OWN_METHODS else (False, True))],
)
@pytest.mark.filterwarnings("ignore:Functional iteration did not", "ignore:The following arguments have no effect")
def test_every_solver(method, adjoint):
    network = dense(method=method, adjoint=adjoint, t=(0.0, 0.2, 0.4)).double()
    (x,) = DENSE.batch(30)
    small = reduce_network(network, "ode", x, state_dim=8, points=9)
    assert (small.ode.method, small.ode.adjoint) == (method, adjoint)
    assert small.ode.explain().errors["network output"] < 0.1
    loss = small(x).sum()
    if method != "scipy_solver" or adjoint:
        loss.backward()
        assert all(parameter.grad is not None for parameter in small.parameters())


# -- the solver of the reduced layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [("midpoint", 2), Steps("midpoint", 2), ["midpoint", 2]])
@pytest.mark.parametrize("own", ["dopri5", "heun3"])
def test_solver_of_the_reduced_layer(solver, own):
    """Law: it has these steps whatever the full layer has, and its errors are measured with them."""
    network = dense(method=own).double()
    (x,) = DENSE.batch()
    small = reduce_network(network, "ode", x, state_dim=9, points="full", solver=solver)
    assert (small.ode.method, small.ode.options, network.ode.method) == ("midpoint", {"step_size": 0.5}, own)
    explanation = small.ode.explain()
    assert "method='midpoint', options={'step_size': 0.5}" in str(explanation)
    other = reduce_network(network, "ode", x, state_dim=9, points="full")
    assert other.ode.method == own
    for parameter, expected in zip(small.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected), "the operators do not depend on the solver"
    set_solver(other.ode, Steps("midpoint", 2))
    assert torch.equal(small(x), other(x))
    assert explanation.errors != other.ode.explain().errors


def test_method_alone_steps_from_output_time_to_output_time(tmp_path):
    network = dense(method="dopri5", t=(0.0, 0.3, 1.0), adjoint=True).double()
    small = reduce_network(network, "ode", *DENSE.batch(), state_dim=9, points="full", solver="dopri5_fixed")
    assert (small.ode.method, small.ode.options, small.ode.adjoint) == ("dopri5_fixed", {}, False)
    assert small.ode.explain().errors["network output"] < 0.1
    assert evaluations(small, "ode", *DENSE.batch()) == 2 * 6
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", network=network)
    assert again.ode.settings == small.ode.settings and torch.equal(again(*DENSE.batch()), small(*DENSE.batch()))


def test_solver_with_sizes_from_the_energy():
    small = reduce_network(
        DENSE.network(), "ode", *DENSE.batch(), energy_rtol=0.1, solver=("rk4_classic", 3), **CLASSIC
    )
    assert (small.ode.method, small.ode.options) == ("rk4_classic", {"step_size": 1 / 3})


def test_unknown_solver_is_refused_before_anything_is_computed():
    network = DENSE.network()
    network.ode.forward = lambda *_: pytest.fail("the network was run")
    for sizes in ({"state_dim": 4, "points": 4}, {}):
        with pytest.raises(ValueError, match=r"expected solver to be None, .* got 'rk5': the methods are euler"):
            reduce_network(network, "ode", *DENSE.batch(), solver="rk5", **sizes)


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (5, [5, 5]),
        ("full", [14, 10]),
        ([6, 7], [6, 7]),
        ((6, "full"), [6, 10]),
        (["full", np.int64(3)], [14, 3]),
        (range(6, 8), [6, 7]),
        (12, [12, 10]),
        ([14, 10], [14, 10]),
    ],
)
def test_points_of_several_stages(points, expected):
    small = reduced(NETWORKS["trajectories"], state_dim=np.int64(5), points=points, **CLASSIC)
    sizes = parts(small)
    assert [sizes["g1"].reduced, sizes["g2"].reduced] == expected
    assert sizes["state"].reduced == small.ode.ode.state_size == small.ode.encode.out_features == 5
    assert [len(small.ode.bases[g].T) for g in ("g1", "g2") if g in small.ode.bases] == [
        m for m, full in zip(expected, [14, 10], strict=True) if m < full
    ]
    for part in (sizes["g1"], sizes["g2"]):
        kept = part.reduced == part.full
        assert part.fate == ("kept" if kept else "reduced")
        assert (part.constant is None) == (part.dropped_energy is None) == (part.condition is None) == kept


@pytest.mark.parametrize("rtol", [0.5, 0.1, 0.01])
def test_energy_rtol_is_the_smallest_rank_that_keeps_the_energy(rtol):
    layer = reduced(NETWORKS["trajectories"], state_dim=None, points=None, energy_rtol=rtol, **CLASSIC).ode
    for part in layer.explain().parts:
        squares = layer.singular_values[part.name] ** 2 if part.name in layer.singular_values else np.ones(part.full)
        dropped = np.append(np.cumsum(squares[::-1])[::-1], 0.0) / squares.sum()
        assert dropped[part.reduced] <= rtol**2 < dropped[part.reduced - 1]
        assert part.dropped_energy == pytest.approx(dropped[part.reduced], abs=1e-12) or part.reduced == part.full


def test_explicit_sizes_and_energy_rtol_together():
    sizes = parts(reduced(NETWORKS["trajectories"], state_dim=3, points=[None, 4], energy_rtol=0.2, **CLASSIC))
    assert sizes["state"].reduced == 3 and sizes["g2"].reduced == 4
    assert sizes["g1"].why == "deim, energy_rtol=0.2" and sizes["g2"].why == "deim, as asked"


def test_bases_and_singular_values_are_those_of_the_snapshots():
    network, (x,) = DENSE.network(), DENSE.batch()
    layer = reduced(network=network, **CLASSIC).ode
    kept = ~held_out_mask(len(x), 0)
    snapshots = collect_snapshots(network, "ode", x[torch.from_numpy(kept)])
    for name, values in (("state", snapshots.y), ("g1", layer.fom.operator.chain.evaluate(snapshots.y)["g1"])):
        basis = layer.bases[name]
        U, singular_values, _ = np.linalg.svd(values, full_matrices=False)
        np.testing.assert_allclose(layer.singular_values[name], singular_values, rtol=1e-6)
        np.testing.assert_allclose(basis @ basis.T, U[:, : basis.shape[1]] @ U[:, : basis.shape[1]].T, atol=1e-9)
    np.testing.assert_allclose(layer.decode.weight.detach().numpy(), layer.bases["state"], atol=1e-14)
    np.testing.assert_allclose(layer.encode.weight.detach().numpy(), layer.bases["state"].T, atol=1e-14)


# -- calibration data -----------------------------------------------------------------------------------------------


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.allclose(first[key].abs(), second[key].abs(), rtol=0, atol=1e-8) for key in first)


def test_forms_of_calibration_data_are_the_same_data():
    network, (x,) = DENSE.network(), DENSE.batch()
    labels = torch.zeros(len(x))
    reference = reduce_network(network, "ode", x, **SIZES, **CLASSIC)
    loader = DataLoader(TensorDataset(x, labels), batch_size=7)
    forms = {
        "tuple": ((x,), {}),
        "batches": (list(x.split(7)), {}),
        "batches of lists": ([[part] for part in x.split(16)], {}),
        "small batches": (x, {"batch_size": 7}),
        "labelled loader": (loader, {"batch_to_inputs": lambda batch: batch[0]}),
    }
    for data, options in forms.values():
        assert same(reduce_network(network, "ode", data, **SIZES, **CLASSIC, **options), reference)


def test_shuffling_loader():
    network, (x,) = DENSE.network(), DENSE.batch()
    loader = DataLoader(TensorDataset(x), batch_size=7, shuffle=True)
    before = torch.get_rng_state()
    first, second = (reduce_network(network, "ode", loader, **SIZES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_labelled_loader_without_batch_to_inputs():
    (x,) = DENSE.batch()
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=8)
    with pytest.raises(CalibrationError, match=r"got 2 in calibration batch 0.*batch_to_inputs=lambda b: b\[0\]"):
        reduce_network(DENSE.network(), "ode", loader, **SIZES)


@pytest.mark.parametrize("samples", [4, 5])
def test_few_samples(samples):
    (x,) = DENSE.batch(samples)
    explanation = reduce_network(DENSE.network(), "ode", x, state_dim=2, points=2).ode.explain()
    assert explanation.samples == samples - 1
    assert set(explanation.errors) == {"layer output", "network output"}


def test_held_out_errors_are_those_of_the_held_out_samples():
    network, (x,) = DENSE.network(), DENSE.batch()
    small = reduce_network(network, "ode", x, **SIZES, seed=3, batch_size=16)
    held_out = x[torch.from_numpy(held_out_mask(len(x), 3))]
    runs = {"network output": lambda m: m(held_out), "layer output": lambda m: m.ode(m.stem(held_out))}
    with torch.no_grad():
        for key, run in runs.items():
            error = (run(small) - run(network)).norm() / run(network).norm()
            assert small.ode.explain().errors[key] == pytest.approx(float(error), rel=1e-10)


def test_explanation_counts():
    network, (x,) = dense(12).double(), DENSE.batch(50)
    explanation = reduce_network(network, "ode", x, **SIZES).ode.explain()
    assert (explanation.samples, explanation.evaluations, explanation.snapshots) == (40, 4, 160)
    assert explanation.operations == (12 * 12, 4 * 5 + 5 * 4)
    assert explanation.method == BALANCED


def test_output_that_is_masked_with_infinity():
    network = Parts(
        lambda self, x: self.ode(self.stem(x)).masked_fill(x[:, :1] > 0, -torch.inf),
        stem=nn.Linear(5, 10),
        ode=ODELayer(Tanh(10), method="rk4"),
    ).double()
    assert reduced(network=network).ode.explain().errors["network output"] < 1


def with_output(output):
    torch.manual_seed(0)
    parts = {"stem": nn.Linear(5, 10), "ode": ODELayer(Tanh(10))}
    return Parts(lambda self, x: output(self.ode(self.stem(x))), **parts).double()


@pytest.mark.parametrize("output", [lambda y: (y, 1), lambda y: {"y": y, "z": 2 * y}])
def test_several_outputs(output):
    """Law: losses, gradients and errors of several outputs are those of all their entries."""
    errors = reduced(network=with_output(output)).ode.explain().errors
    assert errors == pytest.approx(reduced(network=with_output(lambda y: y)).ode.explain().errors, rel=0.2)


@pytest.mark.parametrize("output", [lambda y: y.argmax(1), lambda y: None])
def test_output_without_gradients(output):
    network = with_output(output)
    assert set(reduced(network=network, **CLASSIC).ode.explain().errors) == {"layer output"}
    with pytest.raises(
        UnsupportedOperationError, match=r'differentiated .* objective=lambda output: …, or use basis="pod"'
    ):
        reduced(network=network)


def test_nothing_is_printed_in_a_pipe(capfd):
    reduced(progress=True)
    assert capfd.readouterr() == ("", "")


# -- errors ---------------------------------------------------------------------------------------------------------


class Wrong(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
        self.linear = nn.Linear(10, 10)

    def forward(self, t, y):
        return self.f(self.linear(y))


def with_function(f):
    return lambda: chain(stem=nn.Linear(5, 10), ode=ODELayer(Wrong(f), method="rk4"), head=nn.Linear(10, 3))


def skipping():
    return Parts(lambda self, x: self.stem(x), stem=nn.Linear(5, 10), ode=ODELayer(Tanh(10)))


X = DENSE.batch()[0]
ERRORS = {
    "some points": ({"points": [5, None]}, SizeError, "entry of points for each of the 1 stages, got 2"),
    "zero": ({"state_dim": 0}, SizeError, 'positive ints, "full" or None, got 0'),
    "negative": ({"points": -1}, SizeError, "got -1"),
    "float": ({"points": 4.0}, SizeError, r"got 4\.0"),
    "bool": ({"state_dim": True}, SizeError, "got True"),
    "string": ({"state_dim": "4"}, SizeError, "got '4'"),
    "string of several": ({"points": ["all"]}, SizeError, "got 'all'"),
    "zero modes": ({"modes": 0}, SizeError, "got 0"),
    "r > n": ({"state_dim": 11}, SizeError, "state_dim of at most 10, the full size, got 11: ask for fewer"),
    "points > size": ({"points": 11}, SizeError, "points of at most 10, the full size, got 11"),
    "points of one > size": ({"points": [11]}, SizeError, "points of stage 'g1' of at most 10, the full size, got 11"),
    "too many entries": ({"points": [5, 5]}, SizeError, r"entry of points for each of the 1 stages, got 2: \[5"),
    "modes": ({"modes": 6}, SizeError, "at most as many modes as points, got 6 modes for 5 points"),
    "tolerance": ({"energy_rtol": 1.5}, SizeError, r"0 ≤ energy_rtol < 1, got 1\.5"),
    "no tolerance": ({"energy_rtol": "small"}, SizeError, "got 'small'"),
    "NaN tolerance": ({"energy_rtol": float("nan")}, SizeError, "got nan"),
    "basis": ({"basis": "POD"}, ValueError, "basis to be one of pod, balanced, got 'POD'"),
    "fit": ({"fit": "lasso"}, ValueError, "fit to be one of interpolation, least_squares, got 'lasso'"),
    "selection": ({"selection": "all"}, ValueError, "to be one of deim, qdeim, ei_greedy, omp, got 'all'"),
    "unknown layer": ({"name": "od"}, UnknownLayerError, r"got 'od' \(did you mean 'ode'\?\): its ODE layers"),
    "no ODE layer": ({"name": "head"}, UnknownLayerError, "expected an ODELayer as 'head', got a Linear"),
    "network itself": ({"name": ""}, UnknownLayerError, "expected an ODELayer as '', got a Sequential"),
    "index": ({"name": 1}, TypeError, r"name of its ODE layer as in network\.named_modules\(\), got 1"),
    "reduced layer": ({"network": reduced}, UnknownLayerError, "reduced already: reduce the original network again"),
    "dtype": ({"calibration": X.float()}, DtypeError, "calibration batch 0 of torch.float64.*got torch.float32"),
    "NaN": ({"calibration": X.clone().fill_diagonal_(torch.nan)}, NonFiniteError, "NaN or infinity in batch 0"),
    "empty": ({"calibration": X[:0]}, CalibrationError, "at least one sample, got none"),
    "no batches": ({"calibration": []}, CalibrationError, "at least one sample, got none"),
    "one-shot": ({"calibration": iter([X])}, CalibrationError, "read several times, got the one-shot iterator"),
    "array": ({"calibration": X.numpy()}, CalibrationError, r"got ndarray: convert it with torch\.from_numpy"),
    "batch size": ({"batch_size": 0}, CalibrationError, "batch_size to be at least 1, got 0"),
    "never called": ({"network": skipping}, CalibrationError, "expected the network to call its ODE layer 'ode'"),
    "operation": (
        {"network": with_function(lambda y: torch.softmax(y, 1))},
        UnsupportedOperationError,
        "softmax.*cannot be reduced",
    ),
    "branch": (
        {"network": with_function(lambda y: y if y.sum() > 0 else -y)},
        UnsupportedOperationError,
        r"branches on.*torch\.where",
    ),
    "mixed samples": ({"network": with_function(lambda y: y - y.mean(0))}, UnsupportedOperationError, "mixes"),
    "returned shape": (
        {"network": with_function(lambda y: y[:, :7])},
        SignatureError,
        r"returned shape \(40, 7\) for a state of shape \(40, 10\): torchmor needs dy/dt",
    ),
    "returned dtype": ({"network": with_function(lambda y: y.float())}, SignatureError, "returned torch.float32"),
    "returned tuple": ({"network": with_function(lambda y: (y,))}, SignatureError, "returned a tuple"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do_and_change_nothing(case):
    changes, error, text = ERRORS[case]
    arguments = {"network": dense, "name": "ode", "calibration": X} | SIZES | changes
    network = arguments.pop("network")().double()
    before = state(network)
    with pytest.raises(error, match=text) as caught:
        reduce_network(network, **arguments)
    assert issubclass(error, TorchmorError) or error in (ValueError, TypeError)
    assert type(caught.value) is error
    assert state(network) == before


def test_no_network():
    with pytest.raises(TypeError, match=r"with a module and the name of its ODE layer"):
        reduce_network(abs, "ode", X, **SIZES)


@pytest.mark.parametrize("f", [lambda y, t: y, lambda t, y, u, v: y, lambda: 0, lambda t, y, *, k: y, 3])
def test_function_of_a_wrong_signature(f):
    with pytest.raises(SignatureError, match=r"write f\(t, y\), f\(t, y, u\) or f\(y\)"):
        ODELayer(f)


def test_states_of_several_shapes():
    layer = ODELayer(nn.Tanh(), method="rk4")
    with pytest.raises(ShapeError, match=r"can be reduced for one shape only"):
        reduce_network(layer, "", [torch.randn(4, 6), torch.randn(4, 7)], **SIZES)


@pytest.mark.parametrize("settings", [{"method": "rk4", "options": {"step_size": 1.0}}, {"method": "dopri5"}])
def test_diverging_reduction(settings):
    """Each unknown is damped by its own cube; one sampled cube cannot damp two modes."""
    layer = ODELayer(lambda t, y: 1.2 * (y - y**3), t=(0.0, 100.0), **settings)
    y0 = torch.rand(10, 6)
    assert layer(y0).isfinite().all()
    with pytest.raises(NonFiniteError, match=r"unstable at these sizes; ask for a larger state_dim, or other points"):
        reduce_network(layer, "", y0, state_dim=2, points=1)


def test_network_that_cannot_be_copied():
    network = DENSE.network()
    network.file = open(__file__, encoding="utf-8")  # noqa: SIM115
    with network.file, pytest.raises(UnsupportedOperationError, match=r"network that can be copied.*TextIOWrapper"):
        reduced(network=network)


def test_network_that_keeps_results():
    network = DENSE.network()
    network.last = network(X)
    assert reduced(network=network).ode.explain().errors == reduced(network=DENSE.network()).ode.explain().errors


def test_diverging_network():
    layer = ODELayer(lambda t, y: y**3, method="dopri5")
    with pytest.raises(SolverError, match="the ODE solver failed"):
        reduce_network(layer, "", 10 + torch.rand(10, 6), state_dim=2, points=2)


def test_warns_only_if_nothing_is_smaller():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduced(state_dim="full", points=4)
        reduced(state_dim=4, points="full")
    with pytest.warns(NotReducedWarning, match=r"sizes \[10, 10\]; ask for smaller state_dim or points") as caught:
        reduced(state_dim="full", points="full")
    assert caught[0].filename == __file__, "the warning points at the caller"


def slow(monkeypatch, times):
    """Let reduced layers be so many times as slow as full ones by decree."""

    def measured(calls, **_):
        return {who: Timing(*3 * [times if who[0] == "reduced" else 1.0], 1, 1) for who in calls}

    monkeypatch.setattr(clock, "compare_times", measured)


def test_warns_if_a_reduction_does_not_pay(monkeypatch):
    (x,) = DENSE.batch(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduced(network=dense().double())
    slow(monkeypatch, 1.3)
    text = (
        "does not pay: the reduced layer takes 1.3 times as long as the full layer with 1 RK4 step at batch 1 and 1.3 "
        r"times as long as .* at batch 200; .* takes 180 multiply-adds a sample, 100 before\. .*coarser steps"
    )
    with pytest.warns(LittleGainWarning, match=text) as caught:
        reduce_network(dense().double(), "ode", x, state_dim=9, points=10)
    assert caught[0].filename == __file__, "the warning points at the caller"


# -- GPU ------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@networks
def test_network_on_a_gpu(entry):
    network, arguments = entry.network(), entry.batch()
    small = reduced(entry, network)
    on_gpu = copy.deepcopy(network).cuda()
    arguments_on_gpu = tuple(argument.cuda() for argument in arguments)
    fast = reduce_network(on_gpu, entry.layer, arguments_on_gpu, **entry.sizes)
    assert all(parameter.is_cuda for parameter in fast.parameters())
    torch.testing.assert_close(fast(*arguments_on_gpu).cpu(), small(*arguments), rtol=1e-6, atol=1e-6)
    with pytest.raises(DeviceError, match=r"calibration batch 0 on cuda.*got cpu"):
        reduce_network(on_gpu, entry.layer, arguments, **entry.sizes)
