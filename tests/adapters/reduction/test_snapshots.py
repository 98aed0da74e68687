import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchmor.adapters.reduction.snapshots
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.reduction.snapshots import collect_snapshots
from torchmor.engine.errors import (
    CalibrationError,
    InputError,
    NonFiniteError,
    ShapeError,
    SolverError,
    UnknownLayerError,
)
from torchmor.engine.held_out import held_out_mask

DOUBLE = {"dtype": torch.float64}


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones((), **DOUBLE))

    def forward(self, t, y):
        return -self.rate * y


class Network(nn.Module):
    def __init__(self, ode, repeats=1):
        super().__init__()
        self.stem = nn.Linear(3, 4, **DOUBLE)
        self.dropout = nn.Dropout(0.5)
        self.ode = ode
        self.repeats = repeats

    def forward(self, x):
        y = self.dropout(self.stem(x))
        for _ in range(self.repeats):
            y = self.ode(y)
        return y


def euler(steps=5, **settings):
    return ODELayer(Decay(), method="euler", options={"step_size": 1 / steps}, **settings)


def data(samples=20):
    return torch.randn(samples, 3, **DOUBLE)


def test_snapshots_of_euler_steps_in_closed_form():
    """Euler on y' = −y evaluates f at t = i h and y = (1 − h)^i y0."""
    network, x = Network(euler(4)), data()
    snapshots = collect_snapshots(network, "ode", x, batch_size=7)
    y0 = network.stem(x).detach().numpy().T
    assert len(snapshots) == 20 * 4
    assert np.array_equal(snapshots.sample, np.repeat(np.arange(20), 4))
    np.testing.assert_allclose(snapshots.t, np.tile([0, 0.25, 0.5, 0.75], 20))
    np.testing.assert_allclose(snapshots.y, np.repeat(y0, 4, axis=1) * 0.75 ** np.tile(np.arange(4), 20))
    assert snapshots.u.shape == (0, 80)
    assert snapshots.state_shape == (4,)
    assert snapshots.n_samples == 20
    assert snapshots.nfe == (4, 4, 4)
    assert snapshots.t_range == (0.0, 0.75)
    for name in ("t", "y", "u"):
        assert getattr(snapshots, name).dtype == np.float64


def test_snapshots_are_the_evaluations_of_the_layers_own_adaptive_solver():
    network, x = Network(ODELayer(Decay(), rtol=1e-6, atol=1e-6)), data()
    network.eval()
    seen = []
    with network.ode.observe(lambda t, y, u: seen.append((float(t), y))), torch.no_grad():
        network(x)
    snapshots = collect_snapshots(network, "ode", x)
    assert snapshots.nfe == (len(seen),)
    first = snapshots.sample == 0
    assert np.array_equal(snapshots.t[first], [t for t, _ in seen])
    assert np.array_equal(snapshots.y[:, first].T, np.stack([y[0].numpy() for _, y in seen]))


