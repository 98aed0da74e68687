"""`explain()` tells of the layer as it is: what was measured before a change is gone, and that is said."""

import copy

import pytest
import torch

from networks import dense
from torchmor.adapters import load, reduce_network, save

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small():
    return reduce_network(dense(), "ode", X, state_dim=3, points=4)


def gone(explanation):
    return not explanation.errors and all(part.error is None and part.constant is None for part in explanation.parts)


def train(small):
    optimiser = torch.optim.SGD(small.ode.parameters(), lr=1e-6)
    small(X).square().sum().backward()
    optimiser.step()


def load_others(small):
    small.load_state_dict(reduce_network(dense(), "ode", X[:40], state_dim=3, points=4).state_dict())


@pytest.mark.parametrize("change", [train, load_others, lambda small: small.half()])
def test_changed_parameters(small, change, tmp_path):
    before = small.ode.explain()
    assert before.errors
    assert not before.since
    change(small)
    now = small.ode.explain()
    assert gone(now)
    assert "its parameters were changed: not measured since" in str(now)
    assert "held-out calibration data: not measured" in str(now)
    assert [part.reduced for part in now.parts] == [part.reduced for part in before.parts]
    save(small.ode, tmp_path / "layer.safetensors")
    assert load(tmp_path / "layer.safetensors").explain() == now


def test_changed_solver(small):
    before = small.ode.explain()
    small.ode.method = "euler"
    now = small.ode.explain()
    assert not now.errors
    assert [part.error for part in now.parts] == [part.error for part in before.parts]
    assert f"its solver was {before.solver}: not measured since" in str(now)
    assert now.solver == str(small.ode.settings)
    small.ode.method = before.solver.partition("method='")[2].partition("'")[0]
    assert small.ode.explain() == before


def test_what_changes_no_value_changes_nothing(small, tmp_path):
    before = small.ode.explain()
    save(small, tmp_path / "small.safetensors")
    for same in (copy.deepcopy(small), small.double(), load(tmp_path / "small.safetensors", network=dense())):
        assert same.ode.explain() == before


def test_search_that_tried_something_without_a_solution_is_saved(small, tmp_path):
    """JSON has no infinity."""
    explanation = small.ode.explain()
    trial = explanation.curve and explanation.curve[0]
    assert not trial
    searched = reduce_network(dense(20), "ode", X, max_loss=0.5, solver=("euler", 1))
    layer = searched.ode
    curve = layer.explanation.curve
    assert curve
    broken = copy.copy(curve[-1])
    object.__setattr__(broken, "loss", float("inf"))
    object.__setattr__(layer.explanation, "curve", (*curve[:-1], broken))
    save(layer, tmp_path / "layer.safetensors")
    assert load(tmp_path / "layer.safetensors").explain().curve == layer.explanation.curve
