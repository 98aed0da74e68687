"""What no ODELayer can do in the place of a module, or nobody can reduce: refused, with the reason and what to do."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchdiffeq import odeint, odeint_event

from foreign_networks import FOREIGN, DrivenBlock, Field
from networks import Parts, chain, dense
from torchmor.adapters import ODELayer, collect_snapshots, find_ode_layers, reduce_network
from torchmor.engine.errors import InputError, NotReducedWarning, UnknownLayerError, UnsupportedOperationError

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
X = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SIZES = {"state_dim": 4, "points": 5}


def network(forward, **parts):
    block = Parts(forward, **({"func": Field(8)} | parts))
    return chain(stem=nn.Linear(8, 8), block=block, head=nn.Linear(8, 3)).double()


def euler(func, y, t=T):
    return odeint(func, y, t, method="euler")[-1]


# -- what a module does around its solve ------------------------------------------------------------------------------


def with_density(self, y):
    class Flow(nn.Module):
        def forward(_, t, state):
            with torch.enable_grad():
                y = state[0].detach().requires_grad_()
                value = self.func(t, y)
                trace = sum(torch.autograd.grad(value[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(8))
            return value.detach(), -trace

    return odeint(Flow(), (y, y.new_zeros(len(y))), T, method="euler")[0][-1]


def with_event(self, y):
    ends = {"event_fn": lambda t, y: t - 0.5}
    return odeint_event(self.func, y, T[0], **ends, method="euler", options={"step_size": 0.25})[1][-1]


AROUND = {
    "event": (with_event, r"stops at an event \(event_fn\) in the module 'block'.*keep the events outside"),
    "normalising flow": (
        with_density,
        r"a state that is one Tensor, got a tuple of 2.*continuous normalising flows.*divergence of f.*samples alone",
    ),
    "random numbers": (
        lambda self, x: euler(lambda t, y: self.func(t, y) + torch.randn(8).double(), x),
        r"'block', repeated outside.*differs by up to .*random numbers",
    ),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_a_module_does_around_its_solve(case):
    forward, text = AROUND[case]
    whole = network(forward)
    with pytest.raises(UnsupportedOperationError, match=text):
        reduce_network(whole, "block", X, **SIZES)
    (found,) = find_ode_layers(whole, X)
    assert not found.reducible
    assert found.name == "block" and found.obstacle in str(found) and re.search(text, found.obstacle)
    with pytest.raises(UnsupportedOperationError, match=text):
        collect_snapshots(whole, "block", X)


def test_neural_cde():
    torchcde = pytest.importorskip("torchcde", reason="needs torchcde, it is not installed")

    class Matrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8 * 3)

        def forward(self, t, z):
            return torch.tanh(self.linear(z)).view(-1, 8, 3)

    def forward(self, coefficients):
        path = torchcde.CubicSpline(coefficients)
        z0 = self.initial(path.evaluate(path.interval[0]))
        return self.head(torchcde.cdeint(X=path, func=self.func, z0=z0, t=path.interval, method="midpoint")[:, -1])

    whole = Parts(forward, initial=nn.Linear(3, 8), func=Matrix(), head=nn.Linear(8, 2)).double()
    data = torchcde.natural_cubic_coeffs(torch.randn(16, 5, 3, dtype=torch.float64))
    with pytest.raises(UnsupportedOperationError, match=r"that of torchcde in the network itself.*u = dX/dt.*ODELayer"):
        reduce_network(whole, "", data, **SIZES)

    class AsAdvised(nn.Module):
        def __init__(self):
            super().__init__()
            self.initial, self.head = whole.initial, whole.head
            self.ode = ODELayer(
                lambda t, y, u: (whole.func(t, y) @ u[..., None])[..., 0], (0.0, 4.0), method="midpoint"
            )

        def forward(self, coefficients):
            path = torchcde.CubicSpline(coefficients)
            return self.head(self.ode(self.initial(path.evaluate(path.interval[0])), path.derivative))

    assert torch.equal(AsAdvised()(data), whole(data)), "the advice does the same"


def test_name_of_a_module_that_does_not_solve():
    whole = Parts(lambda self, x: self.head(euler(self.func, self.stem(x))), stem=nn.Linear(8, 8), func=Field(8))
    whole.head = nn.Linear(8, 3)
    with pytest.raises(UnknownLayerError, match=r"got 'head', a Linear: the modules that solve one are ''"):
        reduce_network(whole.double(), "head", X, **SIZES)


def test_name_of_another_module():
    whole = chain(body=chain(block=network(lambda self, x: euler(self.func, x)).block), head=nn.Linear(8, 3)).double()
    for name in ("body", "body.block.func", "head"):
        with pytest.raises(UnknownLayerError, match=r"the modules that solve one are 'body\.block'"):
            reduce_network(whole, name, X, **SIZES)
    with pytest.raises(UnknownLayerError, match=r"did you mean 'body\.block'.*find_ode_layers\(network, \*example\)"):
        reduce_network(whole, "body.blok", X, **SIZES)


def test_reduced_already():
    entry = FOREIGN["augmented"]
    small = reduce_network(entry.network(), "block", entry.batches(), **entry.sizes)
    for name in ("block", "block.layer"):
        with pytest.raises(UnknownLayerError, match="reduced already"):
            reduce_network(small, name, entry.batches(), **SIZES)
    assert find_ode_layers(small, *entry.batch()) == []
    assert "no module solves an ODE" in str(find_ode_layers(small, *entry.batch()))


def test_replaced_module_is_called_as_on_the_calibration_data():
    entry = FOREIGN["augmented"]
    small = reduce_network(entry.network(), "block", entry.batches(), **entry.sizes)
    x = torch.randn(3, 7, dtype=torch.float64)
    assert torch.equal(small.block(x), small.block(x=x, eval_times=None))
    with pytest.raises(
        InputError, match=r"expected eval_times=None, as on the calibration data.*got eval_times=tensor"
    ):
        small.block(x, T)
    for arguments in ((), (x, None, 1), (None,)):
        with pytest.raises(InputError, match="expected the arguments x of the module that was replaced"):
            small.block(*arguments)


# -- inputs that are attributes ---------------------------------------------------------------------------------------


def driven(u):
    class Func(Field):
        def forward(self, t, y):
            return super().forward(t, y) + self.u.mean()

    block = DrivenBlock(Func(8))
    return Parts(lambda self, x: self.block(x, u(x)), block=block).double()


@pytest.mark.parametrize(
    ("u", "path", "text"),
    [
        (lambda x: x[:3], "func.u", r"with batch = 20.*got shape \(3, 8\)"),
        (lambda x: x, "func.v", r"path from 'block' to an attribute.*got 'func\.v'.*no attribute 'v'"),
        (lambda x: x, "fun.u", r"path from 'block' to an attribute.*got 'fun\.u'.*no attribute 'fun'"),
        (lambda x: x, "func.nfe", r"a Tensor \(batch, p\) or a callable of t, got int"),
    ],
)
def test_input_attribute_of_a_wrong_form(u, path, text):
    with pytest.raises(InputError, match=text):
        reduce_network(driven(u), "block", X, **SIZES, input_attribute=path)


def test_input_attribute_of_an_ode_layer():
    with pytest.raises(InputError, match=r"no input_attribute for 'ode', which is an ODELayer.*f\(t, y, u\)"):
        reduce_network(dense().double(), "ode", X[:, :5], **SIZES, input_attribute="func.u")


def test_surrounding_code_sets_the_input_as_before():
    """Law: the attribute and its setter work on the reduced network, for other values than the calibration's."""
    for name in ("input by a setter", "input as a callable", "input as an argument"):
        entry = FOREIGN[name]
        whole = entry.network()
        sizes = {"state_dim": "full", "points": "full"}
        with pytest.warns(NotReducedWarning):
            small = reduce_network(whole, "block", entry.batches(), **sizes, input_attribute="func.u")
        x = 3 * torch.randn(4, 5, dtype=torch.float64)
        torch.testing.assert_close(small(x), whole(x), rtol=0, atol=1e-7)
        assert not torch.equal(small(x), small(x.roll(1, 1)))
        assert sum(p.numel() for p in small.block.parameters()) == sum(
            p.numel() for p in small.block.layer.parameters()
        )


