"""Gradients of the output along trajectories: against differences, every solver, objectives, refusals."""

import pytest
import torch
from torch import nn

from networks import Parts, Tanh, chain, dense
from torchmor.adapters import ODELayer
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.reduction.gradients import SEGMENTS, classes_objective, output_gradients, values_objective
from torchmor.engine.errors import UnsupportedOperationError


def gradients(network, x, objective=torch.Tensor.sum, name="ode", **options):
    return output_gradients(network, name, Calibration(x), objective, **options)


def by_hand(network, x, times):
    """Gradients of the sum of the output in the states at these times, each by a solve from there."""
    layer, found = network.ode, []
    y = network.stem(x)
    for a, b in zip(times, [*times[1:], None], strict=True):
        state = y.detach().requires_grad_()
        rest = state if b is None else layer(state, t=times[times.index(a) :])
        found.append(torch.autograd.grad(network.head(rest).sum(), state)[0])
        if b is not None:
            y = layer(y, t=(a, b))
    return torch.stack(found, dim=1).flatten(0, 1).T.numpy()  # by sample, then by time


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_gradients_at_the_steps_of_a_fixed_step_solver(method):
    """Law: a gradient at a time is that of the rest of the network, solved from there."""
    torch.manual_seed(0)
    times = (0.0, 0.25, 0.5, 0.75, 1.0)
    network = chain(stem=nn.Linear(5, 6), ode=ODELayer(Tanh(6), method=method, t=times), head=nn.Linear(6, 3)).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(gradients(network, x), by_hand(network, x, list(times)), rtol=1e-10, atol=1e-12)


def test_layer_that_is_called_again_on_what_comes_of_it():
    """Law: a gradient at a time is that of the rest of the network, later calls of the layer included."""
    network = Parts(
        lambda self, x: self.head(self.ode(torch.sin(self.jump(self.ode(self.stem(x)))))),
        stem=nn.Linear(5, 6),
        ode=ODELayer(Tanh(6), method="midpoint"),
        jump=nn.Linear(6, 6),
        head=nn.Linear(6, 3),
    ).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        first = network.stem(x)
        second = torch.sin(network.jump(network.ode(first)))
    expected = []
    for state, rest in (
        (first, lambda y: network.head(network.ode(torch.sin(network.jump(network.ode(y)))))),
        (network.ode(first), lambda y: network.head(network.ode(torch.sin(network.jump(y))))),
        (second, lambda y: network.head(network.ode(y))),
        (network.ode(second), network.head),
    ):
        state = state.detach().requires_grad_()
        expected.append(torch.autograd.grad(rest(state).sum(), state)[0])
    found = gradients(network, x)
    torch.testing.assert_close(found, torch.stack(expected, 1).flatten(0, 1).T.numpy(), rtol=1e-10, atol=1e-12)


def test_backward_in_time_with_a_step_size():
    layer = ODELayer(Tanh(6), method="midpoint", t=(1.0, 0.0), options={"step_size": 0.25})
    network = chain(stem=nn.Linear(5, 6), ode=layer, head=nn.Linear(6, 3)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = by_hand(network, x, [1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(gradients(network, x), expected, rtol=1e-10, atol=1e-12)


def test_adaptive_solver_is_stood_in_for():
    network = dense(method="dopri5", rtol=1e-9, atol=1e-9).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    found = gradients(network, x)
    assert found.shape == (10, 4 * (SEGMENTS + 1))
    times = [i / SEGMENTS for i in range(SEGMENTS + 1)]
    expected = by_hand(network, x, times)
    assert (found - expected).__abs__().max() < 2e-2 * abs(expected).max()


def test_stiff_function_takes_more_steps_of_the_stand_in():
    class Stiff(nn.Module):
        def forward(self, t, y):
            return -60 * y

    network = chain(stem=nn.Identity(), ode=ODELayer(Stiff(), rtol=1e-6, atol=1e-9, t=(0.0, 0.1)), head=nn.Identity())
    found = gradients(network.double(), torch.ones(1, 2, dtype=torch.float64))
    exact = torch.exp(-60 * (0.1 - torch.linspace(0, 0.1, SEGMENTS + 1, dtype=torch.float64)))
    torch.testing.assert_close(torch.from_numpy(found[0]), exact, rtol=0.05, atol=0)


def test_trajectory_as_output():
    """Each state is seen by the outputs from its time on."""
    times = (0.0, 0.5, 1.0)
    layer = ODELayer(lambda t, y: 0 * y, t=times, method="euler", output="trajectory")
    found = gradients(layer, torch.randn(3, 2, dtype=torch.float64), name="")
    assert sorted(found[0].tolist()) == [1.0] * 3 + [2.0] * 3 + [3.0] * 3


def test_inputs():
    network = Parts(
        lambda self, x, u: self.head(self.ode(self.stem(x), u)),
        stem=nn.Linear(5, 6),
        ode=ODELayer(lambda t, y, u: torch.tanh(y) * u.sum(1, keepdim=True), method="euler", t=(0.0, 0.5, 1.0)),
        head=nn.Linear(6, 2),
    ).double()
    x, u = torch.randn(4, 5, dtype=torch.float64), torch.zeros(4, 3, 2, dtype=torch.float64)
    found = gradients(network, (x, u))
    expected = network.head.weight.detach().sum(0).expand(12, 6).T.numpy()
    torch.testing.assert_close(found, expected.copy())


def test_covariance_of_classes_is_the_fisher_metric():
    """Law: ``diag(p) − p pᵀ + ε² I``."""
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64).expand(40_000, 3).clone().requires_grad_()
    objective = classes_objective(torch.Generator().manual_seed(0))
    (g,) = torch.autograd.grad(objective(logits), logits)
    p = logits[0].detach().softmax(0)
    expected = torch.diag(p) - torch.outer(p, p) + 0.01 * torch.eye(3)
    torch.testing.assert_close(g.T @ g / len(g), expected, rtol=0, atol=5e-3)


def test_covariance_of_values_is_the_identity():
    values = torch.zeros(40_000, 2, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(values_objective(torch.Generator().manual_seed(0))(values), values)
    torch.testing.assert_close(g.T @ g / len(g), torch.eye(2, dtype=torch.float64), rtol=0, atol=2e-2)


def test_thinning():
    network, x = dense().double(), torch.randn(20, 5, dtype=torch.float64)
    assert gradients(network, x).shape[1] > 13
    assert gradients(network, x, max_gradients=13).shape == (10, 13)


def test_network_is_left_alone():
    network = dense().train()
    before = [(p.requires_grad, p.grad) for p in network.parameters()]
    gradients(network, torch.randn(4, 5))
    assert network.training and [(p.requires_grad, p.grad) for p in network.parameters()] == before


@pytest.mark.parametrize("head", [lambda y: y.argmax(1), lambda y: {"y": y}, lambda y: (y > 0).float()])
def test_output_without_gradients(head):
    network = Parts(lambda self, x: head(self.ode(x)), ode=ODELayer(Tanh(5)))
    with pytest.raises(UnsupportedOperationError, match=r"differentiated.*objective=lambda output.*basis=\"pod\""):
        gradients(network, torch.randn(4, 5))
