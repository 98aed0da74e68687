"""Distillation: it helps, never hurts, touches the reduced layers only, and needs no labels."""

import pytest
import torch
from torch import nn

from foreign_networks import FOREIGN
from networks import NETWORKS, dense
from torchmor.adapters import ODELayer, distill, reduce_network
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.tuning.training import _balance_scales
from torchmor.engine.errors import CalibrationError, NonFiniteError, NothingLearntWarning, UnknownLayerError

CLASSIC = {"basis": "pod", "selection": "deim", "fit": "interpolation"}
X = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))


def error(small, network, x=X):
    with torch.no_grad():
        return float((small(x) - network(x)).norm() / network(x).norm())


@pytest.mark.parametrize("method", ["midpoint", "dopri5"])
def test_values(method):
    network = dense(method=method)
    small = reduce_network(network, "ode", X, state_dim=3, points=4, **CLASSIC)
    tuned = distill(network, small, X, epochs=20)
    assert error(tuned, network) < 0.75 * error(small, network)


@pytest.mark.parametrize("metric", ["agreement", "relative"])
def test_the_loss_is_that_of_values_and_of_classes_where_they_count(metric):
    network = dense(method="midpoint").double()
    small = reduce_network(network, "ode", X.double(), state_dim=2, points=3, metric=metric)
    held_out = torch.randn(100, 5, dtype=torch.float64)
    tuned = distill(network, small, X.double(), validation=held_out, epochs=20)
    exact = network(held_out).detach()
    for net, found in ((small, tuned.ode.explain().tuning.before), (tuned, tuned.ode.explain().tuning.after)):
        output = net(held_out).detach()
        expected = (output - exact).square().mean() / exact.var(correction=0)
        if metric == "agreement":
            p, q = exact.softmax(1), output.softmax(1)
            expected += (p * (p / q).log()).sum(1).mean()
        assert found == pytest.approx(float(expected), rel=1e-4)  # batches count by their sizes
    assert error(tuned, network, held_out) < 0.8 * error(small, network, held_out)


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
    with pytest.warns(NothingLearntWarning, match="nothing better"):
        tuned = distill(network, small, X, validation=validation, epochs=3, learning_rate=learning_rate)
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in tuned.state_dict().items())
    assert tuned.ode.explain() == small.ode.explain()
    assert error(tuned, network, validation) <= error(small, network, validation) * (1 + 1e-6)


