"""States outside the calibration data: distance, warning, callback."""

import copy
import warnings

import pytest
import torch

from networks import dense
from torchmor.adapters import load, reduce_network, save
from torchmor.engine.errors import NoRecordError, OutsideCalibrationWarning

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
