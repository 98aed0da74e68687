"""Reduced networks are timed beside the full one, on what the networks give to their layers."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from foreign_networks import FOREIGN
from networks import NETWORKS, Parts, Tanh, chain
from torchmor.adapters import NetworkReductor, ODELayer, reduce_network
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.timing import Timing
from torchmor.adapters.reduction import clock
from torchmor.adapters.reduction.advice import LEAST_GAIN, pays
from torchmor.adapters.reduction.clock import FEWEST, clocked
from torchmor.adapters.solving.steps import COARSE, Steps, solved_by
from torchmor.engine.findings import Clock, TimedCall

DENSE = NETWORKS["dense"]
EULER = Steps("euler", 1)


def batch_of(*arguments, batched=None):
    return Batch(arguments, np.arange(len(arguments[0]) if batched is None or any(batched) else 1), 0, batched)


def rows(measured):
    return [(call.network, call.solver, call.part, call.batch) for call in measured.calls]


@pytest.mark.real_clock
def test_times_are_of_all_networks_parts_and_batches():
    """Law: the networks are as they were, and so are the random states."""
    network = chain(stem=nn.Linear(5, 10), norm=nn.BatchNorm1d(10), ode=ODELayer(Tanh(10)), drop=nn.Dropout()).double()
    (x,) = DENSE.batch(30)
    small = reduce_network(network, "ode", x, state_dim=4, points=5, solver=("midpoint", 1)).train()
    before = torch.get_rng_state(), random.getstate(), {key: one.clone() for key, one in network.state_dict().items()}
    found = clocked(network.train(), small, "ode", batch_of(x), EULER, budget_s=0.0)
    solvers = [("reduced", "1 midpoint step"), ("full", "dopri5"), ("full", "1 Euler step")]
    assert rows(found) == [(*who, part, size) for size in (1, 30) for part in ("layer", "network") for who in solvers]
    assert all(call.seconds > 0 for call in found.calls)
    assert (found.threads, found.device, found.batches) == (torch.get_num_threads(), "cpu", [1, 30])
    assert list(found.gains("layer", 30)) == ["dopri5", "1 Euler step"]
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(torch.equal(one, before[2][key]) for key, one in network.state_dict().items())
    assert network.ode.method == "dopri5" and all(
        module.training for one in (network, small) for module in one.modules()
    )


@pytest.mark.parametrize("entry", [*NETWORKS.values(), *FOREIGN.values()], ids=[*NETWORKS, *FOREIGN])
def test_layers_are_called_as_their_networks_call_them(entry, monkeypatch):
    """Law: the timed call of the layer alone has the layer return what it returns in the timed call of the network."""
    network, arguments = entry.network(), entry.batch(6)
    reductor = NetworkReductor(
        network, entry.layer, [arguments, entry.batch(6, 1)], input_attribute=getattr(entry, "input_attribute", None)
    )
    small, full = reductor.reduce(**entry.sizes), reductor.network
    layers = {"reduced": small.get_submodule(reductor.name), "full": full.get_submodule(reductor.name)}
    outputs: dict = {}

    def times(calls, **_):
        for who, call in calls.items():
            found = []
            with layers[who[0]].register_forward_hook(lambda *called, found=found: found.append(called[-1])):
                call()
            outputs.setdefault(who, []).append(found)
        return {who: Timing(1.0, 1.0, 1.0, 1, 1) for who in calls}

    monkeypatch.setattr(clock, "compare_times", times)
    clocked(full, small, reductor.name, next(iter(reductor._calibration)), None, 0.0)
    assert len(outputs) == 2
    for found in outputs.values():
        for alone, whole in zip(found[::2], found[1::2], strict=True):
            assert len(alone) == len(whole) > 0
            assert all(torch.equal(one, other) for one, other in zip(alone, whole, strict=True))


def test_where_one_sample_does_not_do():
    def forward(self, x):
        return self.head(self.ode(self.stem(x).unflatten(0, (2, -1)).flatten(0, 1)))

    parts = {"stem": nn.Linear(5, 10), "ode": ODELayer(Tanh(10), method="rk4"), "head": nn.Linear(10, 3)}
    network, (x,) = Parts(forward, **parts).double(), DENSE.batch(30)
    small = reduce_network(network, "ode", list(x.split(6)), state_dim=4, points=5, batched=(False,))
    assert clocked(network, small, "ode", batch_of(x), None, 0.0).batches == [30]
    whole = clocked(network, small, "ode", batch_of(x, batched=(False,)), None, 0.0)
    assert whole.batches == [1] and len(whole.calls) == 4, "a batch that stays whole is one sample"


def test_steps_that_are_the_layers_own_are_timed_once():
    network, (x,) = DENSE.network(), DENSE.batch(20)
    small = reduce_network(network, "ode", x, **DENSE.sizes)
    found = clocked(network, small, "ode", batch_of(x), Steps("rk4", 1), 0.0)
    assert rows(found)[:2] == [("reduced", "1 RK4 step", "layer", 1), ("full", "1 RK4 step", "layer", 1)]
    assert len(found.calls) == 8


def test_each_quarter_has_its_share_of_the_budget(monkeypatch):
    asked = []

    def times(calls, **settings):
        asked.append(settings)
        return {who: Timing(1.0, 1.0, 1.0, 1, 1) for who in calls}

    monkeypatch.setattr(clock, "compare_times", times)
    network, (x,) = DENSE.network(), DENSE.batch(20)
    small = reduce_network(network, "ode", x, **DENSE.sizes)
    asked.clear()
    clocked(network, small, "ode", batch_of(x), None, 2.0, seed=3)
    assert [(one["budget_s"], one["fewest"], one["seed"]) for one in asked] == [(0.5, FEWEST, 3)] * 4


def made(*gains):
    """Return times of a layer whose full versions take so many times as long, for each batch."""
    calls = []
    for i, of_batch in enumerate(gains):
        calls.append(TimedCall("reduced", "euler", "layer", i + 1, 1.0))
        calls += [TimedCall("full", str(j), "layer", i + 1, gain) for j, gain in enumerate(of_batch)]
    return Clock(tuple(calls), 1, "cpu")


def test_pays_if_it_is_faster_than_every_full_solver_at_one_batch():
    enough, less = LEAST_GAIN, LEAST_GAIN - 0.01
    assert pays(made([enough]))
    assert not pays(made([less]))
    assert pays(made([less, 9], [enough, enough]))
    assert not pays(made([less, 9], [9, less])), "another solver at each"
    assert pays(made()), "nothing is known"


def test_gains_are_known_where_both_were_timed():
    found = made([3.0], [])
    assert found.gains("layer", 1) == {"0": 3.0}
    assert found.gains("layer", 2) == found.gains("network", 1) == {}


# -- in an explanation ------------------------------------------------------------------------------------------------


def adequate(explanation):
    """The coarse steps that stand beside a reduced network."""
    return [call.solver for call in explanation.clock.calls if call.network == "full"][1:2]


def test_given_sizes_stand_beside_steps_that_are_as_exact():
    network, (x,) = DENSE.network(), DENSE.batch(100)
    network.ode.method = "dopri5"
    reductor = NetworkReductor(network, "ode", x)
    material = reductor._with(chosen=False)
    errors = {str(s): material.held_out.errors(solved_by(network, "ode", s))["network output"] for s in COARSE}
    seen = set()
    for sizes in ((1, 2), (4, 5), (8, 10)):
        small = reductor.reduce(state_dim=sizes[0], points=sizes[1])
        explanation = small.ode.explain()
        error = explanation.errors["network output"]
        enough = [s for s in sorted(COARSE, key=lambda s: material.full_trial(s).cost) if errors[str(s)] <= error]
        assert adequate(explanation) == [str(s) for s in enough[:1]]
        assert explanation.clock.batches == [1, 100], "the whole batch of the calibration data"
        seen.update(adequate(explanation))
    assert len(seen) > 1


def test_searched_sizes_stand_beside_the_cheapest_steps_within_the_loss():
    x = torch.randn(100, 8, dtype=torch.float64)
    network = chain(stem=nn.Linear(8, 80), ode=ODELayer(Tanh(80)), head=nn.Linear(80, 3)).double()
    explanation = reduce_network(network, "ode", x, max_loss=0.2).ode.explain()
    enough = [one for one in explanation.curve[1:] if one.sizes == "full" and one.loss <= 0.2]
    assert adequate(explanation) == [min(enough, key=lambda one: one.cost).solver]
