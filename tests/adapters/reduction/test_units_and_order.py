"""No units of stages or of the state, and no order of the samples, change a reduction with defaults."""

import copy

import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer, reduce_network

X = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class TwoStages(nn.Module):
    """y' = C relu(A y) + D (tanh(B y) · E y): relu and products have units."""

    def __init__(self, n=14):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(n, n) for _ in range(5))

    def forward(self, t, y):
        return self.c(torch.relu(self.a(y))) + self.d(torch.tanh(self.b(y)) * self.e(y))


def network():
    torch.manual_seed(0)
    ode = ODELayer(TwoStages(), method="rk4", t=(0.0, 0.5, 1.0))
    return nn.Sequential(nn.Linear(5, 14), ode, nn.Linear(14, 3)).double()


def scale_relu(net, units):
    """Other sizes of a stage, or of each of its units."""
    f = net[1].func
    f.a.weight *= units[:, None]
    f.a.bias *= units
    f.c.weight /= units


def scale_product(net, units):
    """Of a factor that is no function of anything: its argument has the size too."""
    f = net[1].func
    f.e.weight *= units[:, None]
    f.e.bias *= units
    f.d.weight /= units


def scale_state(net, units):
    """The conjugated network, y → c y."""
    f, factor = net[1].func, units[0]
    for before in (f.a, f.b, f.e, net[2]):
        before.weight /= factor
    for after in (f.c, f.d, net[0]):
        after.weight *= factor
        after.bias *= factor


def units(kind):
    if kind == "each":
        return 10.0 ** (6 * torch.rand(14, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 3)
    return torch.full((14,), kind, dtype=torch.float64)


@pytest.fixture(scope="module")
def usual():
    return reduced(network(), X)


def reduced(net, data):
    return reduce_network(net, "1", data, state_dim=6, points=8, progress=False)


@pytest.mark.parametrize(
    ("scale", "kind"),
    [(scale_relu, 1e3), (scale_relu, "each"), (scale_product, 1e-3), (scale_state, 1e3), (scale_state, 1e-3)],
)
def test_units_change_nothing(usual, scale, kind):
    net = network()
    with torch.no_grad():
        scale(net, units(kind))
        torch.testing.assert_close(net(X), network()(X), rtol=1e-9, atol=1e-12)
        small = reduced(net, X)
        assert {name: points.tolist() for name, points in small[1].points.items()} == {
            name: points.tolist() for name, points in usual[1].points.items()
        }
        assert (small(X) - usual(X)).norm() <= 1e-6 * usual(X).norm()
    for one, other in zip(small[1].explain().parts, usual[1].explain().parts, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-3)


def test_order_of_samples_hardly_changes_errors():
    """Class-sorted, reversed, in random order: every kind of sample is held out."""
    net, kinds = network(), torch.arange(1200) // 300
    data = torch.randn(1200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    data = data * 0.5 + torch.tensor([0.0, 1.0, -1.0, 2.0])[kinds, None]
    orders = torch.arange(1200), torch.arange(1199, -1, -1), torch.randperm(1200, generator=torch.Generator())
    found = [reduced(copy.deepcopy(net), data[order])[1].explain() for order in orders]
    for errors in (
        [one.errors["network output"] for one in found],
        [one.errors["layer output"] for one in found],
        *zip(*([part.error for part in one.parts] for one in found), strict=True),
    ):
        assert max(errors) < 1.2 * min(errors)
