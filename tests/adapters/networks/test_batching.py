"""Which arguments hold a batch is told by what the network does with them, whatever their lengths."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from networks import Tanh
from torchmor.adapters import ODELayer, collect_snapshots, reduce_network
from torchmor.adapters.networks.batching import find_batched, sample_dims, with_batched
from torchmor.adapters.networks.calibration import Calibration
from torchmor.engine.errors import CalibrationError

SIZES = {"state_dim": 3, "points": 4, "progress": False}


class Sampled(nn.Module):
    """A network with states and times as arguments, in either order."""

    def __init__(self, order="xt", output="trajectory"):
        super().__init__()
        self.ode, self.order = ODELayer(Tanh(6), method="rk4", output=output), order

    def forward(self, *arguments):
        given = dict(zip(self.order, arguments, strict=True))
        y = self.ode(given["x"], t=given["t"])
        return y * given["w"][:, None] if "w" in given else y


def network(*arguments):
    torch.manual_seed(0)
    return Sampled(*arguments).double()


def x(samples=20):
    return torch.randn(samples, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(samples))


def times(count):
    return torch.linspace(0, 1, count, dtype=torch.float64)


def found(net, data, **options):
    return with_batched(Calibration(data, **options), net).batched


@pytest.mark.parametrize("count", [2, 7, 19, 20, 21, 40])
def test_times_are_no_batch_however_long(count):
    assert found(network(), (x(), times(count))) == (True, False)
    assert found(network("tx"), (times(count), x())) == (False, True)
    assert found(network(), [(x(20), times(count)), (x(count), times(count))]) == (True, False)
    assert found(network("tx"), [(times(count), x(count)), (times(count), x(20))]) == (False, True)


@pytest.mark.parametrize("values", [torch.ones(20), torch.linspace(1, 2, 20)], ids=["equal", "different"])
def test_an_argument_that_follows_the_samples(values):
    """Equal values tell nothing when they are permuted, but parts of the samples need parts of them."""
    assert found(network("xtw", "final"), [(x(), times(20), values.double())]) == (True, False, True)


def test_an_argument_that_all_samples_share():
    class Scaled(nn.Module):
        def forward(self, x, w):
            return (x * w).tanh()

    assert found(Scaled(), (x(6), torch.ones(6, dtype=torch.float64))) == (True, False), "x has six columns, too"
    assert found(Scaled(), (x(6), torch.linspace(1, 2, 6, dtype=torch.float64))) == (True, False)


def test_random_numbers_of_the_network_tell_nothing():
    class Latent(nn.Module):
        def forward(self, x, t):
            return torch.stack([(x + torch.randn_like(x)) * (one + torch.rand(len(x), 1)) for one in t.cumsum(0)])

    class Checked(Latent):
        def forward(self, x, t):
            assert (t.diff() > 0).all()
            return super().forward(x, t)

    assert found(Checked(), (x(), times(20))) == (True, False)


def test_nested_arguments():
    class Nested(nn.Module):
        def forward(self, batch):
            return batch["x"] * batch["mask"][:, None]

    data = [{"x": x(), "mask": torch.ones(20)}]
    calibration = with_batched(Calibration(data, batch_to_inputs=lambda b: (b,)), Nested())
    assert calibration.batched == (True,)
    fit, held_out = (next(iter(part)).arguments[0] for part in calibration.split())
    assert [len(one["x"]) for one in (fit, held_out)] == [len(one["mask"]) for one in (fit, held_out)] == [16, 4]


# -- what cannot be told ----------------------------------------------------------------------------------------------

TIME_MAJOR = torch.randn(10, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """Samples lie along dimension 1."""

    def __init__(self):
        super().__init__()
        self.rnn, self.ode = nn.RNN(6, 6), ODELayer(Tanh(6), method="rk4")

    def forward(self, x):
        return self.ode(self.rnn(x)[0][-1])


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.ode = ODELayer(Tanh(6), method="rk4")

    def forward(self, x):
        return self.ode(x.view(20, 6))


class Pairs(nn.Module):
    def forward(self, x, q):
        return x @ q.T


@pytest.mark.parametrize(
    ("net", "data", "text"),
    [
        (Recurrent(), [TIME_MAJOR], r"whose output is permuted .* no choice of its arguments \(\(10, 7, 6\)\)"),
        (Fixed(), [x(20)], r"any number of samples, got one that takes 20 but fails on half of them \(shape"),
        (Pairs(), [(x(20), x(21))], r"acts alike on .* one and of another \(\(True, False\) or \(False, True\)\)"),
    ],
    ids=["another dimension", "fixed number", "two of them"],
)
def test_the_way_out_is_named(net, data, text):
    with pytest.raises(CalibrationError, match=text + r".*batched=\(True, False, …\)"):
        found(net.double(), data)


@pytest.mark.parametrize(("net", "data"), [(Recurrent, TIME_MAJOR), (Fixed, x(20))])
def test_batches_that_stay_whole(net, data):
    """Law: with no argument batched, whole batches are held out, and the network sees whole ones only."""
    torch.manual_seed(0)
    net = net().double()
    batches = [data * factor for factor in torch.linspace(0.5, 1.5, 10).tolist()]
    seen = []
    net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    small = reduce_network(net, "ode", batches, **SIZES, batched=(False,))
    assert small.ode.explain().errors["network output"] < 0.5
    assert set(seen) <= {data.shape}
    assert collect_snapshots(net, "ode", batches, batched=(False,)).n_samples == 10


@pytest.mark.parametrize(
    ("data", "batched", "text"),
    [
        ((x(), times(20)), (True,), "1 values for the 2 arguments"),
        ([(x(), times(5))], (True, True), r"of one length .*batched=\(True, True\).*\(20, 6\), \(5,\)"),
        ((x(), times(5)), (True, True), r"of one length along dimension 0, got shapes \[\(20, 6\), \(5,\)\]"),
    ],
)
def test_what_is_said_must_be_so(data, batched, text):
    with pytest.raises(CalibrationError, match=text):
        list(Calibration(data, batched=batched))


# -- what follows from it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["xt", "tx"])
def test_times_as_long_as_a_batch_are_neither_split_nor_held_out(order):
    """Law: the reduction does not depend on whether the times are as many as the samples of a batch."""
    net, t = network(order), times(8)
    points = x(36)
    same, others = ([(part, t) if order == "xt" else (t, part) for part in points.split(size)] for size in (8, 9))
    layers = [reduce_network(net, "ode", data, **SIZES, basis="pod").ode for data in (same, others)]
    errors = [layer.explain().errors["network output"] for layer in layers]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    assert layers[0].explain().samples == 29


def test_the_last_batch_of_a_loader_may_be_as_long_as_the_times():
    net, t = network(), times(4)
    loader = DataLoader(TensorDataset(x(36)), batch_size=16)
    small = reduce_network(net, "ode", loader, **SIZES, batch_to_inputs=lambda b: (b[0], t))
    assert small.ode.explain().samples == 29


def test_samples_of_trajectories_are_put_together_along_their_dimension():
    """Of as many times as samples, too."""
    net = network()
    assert sample_dims(net, (x(8), times(8)), (True, False)) == [1]
    assert sample_dims(network("xt", "final"), (x(6), times(8)), (True, False)) == [0]


def test_finding_leaves_the_network_alone():
    class Counting(Sampled):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x, t):
            assert not self.training
            return super().forward(self.norm(x), t)

    torch.manual_seed(0)
    net = Counting().double().train()
    state, random = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    assert find_batched(net, [(x(), times(3))]) == (True, False)
    assert net.training and net.norm.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
