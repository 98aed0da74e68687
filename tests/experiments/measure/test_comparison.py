"""Candidates are measured alike, and rows keep what was measured."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fake_results import make_row, timing
from torchmor.adapters import ODELayer
from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.solving.steps import Steps
from torchmor.experiments.data.labelled import DataSet, Labelled
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
from torchmor.experiments.measure.timing import Timing


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
