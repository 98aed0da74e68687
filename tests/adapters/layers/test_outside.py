"""States outside the calibration data: distance, warning, callback."""

import contextlib
import copy
import warnings

import pytest
import torch

from networks import NETWORKS, dense
from torchmor.adapters import load, reduce_network, save
from torchmor.engine.errors import NoRecordError, OutsideCalibrationWarning, SolverError

X = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 1, 0.01, 0.01, 0]))


@pytest.fixture
def small():
    return reduce_network(dense(12), "ode", X, state_dim=4, points=6)


def test_distance_is_that_from_the_affine_space(small):
    layer, y0 = small.ode, small.stem(X).detach()
    V, W, c = layer.bases["state"], layer.bases["test"], layer.decode.bias.detach().double().numpy()
    e = y0.double().numpy() - c
    missed = e - e @ W @ V.T
    expected = (missed**2).sum(1) ** 0.5 / (e**2).sum(1) ** 0.5
    torch.testing.assert_close(layer.distance(y0).double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-5)
    inside = torch.from_numpy(c + torch.randn(3, 4).double().numpy() @ V.T).float()
    assert layer.distance(inside).max() < 1e-4
    assert not layer.distance(y0).requires_grad


def test_usual_states_pass_and_others_do_not(small):
    layer, far = small.ode, torch.randn(50, 12) * 3
    usual = small.stem(X).detach()
    assert 0 < layer.usual_distance < 1
    assert (layer.distance(usual) <= layer.usual_distance).double().mean() > 0.9
    assert (layer.distance(far) > layer.usual_distance).double().mean() > 0.8


def test_off_by_default(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.ode(torch.randn(50, 12) * 100)


def test_warning(small):
    layer = small.ode
    layer.on_outside = "warn"
    y0 = torch.randn(50, 12) * 3
    outside = int((layer.distance(y0) > layer.usual_distance).sum())
    assert outside > 0
    with pytest.warns(OutsideCalibrationWarning, match=f"^{outside} of 50 states are farther from the reduced space"):
        layer(y0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(layer.decode.bias.detach()[None])


def test_callback(small):
    seen = []
    small.ode.on_outside = seen.append
    small.ode(torch.randn(50, 12) * 3)
    assert len(seen) == 1 and seen[0].shape == (50,)
    small.ode(small.ode.decode.bias.detach()[None])
    assert len(seen) == 1


def test_threshold_is_saved_and_copied(small, tmp_path):
    small.ode.on_outside = "warn"  # a choice of the program, not of the file
    save(small, tmp_path / "small.safetensors")
    layer = load(tmp_path / "small.safetensors")
    assert layer.usual_distance == small.ode.usual_distance == copy.deepcopy(small).ode.usual_distance
    assert layer.on_outside is None


def test_impossible(small):
    small.ode.on_outside = "raise"
    with pytest.raises(ValueError, match=r"on_outside to be None, \"warn\" or a function, got 'raise'"):
        small.ode(torch.randn(2, 12))
    small.ode.on_outside, small.ode.usual_distance = "warn", None
    with pytest.raises(NoRecordError, match="without usual_distance"):
        small.ode(torch.randn(2, 12))


def test_kept_state_is_never_outside():
    small = reduce_network(dense(12), "ode", X, state_dim="full", points=6)
    assert small.ode.distance(torch.randn(3, 12)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("state_dim", [3, "full"])
def test_states_that_are_not_finite_are_told(value, state_dim):
    small = reduce_network(dense(), "ode", X, state_dim=state_dim, points=4)
    small.ode.on_outside = "warn"
    state = small.ode.decode(torch.randn(5, small.ode.ode.state_size)).detach()
    small.ode(state)
    state[2, 1] = value
    assert small.ode.distance(state).isnan().tolist() == [False, False, True, False, False]
    with pytest.warns(OutsideCalibrationWarning, match="1 of 5 states, or their inputs, contain NaN or infinity"):
        small.ode(state)
    seen = []
    small.ode.on_outside = seen.append
    small.ode(state)
    assert seen[0].isnan().tolist() == [False, False, True, False, False]


def test_inputs_that_are_not_finite_are_told():
    """Of a callable; samples that are not finite are refused anyway."""
    entry = NETWORKS["callable input"]
    layer = reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes).get_submodule(entry.layer)
    seen = []
    layer.on_outside = seen.append
    state = layer.decode(torch.zeros(4, layer.ode.state_size, dtype=torch.float64)).detach()
    u = torch.zeros(4, layer.ode.input_size, dtype=torch.float64)
    layer(state, lambda t: u)
    assert not seen
    u[1, 0] = float("nan")
    with contextlib.suppress(SolverError):
        layer(state, lambda t: u)
    assert seen[0].isnan().tolist() == [False, True, False, False]
