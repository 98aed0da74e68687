"""Adaptive solvers of reduced layers: counted, bounded, told of, and replaced by steps that were tried."""

import math
import re

import pytest
import torch
from torch import nn

from networks import chain, dense
from torchmor.adapters import ODELayer, export_program, load, reduce_network, save
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.reduction import adaptive_solves, advice
from torchmor.adapters.reduction.adaptive_solves import (
    TooManyEvaluationsError,
    bounded_evaluations,
    equal_steps,
    steps_to_try,
)
from torchmor.adapters.solving.steps import Steps, solved_by
from torchmor.engine.errors import ExportError, LittleGainWarning, SolverError

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()


class Advection(nn.Module):
    """y' = A y + 0.3 A y³ upwind; its reductions to few states grow fast, and are stiff."""

    def __init__(self, n, speed):
        super().__init__()
        self.a = nn.Linear(n, n, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(speed * (torch.diag(torch.ones(n - 1), -1) - torch.eye(n)))

    def forward(self, t, y):
        return self.a(y) + 0.3 * self.a(y**3)


def advecting(speed):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ode = ODELayer(Advection(24, speed), method="dopri5", rtol=1e-3, atol=1e-3)
        return chain(stem=nn.Linear(5, 24), ode=ode, head=nn.Linear(24, 3)).double()


def calls_of(function):
    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    return function.register_forward_pre_hook(counted), lambda: count


@pytest.mark.filterwarnings("error")
def test_more_evaluations_are_told_of(monkeypatch):
    network = advecting(3.0)
    monkeypatch.setattr(advice, "NOTICED", 0.1)
    with pytest.warns(LittleGainWarning, match="evaluates its ODE function") as told:
        small = reduce_network(network, "ode", X, state_dim=10, points=10)
    (text,) = [str(one.message) for one in told]
    reduced, full = (int(number) for number in re.findall(r"(\d+) times", text))
    hook, count = calls_of(small.ode.ode)
    held_out = Calibration(X).split(0)[1]
    for batch in held_out:
        small(*batch.arguments)
    hook.remove()
    steps = small.ode.explain().steps
    assert (reduced, full) == (count(), small.ode.explain().evaluations)
    assert f"solver=({steps.method!r}, {steps.count}) does the same" in text


def test_many_more_evaluations_are_refused_with_steps_that_were_tried(monkeypatch):
    network = advecting(3.0)
    fine = reduce_network(network, "ode", X, state_dim=10, points=10)
    monkeypatch.setattr(adaptive_solves, "MOST", 0.5)
    with pytest.raises(SolverError, match=r"was stopped after .* where the full layer takes") as refused:
        reduce_network(network, "ode", X, state_dim=10, points=10)
    method, count, told = re.search(
        r"solver=\('(\w+)', (\d+)\), of relative error ([\d.e-]+)", str(refused.value)
    ).groups()
    small = reduce_network(network, "ode", X, state_dim=10, points=10, solver=(method, int(count)))
    error = small.ode.explain().errors["layer output"]
    assert float(told) == pytest.approx(error, rel=0.05)
    assert error < 1.2 * fine.ode.explain().errors["layer output"]


def test_the_search_discards_them(monkeypatch):
    monkeypatch.setattr(adaptive_solves, "MOST", 0.01)
    small = reduce_network(dense(30, method="dopri5").double(), "ode", X, max_loss=0.3)
    curve = small.ode.explain().curve
    own = [trial for trial in curve if trial.solver == "dopri5" and trial.sizes != "full"]
    assert own
    assert {(trial.cost, trial.loss) for trial in own} == {(math.inf, math.inf)}
    assert small.ode.method != "dopri5"


def test_the_bound_holds_for_each_call():
    small = reduce_network(dense(method="dopri5").double(), "ode", X, state_dim=3, points=4)
    with bounded_evaluations(small, small.ode, 1000) as counts:
        small(X)
        small(X)
    assert len(counts) == 2
    assert counts[0] == counts[1] > 1
    hook, count = calls_of(small.ode.ode)
    with bounded_evaluations(small, small.ode, 1), pytest.raises(TooManyEvaluationsError):
        small(X)
    assert count() <= 11
    hook.remove()
    small(X)  # afterwards there is no bound
    small.ode.method = "euler"
    with bounded_evaluations(small, small.ode, 0) as counts:
        small(X)
    assert not counts


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_steps_that_do_the_same(tolerance, tmp_path):
    """Law: on held-out data they are within the tolerances of the adaptive solution, and no cheaper ones are."""
    network = advecting(3.0)
    network.ode.rtol = network.ode.atol = tolerance
    small = reduce_network(network, "ode", X, state_dim=10, points=10)
    steps = equal_steps(small, small.ode, Calibration(X))
    y = small.stem(X)
    with torch.no_grad():
        own = small.ode(y)

        def difference(one):
            return float((solved_by(small, "ode", one).ode(y) - own).norm())

        allowed = tolerance * (float(own.norm()) + own.numel() ** 0.5)
        order = steps_to_try(2)
        place = order.index(Steps(steps.method, steps.count))
        assert difference(order[place]) <= allowed
        assert all(not difference(one) <= allowed for one in order[:place])
        assert steps.error == pytest.approx(difference(order[place]) / float(own.norm()), rel=1e-3)
    save(small, tmp_path / "small.safetensors")
    explanation = load(tmp_path / "small.safetensors").explain()
    assert explanation == small.ode.explain()
    assert explanation.steps is not None
    assert f"{explanation.steps.count} equal steps of {explanation.steps.method} do the same" in str(explanation)


def test_export_advises_what_was_tried(tmp_path):
    network = advecting(3.0)
    small = reduce_network(network, "ode", X, state_dim=10, points=10)
    with torch.no_grad():
        own = small(X)
    with pytest.raises(ExportError, match="equal steps were tried on held-out calibration data") as refused:
        export_program(small, tmp_path / "small.pt2", X)
    advice = re.search(r"set layer\.method = (\S+); layer\.options = (\{.*?\})", str(refused.value))
    small.ode.method, small.ode.options = eval(advice[1]), eval(advice[2])  # as a reader would
    with torch.no_grad():
        assert float((small(X) - own).norm() / own.norm()) < 1e-2
    small.ode.method, small.ode.options = "dopri5", {}
    with torch.no_grad():
        small.ode.ode.output.weight.mul_(30)
    for unknown in (small, network):
        with pytest.raises(ExportError, match="it is not known how many equal steps do what it does"):
            export_program(unknown, tmp_path / "small.pt2", X)


def test_no_steps_are_named_where_none_do(monkeypatch):
    monkeypatch.setattr(adaptive_solves, "COUNTS", (1,))
    small = reduce_network(advecting(3.0), "ode", X, state_dim=4, points=4)
    assert small.ode.explain().steps is None