def test_same_seed_gives_the_same_bits():
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=3, points=4)
    first, second = (distill(network, small, X, epochs=2, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = distill(network, small, X, epochs=2, seed=2).state_dict()
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.filterwarnings("ignore::torchmor.engine.errors.NothingLearntWarning")
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
    layer, explanation = tuned.get_submodule(entry.layer), tuned.get_submodule(entry.layer).explain()
    if all(torch.equal(value, small.state_dict()[key]) for key, value in tuned.state_dict().items()):
        assert explanation == small.get_submodule(entry.layer).explain()
        return
    assert explanation.since.startswith("distilled on 60 samples")
    assert explanation.errors["network output"] == pytest.approx(float((after - expected).norm() / expected.norm()))
    assert set(explanation.errors) == {"network output", "layer output"}
    assert {part.error for part in explanation.parts} == {None}
    assert layer.usual_distance is not None


def test_scaled_coordinates_are_the_same_layer():
    network = dense(method="rk4").double()
    x = X.double()
    small = reduce_network(network, "ode", x, state_dim=4, points=5)
    expected = small(x).detach()
    (batch,) = Calibration(x, batch_size=300)
    before = small.ode.encode.weight.detach().clone()
    _balance_scales(small, small.ode, [batch])
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


def test_errors_and_distances_are_those_of_the_distilled_layer():
    network = dense(method="midpoint").double()
    x, held_out = X.double(), torch.randn(50, 5, dtype=torch.float64)
    small = reduce_network(network, "ode", x, state_dim=2, points=3)
    tuned = distill(network, small, x, validation=held_out, epochs=3)
    explanation = tuned.ode.explain()
    with torch.no_grad():
        exact, state = network.ode(network.stem(held_out)), tuned.stem(held_out)
        layer_error = float((tuned.ode(state) - exact).norm() / exact.norm())
    assert explanation.errors == {
        "layer output": pytest.approx(layer_error),
        "network output": pytest.approx(error(tuned, network, held_out)),
    }
    assert tuned.ode.usual_distance == float(tuned.ode.distance(state).max()) != small.ode.usual_distance
    assert "distilled on 300 samples" in str(explanation)
    assert explanation.method == small.ode.explain().method


@pytest.mark.parametrize("name", ["augmented", "batch first", "images"])
def test_errors_where_the_full_network_has_a_module_of_its_own(name):
    """The block around a reduced layer stands where that module was."""
    entry = FOREIGN[name]
    network, x = entry.network(), entry.batches(4)
    small = reduce_network(network, entry.layer, x, **entry.sizes, **CLASSIC)
    tuned = distill(network, small, x, validation=[entry.batch(20, seed=9)], epochs=3)
    layer = tuned.get_submodule(entry.reduced)
    with torch.no_grad():
        exact, found = (net(*entry.batch(20, seed=9)) for net in (network, tuned))
    assert set(layer.explain().errors) == {"layer output", "network output"}
    assert layer.explain().errors["network output"] == pytest.approx(float((found - exact).norm() / exact.norm()))
    assert layer.usual_distance is not None


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_of_few_rows_teach_too(batch_size):
    network = dense(method="midpoint").double()
    small = reduce_network(network, "ode", X.double(), state_dim=2, points=3, **CLASSIC)
    few, held_out = X[:30].double(), X[30:130].double()
    tuned = distill(network, small, few, validation=held_out, epochs=8, batch_size=batch_size)
    assert all(parameter.isfinite().all() for parameter in tuned.parameters())
    assert error(tuned, network, held_out) < error(small, network, held_out)


def test_one_sample_to_learn_from():
    """Its output has no variance, its reduced state no deviation."""
    network = dense(method="midpoint").double()
    x = X.double()
    small = reduce_network(network, "ode", x, state_dim=2, points=3, **CLASSIC)
    tuned = distill(network, small, x[:1], validation=x[:1], epochs=20, learning_rate=1e-3)
    assert error(tuned, network, x[:1]) < error(small, network, x[:1])
    with pytest.raises(CalibrationError, match="two samples or more"):
        distill(network, small, x[:1])


def test_steps_that_are_not_finite_are_left_out():
    """Some outputs of the student are NaN, whatever its parameters are: the others teach all the same."""

    class Faulty(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).masked_fill(x[:, :1] > 1.5, float("nan"))

    network = dense(method="midpoint").double()
    x = X.double()
    good, bad = x[x[:, 0] < 1.5], x[x[:, 0] > 1.5]
    small = Faulty(reduce_network(network, "ode", x, state_dim=2, points=3, **CLASSIC))
    tuned = distill(network, small, [*good[:64].split(8), bad], validation=good[64:], epochs=5)
    assert all(parameter.isfinite().all() for parameter in tuned.parameters())
    assert error(tuned, network, good[64:]) < error(small, network, good[64:])
    with pytest.warns(NothingLearntWarning, match=r"\d of \d steps had no finite loss or gradient"):
        back = distill(network, small, [bad], validation=good, epochs=2)
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in back.state_dict().items())


def test_masked_outputs():
    """Infinity in the full network's output is a mask, NaN is an error."""

    class Masked(nn.Module):
        def __init__(self, inner, value):
            super().__init__()
            self.ode, self.stem, self.head, self.value = inner.ode, inner.stem, inner.head, value

        def forward(self, x):
            y = self.head(self.ode(self.stem(x)))
            return y.masked_fill(torch.arange(y.shape[1]) == 0, self.value)

    network = Masked(dense(method="midpoint"), float("-inf"))
    small = reduce_network(network, "ode", X, state_dim=2, points=3, objective=lambda y: y[:, 1:].sum(), **CLASSIC)
    tuned = distill(network, small, X, epochs=4)
    assert tuned.ode.explain().since
    network.value = float("nan")
    with pytest.raises(NonFiniteError, match="got NaN in batch 0"):
        distill(network, small, X)


def test_every_training_flag_is_as_it_was():
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=3, points=4).train()
    small.stem.eval()  # a part that its owner froze
    tuned = distill(network, small, X, epochs=1)
    assert [m.training for m in tuned.modules()] == [m.training for m in small.modules()]
    assert tuned.training
    assert not tuned.stem.training


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": -1}, {"epochs": 1.5}, {"learning_rate": 0.0}, {"learning_rate": -1e-2}]
)
def test_impossible_numbers(wrong):
    network = dense(method="midpoint")
    small = reduce_network(network, "ode", X, state_dim=3, points=4)
    (name,) = wrong
    with pytest.raises(ValueError, match=f"expected {name} to be"):
        distill(network, small, X, **wrong)


@pytest.mark.gpu
def test_search_and_distillation_on_a_gpu():
    network, x = dense(method="midpoint").cuda(), X.cuda()
    small = reduce_network(network, "ode", x, max_loss=0.2)
    small.ode.on_outside = "warn"
    assert error(small, network, x) < 0.2
    tuned = distill(network, small, x, epochs=2)
    assert all(tensor.is_cuda for tensor in tuned.state_dict().values())
    assert error(tuned, network, x) <= error(small, network, x) * 1.05
