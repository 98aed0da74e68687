"""Distillation: it helps, never hurts, touches the reduced layers only, and needs no labels."""

import pytest
import torch
from torch import nn

from networks import NETWORKS, dense
from torchmor.adapters import ODELayer, distill, reduce_network
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.reduction.distillation import _balance_scales
from torchmor.engine.errors import CalibrationError, UnknownLayerError

CLASSIC = {"basis": "pod", "selection": "deim", "fit": "interpolation"}
X = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))


def error(small, network, x=X):
    with torch.no_grad():
        return float((small(x) - network(x)).norm() / network(x).norm())


def divergence(small, network, x=X):
    with torch.no_grad():
        p, q = network(x).log_softmax(1), small(x).log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("method", ["midpoint", "dopri5"])
def test_values(method):
    network = dense(method=method)
    small = reduce_network(network, "ode", X, state_dim=3, points=4, **CLASSIC)
    tuned = distill(network, small, X, epochs=20)
    assert error(tuned, network) < 0.75 * error(small, network)


def test_classes():
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=2, points=3, metric="agreement")
    tuned = distill(network, small, X, epochs=20)
    assert divergence(tuned, network) < 0.7 * divergence(small, network)
    values = distill(network, small, X, epochs=20, classes=False)
    assert error(values, network) < error(tuned, network)


def test_only_reduced_layers_change():
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=3, points=4)
    for part in (small.head, small.ode.decode):
        part.requires_grad_(False)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    tuned = distill(network, small, X, epochs=2).train()
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items()), "the input is unharmed"
    for key, value in tuned.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("ode."), key
    assert [p.requires_grad for p in tuned.parameters()] == [p.requires_grad for p in small.parameters()]


@pytest.mark.parametrize("learning_rate", [1.0, 1e3])
def test_never_worse_on_the_validation_data(learning_rate):
    """Law; with a rate that destroys everything the layer comes back as it was."""
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=8, points=9)
    validation = torch.randn(100, 5)
    tuned = distill(network, small, X, validation=validation, epochs=3, learning_rate=learning_rate)
    assert error(tuned, network, validation) <= error(small, network, validation) * (1 + 1e-6)


def test_same_seed_gives_the_same_bits():
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=3, points=4)
    first, second = (distill(network, small, X, epochs=2, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = distill(network, small, X, epochs=2, seed=2).state_dict()
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in NETWORKS.items()])
def test_catalogue(entry):
    """Inputs, trajectories, several calls: on every network the held-out loss does not grow, and the layer is whole."""
    network, arguments = entry.network(), entry.batch(60)
    small = reduce_network(network, entry.layer, arguments, **entry.sizes)
    validation = entry.batch(30, seed=1)
    tuned = distill(network, small, arguments, validation=validation, epochs=2)
    with torch.no_grad():
        before, after, expected = (net(*validation) for net in (small, tuned, network))
    assert after.shape == before.shape
    assert (after - expected).norm() <= (before - expected).norm() * (1 + 1e-6)
    assert tuned.get_submodule(entry.layer).explain() == small.get_submodule(entry.layer).explain()


def test_scaled_coordinates_are_the_same_layer():
    network = dense(method="rk4").double()
    x = X.double()
    small = reduce_network(network, "ode", x, state_dim=4, points=5)
    expected = small(x).detach()
    (batch,) = Calibration(x, batch_size=300)
    before = small.ode.encode.weight.detach().clone()
    _balance_scales(small, small.ode, batch)
    torch.testing.assert_close(small(x).detach(), expected, rtol=0, atol=1e-12)
    assert not torch.equal(small.ode.encode.weight, before)
    deviations = small.ode.encode(small.stem(x)).std(0)
    assert deviations.max() < 4 * deviations.min()


def test_refusals():
    network = dense()
    with pytest.raises(UnknownLayerError, match="got one without a reduced layer"):
        distill(network, network, X)
    small = reduce_network(network, "ode", X, state_dim=3, points=4)
    with pytest.raises(CalibrationError, match="one-shot iterator"):
        distill(network, small, iter([X]))


def test_layer_alone():
    layer = ODELayer(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), method="midpoint")
    y0 = torch.randn(200, 8)
    small = reduce_network(layer, "", y0, state_dim=3, points=4, **CLASSIC)
    assert error(distill(layer, small, y0, epochs=10), layer, y0) < error(small, layer, y0)


@pytest.mark.gpu
def test_search_and_distillation_on_a_gpu():
    network, x = dense(method="midpoint").cuda(), X.cuda()
    small = reduce_network(network, "ode", x, max_loss=0.2)
    small.ode.on_outside = "warn"
    assert error(small, network, x) < 0.2
    tuned = distill(network, small, x, epochs=2)
    assert all(tensor.is_cuda for tensor in tuned.state_dict().values())
    assert error(tuned, network, x) <= error(small, network, x) * 1.05