def test_inputs_are_collected():
    layer = ODELayer(lambda t, y, u: u.sum(1, keepdim=True) - y, (0.0, 0.5, 1.0), "euler")
    u = torch.randn(6, 3, 2, **DOUBLE)
    snapshots = collect_snapshots(layer, "", (data(6), u))
    assert snapshots.u.shape == (2, 12)
    np.testing.assert_array_equal(snapshots.u, u[:, :2].reshape(12, 2).T.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_network_runs_in_its_own_dtype(dtype):
    network, x = Network(euler()).to(dtype), data().to(dtype)
    snapshots = collect_snapshots(network, "ode", x)
    with torch.no_grad():
        expected = network.stem(x).double().numpy().T
    assert snapshots.y.dtype == np.float64
    assert np.array_equal(snapshots.y[:, ::5], expected)
    assert network.stem.weight.dtype == dtype


def test_states_are_flattened():
    layer = ODELayer(nn.Conv2d(2, 2, 3, padding=1, **DOUBLE), method="euler")
    x = torch.randn(3, 2, 4, 5, **DOUBLE)
    snapshots = collect_snapshots(layer, "", x)
    assert snapshots.state_shape == (2, 4, 5)
    assert np.array_equal(snapshots.y.T, x.flatten(1).numpy())


def test_the_network_is_left_as_it_was():
    network = Network(euler())
    network.ode.eval()
    x, bad = data(), data() / 0
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    collect_snapshots(network, "ode", x)
    with pytest.raises(NonFiniteError, match="batch 0, argument 0"):
        collect_snapshots(network, "ode", bad)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert network.ode._observers == []
    assert all(parameter.grad is None for parameter in network.parameters())


# -- thinning
# ----------------------------------------------------------------------------------------------------------


def test_thinning_is_deterministic_and_independent_of_the_batch_size():
    """With fixed steps the same (sample, evaluation) pairs are kept, whatever the batches are."""
    network, x = Network(euler(12)), data(50)
    first = collect_snapshots(network, "ode", x, max_snapshots=101)
    assert len(first) == 101
    for batch_size in (1, 8, 13, 34, 50):
        other = collect_snapshots(network, "ode", x, max_snapshots=101, batch_size=batch_size)
        assert np.array_equal(other.sample, first.sample)
        assert np.array_equal(other.t, first.t)
        np.testing.assert_allclose(other.y, first.y, rtol=0, atol=1e-14)


def test_thinned_snapshots_are_among_all_of_them():
    network, x = Network(euler(12)), data(50)
    whole, thinned = (collect_snapshots(network, "ode", x, max_snapshots=k) for k in (6000, 101))
    assert len(whole) == 600 and len(thinned) == 101
    columns = {(s, t): y for s, t, y in zip(whole.sample, whole.t, whole.y.T, strict=True)}
    for s, t, y in zip(thinned.sample, thinned.t, thinned.y.T, strict=True):
        assert np.array_equal(columns[s, t], y)


@settings(max_examples=25)
@given(
    samples=st.sampled_from([20, 64, 100]),
    steps=st.sampled_from([1, 2, 8, 13, 21, 26, 32, 34]),
    fraction=st.sampled_from([0.5, 0.2, 0.1]),
    batch_size=st.sampled_from([8, 13, 256]),
)
def test_thinning_is_even_over_samples_and_evaluations(samples, steps, fraction, batch_size):
    """No beat with the batch size or the number of evaluations: Fibonacci numbers and powers of two too."""
    k = max(1, round(fraction * samples * steps))
    x = torch.zeros(samples, 2, **DOUBLE)
    snapshots = collect_snapshots(euler(steps), "", x, max_snapshots=k, batch_size=batch_size)
    assert len(snapshots) == k
    evaluation = np.rint(snapshots.t * steps).astype(int)
    for index, count, length in ((snapshots.sample, samples, steps), (evaluation, steps, samples)):
        counts = np.bincount(index, minlength=count)
        assert np.abs(counts - fraction * length).max() <= 4
    if fraction == 0.1:  # no two neighbours, along no diagonal either
        kept = np.zeros((samples, steps), dtype=bool)
        kept[snapshots.sample, evaluation] = True
        assert not (kept[1:] & kept[:-1]).any()
        assert not (kept[:, 1:] & kept[:, :-1]).any()
        assert not (kept[1:, 1:] & kept[:-1, :-1]).any()
        assert not (kept[1:, :-1] & kept[:-1, 1:]).any()


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(torchmor.adapters.reduction.snapshots, "MAX_BYTES", 8 * 5 * 10)
    snapshots = collect_snapshots(Network(euler()), "ode", data())
    assert len(snapshots) == 10
    assert snapshots.y.shape == (4, 10)


def test_snapshots_of_some_samples():
    network, x = Network(euler()), data()
    mask = held_out_mask(20)
    snapshots = collect_snapshots(network, "ode", x).of_samples(mask)
    assert set(snapshots.sample) == set(np.flatnonzero(mask))
    assert snapshots.y.shape == (4, len(snapshots))
    held_out = collect_snapshots(network, "ode", Calibration(x).split()[1])
    np.testing.assert_array_equal(held_out.sample, snapshots.sample)
    np.testing.assert_allclose(held_out.y, snapshots.y, rtol=1e-14)


# -- several calls, several shapes
# -------------------------------------------------------------------------------------


def test_calls_of_one_forward_pass_are_pooled():
    snapshots = collect_snapshots(Network(euler(), repeats=3), "ode", data(), batch_size=10)
    assert len(snapshots) == 20 * 15
    assert snapshots.nfe == (15, 15)
    assert np.array_equal(snapshots.sample, np.repeat(np.arange(20), 15))


def test_several_states_of_a_sample_belong_to_it():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.ode = euler(1)

        def forward(self, x):  # (batch, length, n)
            return self.ode(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    x = torch.randn(5, 3, 4, **DOUBLE)
    snapshots = collect_snapshots(Sequence(), "ode", x, batch_size=2)
    assert np.array_equal(snapshots.sample, np.repeat(np.arange(5), 3))
    assert np.array_equal(snapshots.y.T, x.flatten(0, 1).numpy())


def test_states_of_several_shapes_are_refused():
    layer = ODELayer(Decay(), method="euler")
    with pytest.raises(ShapeError, match=r"first \(2,\) with 0 inputs and then \(3,\) with 0"):
        collect_snapshots(layer, "", [torch.zeros(2, 2, **DOUBLE), torch.zeros(2, 3, **DOUBLE)])


# -- errors
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("odee", r"got 'odee' \(did you mean 'ode'\?\): its ODE layers are 'ode'"),
        ("stem", "expected an ODELayer as 'stem', got a Linear"),
        ("", "expected an ODELayer as '', got a Network"),
    ],
)
def test_unknown_layer(name, text):
    with pytest.raises(UnknownLayerError, match=text):
        collect_snapshots(Network(euler()), name, data())