# -- what nobody can reduce -------------------------------------------------------------------------------------------


class Function(nn.Module):
    """An ODE function f(self, y) with some parts."""

    def __init__(self, f):
        super().__init__()
        self.f, self.a, self.b = f, nn.Linear(8, 8), nn.Linear(8, 8)
        self.energy = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 1))
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

    def forward(self, t, y):
        return self.f(self, y)


def hamiltonian(self, y):
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        q, p = torch.autograd.grad(self.energy(y).sum(), y)[0].chunk(2, 1)
    return torch.cat([p, -q], 1)


def attention(self, y):
    tokens = y.reshape(-1, 2, 4)
    return self.attention(tokens, tokens, tokens, need_weights=False)[0].reshape(-1, 8)


def graph(self, y):
    source, target = self.edges
    return torch.tanh(torch.zeros_like(y).index_add(0, target, self.a(y)[source]))


def graph_scatter(self, y):
    source, target = self.edges
    return torch.tanh(torch.zeros_like(y).scatter_add(0, target[:, None].expand(-1, 8), self.a(y[source])))


REFUSED = {
    "Hamiltonian": (hamiltonian, "differentiates inside itself at .*a Hamiltonian's in closed form"),
    "attention": (attention, "attention couples all components"),
    "graph": (graph, r"looks at other samples.*graph convolutions.*\(batch, nodes, features\)"),
    "graph by scatter": (graph_scatter, r"looks at other samples.*graph convolutions"),
    "branch": (lambda self, y: self.a(y) if y.mean() > 0 else self.b(y), r"branches on.*use torch\.where"),
    "loop": (lambda self, y: y * int(y.abs().max()), r"reads as a Python number"),
    "dropout in training": (
        lambda self, y: F.dropout(self.a(y), 0.3, training=True),
        r"differs by up to .*random numbers \(dropout that stays on",
    ),
    "batch statistics": (
        lambda self, y: F.batch_norm(y, None, None, training=True),
        r"statistics of the batch.*running statistics and eval\(\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_functions_that_nobody_can_reduce(case):
    f, text = REFUSED[case]
    whole = network(lambda self, x: euler(self.func, x), func=Function(f))
    with pytest.raises(UnsupportedOperationError, match=text):
        reduce_network(whole, "block", X, **SIZES)
    (found,) = find_ode_layers(whole, X)
    assert re.search(text, found.obstacle)


def test_dropout_in_training_mode_is_off():
    """The network runs in eval mode: dropout modules are no obstacle, in whatever mode it comes."""
    func = Parts(lambda self, t, y: torch.tanh(self.a(self.drop(y))), a=nn.Linear(8, 8), drop=nn.Dropout(0.5))
    whole = network(lambda self, x: euler(self.func, x), func=func).train()
    small = reduce_network(whole, "block", X, state_dim=8, points=6)
    assert small.training and whole.training
    layer = ODELayer(func, method="euler").double().train()
    reduce_network(layer, "", X, **SIZES)
