"""From a trained network to a small one, through every public function, on three kinds of networks."""

import numpy as np
import pytest
import torch
from pymor.reductors.basic import InstationaryRBReductor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from networks import Parts, Rate, Tanh, chain
from torchmor.adapters import (
    ODELayer,
    collect_snapshots,
    export_operators,
    full_order_model,
    load,
    reduce_network,
    save,
    to_module,
)

pytestmark = pytest.mark.slow

CLASSIC = {"basis": "pod", "selection": "deim", "fit": "interpolation"}


def clusters(samples: int, *shape: int, spread=0.4) -> tuple[Tensor, Tensor]:
    """Noisy samples of three random patterns, and the number of the pattern."""
    patterns = torch.randn(3, *shape)
    labels = torch.arange(samples) % 3
    return patterns[labels] + spread * torch.randn(samples, *shape), labels


def dense():
    network = chain(stem=nn.Linear(20, 64), ode=ODELayer(Tanh(64)), head=nn.Linear(64, 3))
    return network, (lambda n: clusters(n, 20)), {"state_dim": 8, "points": 16}


def convolutional():
    f = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4))
    body = chain(ode=ODELayer(f, method="rk4", options={"step_size": 0.5}), drop=nn.Dropout(0.1))
    network = chain(stem=stem, body=body, head=nn.Sequential(nn.Flatten(), nn.Linear(144, 3)))
    return network, (lambda n: clusters(n, 1, 12, 12)), {"energy_rtol": 0.2, **CLASSIC}


def recurrent():
    """The input drives a network at rest."""
    times = tuple(np.linspace(0, 1, 6))
    ode = ODELayer(Rate(48, 4), method="euler", options={"step_size": 0.05}, input_times=times)
    network = Parts(lambda self, u: self.head(self.ode(u.new_zeros(len(u), 48), u)), ode=ode, head=nn.Linear(48, 3))
    return network, (lambda n: clusters(n, 6, 4)), {"state_dim": 8, "points": 16, "selection": "qdeim"}


def train(network, data, epochs, lr=3e-3):
    optimiser = torch.optim.Adam(network.parameters(), lr)
    network.train()
    for _ in range(epochs):
        for x, labels in data:
            optimiser.zero_grad()
            F.cross_entropy(network(x), labels).backward()
            optimiser.step()
    return network.eval()


def accuracy(network, data) -> float:
    with torch.no_grad():
        return float(torch.cat([network(x).argmax(1) == labels for x, labels in data]).float().mean())


@pytest.mark.parametrize("make", [dense, convolutional, recurrent])
def test_whole_path(make, tmp_path):
    network, sample, sizes = make()
    x, labels = sample(480)
    data = DataLoader(TensorDataset(x[:320], labels[:320]), batch_size=32)
    test = DataLoader(TensorDataset(x[320:], labels[320:]), batch_size=50)
    train(network, data, epochs=4)
    full = accuracy(network, test)
    assert full > 0.9

    name = "body.ode" if make is convolutional else "ode"
    small = reduce_network(network, name, data, batch_to_inputs=lambda batch: batch[0], **sizes)
    layer = small.get_submodule(name)
    explanation = layer.explain()
    assert accuracy(small, test) > full - 0.1
    assert explanation.errors["layer output"] < 0.3
    assert all(part.reduced < part.full for part in explanation.parts)
    assert explanation.operations[1] < explanation.operations[0] / 2

    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", network=make()[0]).eval()
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    export_operators(layer, tmp_path / "operators.mat")

    train(again, data, epochs=1, lr=1e-3)
    assert accuracy(again, test) >= accuracy(small, test) - 0.02
    assert accuracy(network, test) == full, "the network is what it was"


def test_the_same_by_hand_for_pymor_users():
    """The layer's model reduced by pyMOR's reductor, and turned into a module, is our layer without points."""
    network, sample, _ = dense()
    network.double()
    network.ode.method = "rk4"
    x, _ = sample(100)
    x = x.double()
    snapshots = collect_snapshots(network, "ode", x)
    y0 = network.stem(x).detach()
    fom = full_order_model(network.ode, y0)
    basis, _ = np.linalg.qr(np.linalg.svd(snapshots.y, full_matrices=False)[0][:, :6])
    RB = fom.solution_space.from_numpy(basis)
    reductor = InstationaryRBReductor(fom, RB)
    rom = reductor.reduce()
    solution = reductor.reconstruct(rom.solve({"initial_state": y0[0].numpy()}))
    f = to_module(rom.operator)
    z = y0[:1] @ torch.from_numpy(basis)
    by_hand = ODELayer(lambda t, z: -f(z), method="rk4")(z) @ torch.from_numpy(basis).T
    np.testing.assert_allclose(by_hand[0].detach(), solution.to_numpy()[:, -1], rtol=1e-12, atol=1e-13)