def test_layer_that_is_never_called():
    with pytest.raises(CalibrationError, match=r"expected the network to call its ODE layer 'ode' .* got no call"):
        collect_snapshots(Network(euler(), repeats=0), "ode", data())


@pytest.mark.parametrize(
    ("calibration", "error", "text"),
    [
        (iter([data()]), CalibrationError, "one-shot iterator"),
        ([], CalibrationError, "at least one sample"),
        (DataLoader(TensorDataset(data(), torch.zeros(20))), CalibrationError, "pass batch_to_inputs=lambda b"),
        (torch.full((2, 3), torch.nan, **DOUBLE), NonFiniteError, "batch 0, argument 0"),
    ],
)
def test_bad_calibration(calibration, error, text):
    with pytest.raises(error, match=text):
        collect_snapshots(Network(euler()), "ode", calibration)


def test_labels_for_a_network_that_is_the_layer():
    loader = DataLoader(TensorDataset(data(), torch.zeros(20)))
    with pytest.raises(CalibrationError, match=r"expected no input u.*if the batches hold labels, pass batch_to_inp"):
        collect_snapshots(euler(), "", loader)
    assert len(collect_snapshots(euler(), "", loader, batch_to_inputs=lambda b: b[0])) == 100


def test_missing_input():
    with pytest.raises(InputError, match="expected the input u"):
        collect_snapshots(ODELayer(lambda t, y, u: u), "", data())


def test_diverging_solution_names_samples_and_time():
    layer = ODELayer(lambda t, y: y**3, (0.0, 9.0), "euler", options={"step_size": 1.0})
    with pytest.raises(NonFiniteError, match=r"at t = 4 for sample 2 and 1 others .*\(batch 1\): the sol"):
        collect_snapshots(layer, "", [torch.zeros(2, 2), torch.full((2, 2), 3.0)])


def test_failing_solver():
    layer = ODELayer(lambda t, y: y**3, (0.0, 9.0), rtol=1e-6, atol=1e-6)
    with pytest.raises(SolverError, match="the ODE solver failed"):
        collect_snapshots(layer, "", torch.ones(2, 2, **DOUBLE))


def test_max_snapshots_must_be_positive():
    with pytest.raises(ValueError, match="expected max_snapshots to be at least 1, got 0"):
        collect_snapshots(euler(), "", data(), max_snapshots=0)


def test_progress_is_quiet_in_a_pipe(capsys):
    collect_snapshots(euler(), "", data(), progress=True)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    snapshots = collect_snapshots(euler(), "", data(), progress=True)
    assert "snapshots" in capsys.readouterr().err
    assert len(snapshots) == 100
