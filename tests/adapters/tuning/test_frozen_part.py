"""What comes before reduced layers is computed once for each batch, and the results stay the same."""

import warnings

import pytest
import torch
from torch import nn

from networks import NETWORKS, Parts, Tanh
from torchmor.adapters import ODELayer, reduce_network
from torchmor.adapters.layers.placing import copied
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.tuning import frozen_part as module
from torchmor.adapters.tuning.frozen_part import Memory, remembered
from torchmor.engine.errors import LittleGainWarning, SolverError

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))


def batches(data=X):
    return list(Calibration(data, 20))


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def counting(forward=lambda self, x: self.head(self.ode(self.stem(x)))):
    """A reduced network whose stem and head count their calls."""
    torch.manual_seed(0)
    network = Parts(forward, stem=Counted(5, 10), ode=ODELayer(Tanh(10), method="midpoint"), head=Counted(10, 3))
    small = reduce_network(network, "ode", X, state_dim=4, points=5, batched=(True,))
    small.stem.calls = small.head.calls = 0
    return small


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_stay_the_same(name):
    entry = NETWORKS[name]
    small = entry.network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LittleGainWarning)
        small = reduce_network(small, entry.layer, entry.batch(), **entry.sizes)
    layers = [layer for layer in small.modules() if isinstance(layer, ReducedODELayer)]
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad and p.numel()]
    small.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    data = batches(entry.batch())

    def results(call):
        found = []
        for batch in data:
            output = call(batch)
            found += [output.detach(), *torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)]
        return found

    expected = results(lambda batch: call_network(small, batch))
    with remembered(small, layers, data[0]) as outputs:
        for found in (results(outputs), results(outputs)):
            for one, other in zip(found, expected, strict=True):
                assert one is other is None or torch.equal(one, other)
    assert all("forward" not in vars(part) for part in small.modules()), "the network is as it was"


def test_once_for_each_batch():
    small, data = counting(), batches()
    with remembered(small, [small.ode], data[0]) as outputs, torch.no_grad():
        looked = small.stem.calls, small.head.calls
        for _ in range(4):
            for batch in data:
                outputs(batch)
    assert small.stem.calls - looked[0] == len(data)
    assert small.head.calls - looked[1] == 4 * len(data)


def test_only_what_there_is_memory_for(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 45 * 10 * 4)  # two batches of 20 of float32
    small, data = counting(), batches()
    with remembered(small, [small.ode], data[0]) as outputs, torch.no_grad():
        looked = small.stem.calls
        for _ in range(4):
            for batch in data:
                outputs(batch)
    assert small.stem.calls - looked == 2 + 4


def test_copies_share_what_they_remember():
    """Those with other weights before the layer do not."""
    small, data, memory = counting(), batches(), Memory()
    for other, calls in ((small, 3), (copied(small), 0), (counting(), 0), (copied(small).requires_grad_(False), 3)):
        other.stem.calls = 0
        if calls and other is not small:
            other.stem.weight.mul_(2.0)
        with remembered(other, [other.ode], data[0], memory) as outputs, torch.no_grad():
            looked = other.stem.calls
            found = [outputs(batch) for batch in data]
            assert other.stem.calls - looked == calls
        for batch, value in zip(data, found, strict=True):
            torch.testing.assert_close(value, call_network(other, batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.head(self.ode(self.stem(x).mul_(2.0))),
        lambda self, x: self.head(self.ode(self.stem(x)) + self.stem(x.flip(0))),
    ],
    ids=["changed in place", "called twice"],
)
def test_what_is_no_constant_of_the_batch_is_computed_every_time(forward):
    small, data = counting(forward), batches()
    with torch.no_grad():
        expected = [call_network(small, batch) for batch in data]
        with remembered(small, [small.ode], data[0]) as outputs:
            for _ in range(3):
                for batch, value in zip(data, expected, strict=True):
                    torch.testing.assert_close(outputs(batch), value, rtol=0, atol=0)


def test_other_calls_are_computed_as_usual():
    """Of the network itself, meanwhile: what was remembered of the last batch is none of theirs."""
    small, data = counting(), batches()
    with torch.no_grad():
        expected = small(X.flip(0))
        with remembered(small, [small.ode], data[0]) as outputs:
            outputs(data[0])
            torch.testing.assert_close(small(X.flip(0)), expected, rtol=0, atol=0)


def test_a_solve_that_fails_is_an_error_of_its_call(monkeypatch):
    """Not of looking at the network: distillation goes on from such an error."""

    def fails(*_):
        raise SolverError("the solver gave up")

    small, data = counting(), batches()
    monkeypatch.setattr(small.ode, "forward", fails)
    with remembered(small, [small.ode], data[0]) as outputs:
        for _ in range(2):
            with pytest.raises(SolverError, match="gave up"):
                outputs(data[0])
    assert small.stem.calls == 2, "to look at it, and once for the batch"


def test_the_network_is_restored_after_an_error():
    small, data = counting(), batches()
    with pytest.raises(KeyError), remembered(small, [small.ode], data[0]):
        raise KeyError
    assert "forward" not in vars(small.stem)
