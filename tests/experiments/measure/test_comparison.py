"""Candidates are measured alike, and rows keep what was measured."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fake_results import make_row, timing
from torchmor.adapters import ODELayer
from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.networks.timing import Timing
from torchmor.adapters.solving.steps import Steps
from torchmor.experiments.data.labelled import DataSet, Labelled
from torchmor.experiments.measure import comparison
from torchmor.experiments.measure.comparison import (
    BATCHES,
    Candidate,
    Measurement,
    Row,
    evaluations,
    layer_arguments,
    on_one_yardstick,
    size_words,
    solved_by,
)
from torchmor.experiments.measure.contradictions import MOST_MEASUREMENTS


def with_yardstick(wall_s, yardstick_s, **changes):
    times = {batch: replace(timing(wall_s), yardstick_s=yardstick_s) for batch in (1, 256)}
    return make_row("full", {"n": 3}, "dopri5", 90.0, layer=times, network=times, **changes)


def test_times_on_one_yardstick():
    """A row that was timed while all took twice as long gets half of its times; ratios to the yardstick stay."""
    calm, slow, other = with_yardstick(1.0, 0.1), with_yardstick(1.0, 0.2), with_yardstick(3.0, 0.1)
    scaled = on_one_yardstick([calm, slow, other])
    for part in ("layer", "network"):
        for batch in (1, 256):
            times = [getattr(row, part)[batch] for row in scaled]
            assert [time.wall_s for time in times] == pytest.approx([1.0, 0.5, 3.0])
            assert [time.low_s for time in times] == pytest.approx([0.97, 0.485, 2.91])
            assert {time.yardstick_s for time in times} == {0.1}
    assert [replace(row, layer={}, network={}) for row in scaled] == [replace(calm, layer={}, network={})] * 3


@pytest.mark.parametrize(
    "row",
    [
        make_row("pod-deim", {"r": 4, "m": 8}, "1 midpoint step", 90.125, 1e-3),
        make_row("skipped", {}, "none", 10.0),
    ],
)
def test_rows_survive_json(row):
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_words_of_rows():
    row = make_row("pod-deim", {"r": 1600, "m": 32}, "1 midpoint step", 90)
    assert (row.size, row.name, row.ours) == ("r 1,600, m 32", "POD–DEIM, 1 midpoint step", True)
    row = make_row("skipped", {}, "none", 90)
    assert (row.size, row.name, row.ours) == ("", "ODE layer skipped", False)
    assert size_words({"rank": 8}) == "rank 8"


def network():
    torch.manual_seed(0)
    small = nn.Sequential()
    small.add_module("stem", nn.Linear(3, 4))
    small.add_module("ode", ODELayer(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), method="rk4"))
    small.add_module("head", nn.Linear(4, 2))
    return small


def data():
    inputs = torch.randn(40, 3)
    part = Labelled(inputs, (inputs[:, 0] > 0).long())
    return DataSet("made up", part, part, part)


def test_measured_rows():
    full = network()
    measurement = Measurement(full, "ode", data(), repeats=3)
    rows = [
        measurement.row(Candidate("full", {"n": 4}, full)),
        measurement.row(Candidate("full", {"n": 4}, full, Steps("euler", 2))),
        measurement.row(Candidate("skipped", {}, with_layers(full, {"ode": nn.Identity()})), timed=False),
    ]
    assert [row.solver for row in rows] == ["1 RK4 step", "2 Euler steps", "none"]
    assert [row.own_solver for row in rows] == [True, False, False]
    assert [row.evaluations for row in rows] == [4, 2, 0]
    assert [row.parameters for row in rows] == [20, 20, 0]
    assert (rows[0].agreement, rows[0].difference_interval) == (100.0, (0.0, 0.0))
    assert rows[2].layer == rows[2].network == {}
    for row in rows[:2]:
        assert set(row.layer) == set(row.network) == set(BATCHES)
        for time in (*row.layer.values(), *row.network.values()):
            assert isinstance(time, Timing)
            assert 0 < time.low_s <= time.wall_s <= time.high_s
            assert (time.repeats, time.threads) == (3, 1)
            assert time.yardstick_s > 0
    assert full.ode.method == "rk4", "the network itself keeps its solver"


def test_layer_arguments_and_evaluations():
    full, inputs = network(), torch.randn(5, 3)
    (state,) = layer_arguments(full, "ode", inputs)
    assert torch.equal(state, full.stem(inputs))
    assert evaluations(solved_by(full, "ode", Steps("midpoint", 3)), "ode", inputs) == 6
    assert solved_by(full, "ode", None) is full


def clock(monkeypatch, layer_s, network_s, without_s):
    """Time by a script: each measurement takes the next of these numbers, the last ones again and again."""
    scripts = {"layer": list(layer_s), "network": list(network_s), "without": list(without_s)}
    seen = []

    def next_of(name):
        return timing(scripts[name].pop(0) if len(scripts[name]) > 1 else scripts[name][0])

    def compare(calls, **_):
        part = "network" if "without" in calls else "layer"
        seen.append(part)
        found = {"candidate": next_of(part), "yardstick": timing(1e-3)}
        return found | ({"without": next_of("without")} if "without" in calls else {})

    monkeypatch.setattr(comparison, "BATCHES", (1,))
    monkeypatch.setattr(comparison, "compare_times", compare)
    return seen


def measured():
    net = network()
    return Measurement(net, "ode", data(), repeats=1).row(Candidate("full", {"n": 4}, net))


@pytest.mark.parametrize("times", [([3.0, 1.0], [1.0, 2.0], [0.5]), ([1.0], [2.0], [3.0, 0.5])])
def test_impossible_times_are_measured_again(monkeypatch, times):
    seen = clock(monkeypatch, *times)
    row = measured()
    assert seen == ["layer", "network"] * 2
    assert row.impossible == ()
    assert (row.layer[1].wall_s, row.network[1].wall_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (([3.0], [1.0], [0.5]), "at batch 1 the whole network takes less time than its ODE layer"),
        (([1.0], [2.0], [3.0]), "at batch 1 the whole network takes less time than the network without it"),
    ],
)
def test_times_that_stay_impossible_are_marked(monkeypatch, times, words):
    seen = clock(monkeypatch, *times)
    row = measured()
    assert len(seen) == 2 * MOST_MEASUREMENTS
    assert row.impossible == (words,)
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_noise_is_not_impossible(monkeypatch):
    clock(monkeypatch, [1.05], [1.0], [1.05])
    assert measured().impossible == ()


def test_rows_that_contradict_the_one_without_the_layer_are_marked():
    """On one yardstick: also rows that were measured at other times."""
    skipped = make_row("skipped", {}, "none", 30.0, 1e-6, network_s=2e-3)
    fine = make_row("full", {"n": 4}, "dopri5", 90.0, 1e-3, network_s=3e-3)
    broken = make_row("fitted", {"r": 4, "m": 4}, "dopri5", 90.0, 1e-3, network_s=1.5e-3)
    found = on_one_yardstick([fine, broken, skipped])
    assert [bool(row.impossible) for row in found] == [False, True, False]
    assert "at batch 256 the whole network takes less time than the network without it" in found[1].impossible
    assert on_one_yardstick(found) == found
