"""Baselines: pruned, truncated and peer-pruned networks are what they say, and the network stays as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer
from torchmor.adapters.solving.steps import Steps, set_solver
from torchmor.engine.errors import SizeError, UnsupportedOperationError
from torchmor.experiments.architectures.recurrent_ode import RecurrentFunction, RecurrentOde
from torchmor.experiments.baselines import prune_neurons, prune_structure, truncate_weights
from torchmor.experiments.baselines.svd import low_rank

AFFINE = {
    "linear": (lambda: nn.Linear(8, 8), (8,)),
    "linear, no bias": (lambda: nn.Linear(8, 8, bias=False), (8,)),
    "convolution": (lambda: nn.Conv2d(8, 8, 3, padding=1), (8, 4, 5)),
    "circular": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", bias=False), (8, 4, 5)),
    "dilated in one dimension": (lambda: nn.Conv1d(8, 8, 3, padding=2, dilation=2), (8, 9)),
}


def layer_of(affine="linear", activation=None, **settings):
    torch.manual_seed(1)
    make, shape = AFFINE[affine]
    settings = {"method": "rk4", "options": {"step_size": 0.25}, **settings}
    layer = ODELayer(nn.Sequential(make(), activation or nn.Tanh()), **settings).double()
    return layer, torch.randn(12, *shape, dtype=torch.float64)


def recurrent(leak=True, units=10):
    torch.manual_seed(2)
    return RecurrentOde(3, 6, units, 4, leak).double(), torch.randn(9, 6, 3, dtype=torch.float64)


class Masked(nn.Module):
    """An ODE function with some derivatives set to zero: what pruning is defined by."""

    def __init__(self, func, kept, neurons):
        super().__init__()
        self.func = func
        self.mask = torch.zeros(neurons, dtype=torch.float64)
        self.mask[kept] = 1

    def forward(self, t, y, u=None):
        change = self.func(y) if u is None else self.func(t, y, u)
        return change * self.mask.view(1, -1, *[1] * (y.ndim - 2))


def masked(layer, kept):
    reference = ODELayer(Masked(layer.func, kept, layer.func[0].weight.shape[0]))
    reference.settings = layer.settings
    return reference


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# -- neuron pruning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("varying", [True, False], ids=["start differs", "same start"])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()], ids=["tanh", "relu"])
@pytest.mark.parametrize("affine", AFFINE)
def test_pruned_layer_is_the_full_one_with_masked_derivatives(affine, activation, varying):
    """Law: a pruned derivative is zero, so its state stays y(0)."""
    layer, y = layer_of(affine, activation, output="trajectory", t=(0.0, 0.5, 1.0))
    y = y if varying else y[:1].expand_as(y).contiguous()
    for small, count in zip(prune_neurons(layer, "", y, kept=(8, 5, 1)), (8, 5, 1), strict=True):
        close(small(y), masked(layer, small.kept)(y))
        assert small.func.affine.weight.shape[0] == small.func.affine.weight.shape[1] == count
        assert (small.rest is not None) == (varying and count < 8), "a shared start is folded, another is passed"
        close(small(y[:1]), small(y)[:, :1])
        assert small(y[:0]).shape == (3, 0, *y.shape[1:])
        close(copy.deepcopy(small)(y), small(y), 0)


def test_adaptive_solver_within_its_tolerance():
    layer, y = layer_of("convolution", method="dopri5", options=None, rtol=1e-8, atol=1e-8)
    (small,) = prune_neurons(layer, "", y, kept=(4,))
    close(small(y), masked(layer, small.kept)(y), 1e-6)


@pytest.mark.parametrize("leak", [True, False])
def test_pruned_recurrent_network(leak):
    network, u = recurrent(leak)
    (small,) = prune_neurons(network, "ode", u, kept=(4,))
    reference = copy.deepcopy(network)
    reference.ode = ODELayer(Masked(network.ode.func, small.ode.kept, 10))
    reference.ode.settings = network.ode.settings
    close(small(u), reference(u))
    assert small.ode.rest is None, "all start from zero"
    assert small.ode.func.input.weight.shape == (4, 3)


@pytest.mark.parametrize(("activation", "silent"), [(nn.ReLU(), 0.0), (nn.Tanh(), 1e-3)])
def test_silent_neurons_go_first(activation, silent):
    """The score is the share of activations that are zero (ReLU), or at most 1 % of the largest."""
    layer, y = layer_of("linear", activation)
    with torch.no_grad():
        layer.func[0].weight.mul_(0.01)
        layer.func[0].bias.copy_(
            torch.tensor([silent or -5.0, 1.0, 2.0, silent or -3.0, 0.5, 1.5, silent or -9.0, 3.0])
        )
        if silent:
            layer.func[0].weight[[0, 3, 6]] = 0
    (small,) = prune_neurons(layer, "", y, kept=(5,))
    assert small.kept.tolist() == [1, 2, 4, 5, 7]


def test_activations_of_exactly_one_percent_are_silent():
    layer, y = layer_of("linear", nn.Hardtanh(), t=(0.0, 1.0), method="euler", options=None)
    with torch.no_grad():
        layer.func[0].weight.zero_()
        layer.func[0].bias.copy_(torch.tensor([1.0, 0.01, 0.0101, 0.5, 0.6, 0.7, 0.8, 0.9]))
    (small,) = prune_neurons(layer, "", y, kept=(7,))
    assert small.kept.tolist() == [0, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "func",
    [
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)),
        nn.Sequential(nn.Tanh(), nn.Linear(8, 8)),
        nn.Sequential(nn.Conv1d(8, 8, 1, groups=2), nn.Tanh()),
    ],
    ids=["deep", "activation first", "groups"],
)
def test_other_functions_are_refused(func):
    layer = ODELayer(func, method="euler")
    with pytest.raises(
        UnsupportedOperationError, match=r"expected an ODE function nn.Sequential\(affine, activation\)"
    ):
        prune_neurons(layer, "", torch.randn(4, 8), kept=(2,))


# -- SVD truncation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_low_rank_is_the_truncated_svd(shape):
    """Law: the squared error of rank s is the sum of the dropped σ², for all s up to the rank asked for."""
    matrix = np.random.default_rng(0).standard_normal(shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    left, right = low_rank(matrix, 4)
    for rank in range(1, 5):
        error = np.linalg.norm(matrix - left[:, :rank] @ right[:rank]) ** 2
        assert error == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-10)


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("dense", [False, True])
def test_truncated_weight_is_the_truncated_matrix(affine, dense):
    layer, y = layer_of(affine)
    most = int(y[0].numel())
    *small, whole = truncate_weights(layer, "", (1, 2, most), dense=dense, example=y[:2])
    close(whole(y), layer(y), 1e-10)
    basis = torch.eye(most, dtype=torch.float64).unflatten(1, y.shape[1:])

    def matrix(func):
        return (func[0](basis) - func[0](torch.zeros_like(basis))).flatten(1).T.detach().numpy()

    full = matrix(layer.func)
    for rank, truncated in zip((1, 2), small, strict=True):
        found = matrix(truncated.func)
        if dense or affine.startswith("linear"):
            values = np.linalg.svd(full, compute_uv=False)
            assert np.linalg.norm(full - found) ** 2 == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-9)
            assert np.linalg.matrix_rank(found) == rank
        else:
            kernel = layer.func[0].weight.flatten(1).detach().numpy()
            first, second = truncated.func[0]
            product = second.weight.flatten(1).detach().numpy() @ first.weight.flatten(1).detach().numpy()
            dropped = np.linalg.svd(kernel, compute_uv=False)[rank:]
            assert np.linalg.norm(kernel - product) ** 2 == pytest.approx(np.sum(dropped**2), rel=1e-9)
            assert (first.weight.shape[0], second.weight.shape[1]) == (rank, rank)
        truncated(y).sum().backward()
        assert all(parameter.grad is not None for parameter in truncated.parameters())


def test_weights_where_two_would_not_be_cheaper_are_kept():
    layer, y = layer_of("linear")
    four, three = truncate_weights(layer, "", (4, 3))
    assert isinstance(four.func[0], nn.Linear) and torch.equal(four(y), layer(y))
    assert isinstance(three.func[0], nn.Sequential)


def test_only_the_weights_that_are_named():
    network, _ = recurrent()
    (small,) = truncate_weights(network, "ode", (1,), weights=("recurrent",))
    assert isinstance(small.ode.func.input, nn.Linear) and isinstance(small.ode.func.recurrent, nn.Sequential)
    (all_of_them,) = truncate_weights(network, "ode", (1,))
    assert isinstance(all_of_them.ode.func.input, nn.Sequential)
    with pytest.raises(UnsupportedOperationError, match=r"named recurent"):
        truncate_weights(network, "ode", (1,), weights=("recurent",))


def test_function_without_weights_is_refused():
    with pytest.raises(UnsupportedOperationError, match=r"with linear layers or convolutions.*write its weights as"):
        truncate_weights(ODELayer(nn.Tanh()), "", (1,))


# -- Torch-Pruning --------------------------------------------------------------------------------------------------


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        ODELayer(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()), method="rk4"),
        nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 5)),
    )


def test_peer_prunes_the_whole_convolutional_network():
    network, x = convolutional(), torch.randn(7, 1, 6, 6)
    whole, half = prune_structure(network, "1", x[:2], kept=(8, 4))
    close(whole(x), network(x), 1e-6)
    assert half(x).shape == (7, 5)
    assert half[1].func[0].weight.shape[:2] == (4, 4)
    assert half[0].weight.shape[0] == half[2][0].weight.shape[1] == 4
    assert half[2][0].weight.shape[0] == 6
    assert half[1].settings == network[1].settings


@pytest.mark.parametrize("leak", [True, False])
def test_peer_prunes_the_recurrent_network(leak):
    network, u = recurrent(leak)
    (half,) = prune_structure(network, "ode", u[:2], kept=(5,))
    assert half(u).shape == (9, 4)
    assert half.ode.func.recurrent.weight.shape == (5, 5)
    assert half.ode.func.input.weight.shape == (5, 3)
    assert half.head.weight.shape == (4, 5)
    units = next(
        rows
        for rows in torch.combinations(torch.arange(10), 5)
        if torch.equal(network.head.weight[:, rows], half.head.weight)
    )
    assert torch.equal(half.ode.func.recurrent.weight, network.ode.func.recurrent.weight[units][:, units])
    assert torch.equal(half.ode.func.input.weight, network.ode.func.input.weight[units])


# -- all of them ----------------------------------------------------------------------------------------------------

METHODS = {
    "pruning": lambda network, u: prune_neurons(network, "ode", u, kept=(3,)),
    "svd": lambda network, u: truncate_weights(network, "ode", ranks=(2,)),
    "torch-pruning": lambda network, u: prune_structure(network, "ode", u, kept=(3,)),
}


@pytest.mark.parametrize("method", METHODS)
def test_network_stays_as_it_was(method):
    network, u = recurrent()
    network.train()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    (small,) = METHODS[method](network, u)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training and small.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert sum(p.numel() for p in small.ode.parameters()) < sum(p.numel() for p in network.ode.parameters())
    mine = {parameter.data_ptr() for parameter in small.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in network.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_solver_can_be_changed_and_state_saved(method):
    network, u = recurrent()
    (small,) = METHODS[method](network, u)
    assert small.ode.settings == network.ode.settings
    before = small(u)
    set_solver(small.ode, Steps("midpoint", 2))
    assert (small(u) - before).abs().max() > 0.1
    again = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(small.state_dict())
    close(again(u), small(u), 0)


@pytest.mark.parametrize("method", ["pruning", "torch-pruning"])
@pytest.mark.parametrize("kept", [(), (0,), (11,)])
def test_impossible_sizes(method, kept):
    network, u = recurrent()
    function = {"pruning": prune_neurons, "torch-pruning": prune_structure}[method]
    with pytest.raises(SizeError, match=r"expected to keep 1 to 10"):
        function(network, "ode", u, kept=kept)


def test_impossible_ranks():
    network, _ = recurrent()
    with pytest.raises(SizeError, match=r"ranks of at least 1, got \(0,\)"):
        truncate_weights(network, "ode", (0,))
    with pytest.raises(SizeError, match=r"example inputs.*example=inputs\[:2\]"):
        truncate_weights(ODELayer(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh())), "", (1,), dense=True)


def test_recurrent_function():
    function = RecurrentFunction(3, 4, leak=True).double()
    y, u = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    expected = torch.tanh(y @ function.recurrent.weight.T + function.recurrent.bias) + u @ function.input.weight.T - y
    close(function(0.0, y, u), expected)
