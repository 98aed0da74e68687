"""One default call on every network: what is measured of what it returns, and the whole command in short."""

import dataclasses
import json
import re
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

from torchmor.adapters import ODELayer, reduce_network
from torchmor.adapters.reduction.wish import MAX_LOSSES
from torchmor.adapters.solving.steps import Steps, solved_by
from torchmor.engine.errors import NothingToReduceError
from torchmor.engine.findings import Clock, ConfirmedLoss, TimedCall, Tuning
from torchmor.experiments.cli import main
from torchmor.experiments.data.images import digits
from torchmor.experiments.data.labelled import DataSet, Labelled
from torchmor.experiments.data.sequences import load_sequences
from torchmor.experiments.measure import delivery
from torchmor.experiments.measure.coverage import fewest_held, interval
from torchmor.experiments.measure.delivery import Call, Delivery, cheapest_adequate, deliver
from torchmor.experiments.report.one_call_report import findings
from torchmor.experiments.studies import coverage, one_call
from torchmor.experiments.studies.coverage import KEY, TEST, small_call
from torchmor.experiments.studies.functions import Setting
from torchmor.experiments.studies.one_call import Subject, run_one_call, subjects

CONFIRMED = ConfirmedLoss(loss=0.01, bound=0.5, confidence=0.95, samples=60)
TUNING = Tuning(0.2, 0.1, 0.09, 12, 640, 3.0, "1 RK4 step", "mix", 1e-2)
CLOCK = Clock(
    tuple(
        TimedCall(network, solver, part, batch, seconds)
        for network, solver, seconds in (("reduced", "midpoint", 1.0), ("full", "dopri5", 7.0), ("full", "rk4", 3.0))
        for part in ("layer", "network")
        for batch in (1, 256)
    ),
    2,
    "cpu",
)


def network(data=None, setting=None):
    with torch.random.fork_rng():
        torch.manual_seed(0 if setting is None else setting.seed)
        layer = ODELayer(nn.Sequential(nn.Linear(24, 24), nn.Tanh()), method="dopri5")
        whole = nn.Sequential()
        for name, module in (("stem", nn.Linear(5, 24)), ("ode", layer), ("head", nn.Linear(24, 3))):
            whole.add_module(name, module)
    return whole.eval().requires_grad_(False)


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return Labelled(torch.randn(count, 5, generator=generator), torch.arange(count) % 3)


DATA = DataSet("random vectors", samples(80, 0), samples(40, 1), samples(60, 2))


def call(metric="relative", **options):
    validation = (DATA.validation.inputs, DATA.validation.labels) if metric == "accuracy" else DATA.validation.inputs
    options = {"metric": metric} | options
    return Call(network(), "ode", DATA.train.inputs, validation, options, DATA.validation, DATA.test)


@pytest.fixture
def calls(monkeypatch):
    """Calls of `reduce_network` in the study: they return a network of given sizes that states a bound, unless told."""
    made = []

    def reduced(full, name, calibration, **options):
        made.append(options)
        small = reduce_network(
            full,
            name,
            calibration,
            state_dim=8,
            points=12,
            solver=("midpoint", 1),
            seed=options["seed"],
            progress=False,
        )
        layer = small.get_submodule(name)
        stated = dataclasses.replace(layer.explain(), confirmed=CONFIRMED, tuning=TUNING, clock=CLOCK)
        monkeypatch.setattr(type(layer), "explain", lambda self: stated)
        return small

    monkeypatch.setattr(delivery, "reduce_network", reduced)
    return made


def fails(monkeypatch, **attributes):
    def fail(*arguments, **options):
        error = NothingToReduceError("expected more, found less")
        for name, value in attributes.items():
            setattr(error, name, value)
        raise error

    monkeypatch.setattr(delivery, "reduce_network", fail)


def test_what_is_true_of_a_reduced_network(calls):
    """Losses are those on test data, of network and layer; what is stated is kept beside them."""
    one = call()
    found = deliver("tiny", one, timing_threads=1, budget_s=0.01)
    small = delivery.reduce_network(one.network, "ode", one.calibration, seed=0)
    inputs = DATA.test.inputs
    small.requires_grad_(False)
    exact, value = one.network(inputs), small(inputs)
    assert found.loss == pytest.approx(float((value - exact).norm() / exact.norm()), rel=1e-6)
    states = one.network.stem(inputs)
    exact, value = one.network.ode(states), small.ode(states)
    assert found.layer_error == pytest.approx(float((value - exact).norm() / exact.norm()), rel=1e-6)
    assert (found.confirmed, found.tuning, found.clock) == (CONFIRMED, TUNING, CLOCK)
    assert found.held and found.bound == 0.5
    assert (found.ending, found.found) == ("reduced", "state 8, points 12, 1 midpoint step")
    assert found.max_loss == MAX_LOSSES["relative"] and found.accuracy is None
    assert calls[0] == {"metric": "relative", "validation": DATA.validation.inputs, "seed": 0, "progress": False}
    assert not dataclasses.replace(found, loss=0.6).held
    assert dataclasses.replace(found, confirmed=None).held is None


def test_times_are_those_of_layer_and_network_beside_the_full_ones(calls):
    times = deliver("tiny", call(max_loss=0.5), timing_threads=1, budget_s=0.01).times
    solvers = [(one.network, one.solver) for one in times.calls]
    assert solvers[:3] == [("reduced", "1 midpoint step"), ("full", "dopri5"), ("full", "1 Euler step")]
    assert [(one.part, one.batch) for one in times.calls[::3]] == [
        (part, batch) for batch in (1, 256) for part in ("layer", "network")
    ]
    assert all(one.seconds > 0 for one in times.calls) and times.threads == 1


def test_gains_are_those_over_both_solvers():
    found = Delivery(*["tiny", 0, "relative", 0.1, "reduced", "", 0.0, 0.0, None, None, None, CLOCK, None, 1.0, ""])
    assert found.gains("layer", 256) == (7.0, 3.0)
    alone = dataclasses.replace(CLOCK, calls=tuple(one for one in CLOCK.calls if one.solver != "rk4"))
    assert dataclasses.replace(found, times=alone).gains("network", 1) == (7.0, 7.0)
    assert dataclasses.replace(found, times=None).gains("layer", 1) is None


def test_deliveries_become_plain_data_and_back(calls):
    found = deliver("tiny", call("accuracy"), timing_threads=1, budget_s=0.01)
    assert Delivery.from_json(json.loads(json.dumps(found.to_json()))) == found
    bare = dataclasses.replace(found, confirmed=None, tuning=None, clock=None, times=None)
    assert Delivery.from_json(json.loads(json.dumps(bare.to_json()))) == bare
    assert 0 <= found.accuracy <= 100


def test_the_cheapest_adequate_steps():
    """Law: the fewest evaluations among the steps that are within the loss on the data to choose on."""
    one = call()
    for allowed, solver in ((1.0, Steps("euler", 1)), (1e-9, None)):
        asked = dataclasses.replace(one, options={"metric": "relative", "max_loss": allowed})
        found = cheapest_adequate(asked)
        assert (found is None) == (solver is None)
        if solver is not None:
            assert found.ode.settings == solved_by(one.network, "ode", solver).ode.settings
    tried = {method: solved_by(one.network, "ode", Steps(method, count)) for method, count in BOTH}
    losses = {method: one.loss(network, DATA.validation) for method, network in tried.items()}
    assert losses["midpoint"] < losses["euler"], "as many evaluations, and more exact"
    asked = dataclasses.replace(one, options={"metric": "relative", "max_loss": 1.01 * losses["euler"]})
    assert cheapest_adequate(asked).ode.settings == tried["midpoint"].ode.settings


BOTH = (("euler", 2), ("midpoint", 1))


def test_errors_are_told_with_the_network_that_they_carry(monkeypatch):
    full = network()
    best = reduce_network(full, "ode", DATA.train.inputs, state_dim=4, points=6, progress=False)
    fails(monkeypatch)
    found = deliver("tiny", call())
    assert (found.ending, found.loss, found.found, found.times) == ("nothing", None, "", None)
    assert found.said == "NothingToReduceError: expected more, found less"
    fails(monkeypatch, network=solved_by(full, "ode", Steps("euler", 2)))
    found = deliver("tiny", call(), timing_threads=1, budget_s=0.01)
    assert (found.ending, found.found) == ("steps", "the full layer, 2 Euler steps") and 0 < found.loss < 1
    assert found.gains("layer", 256)[0] > 1
    fails(monkeypatch, network=full, best=best)
    found = deliver("tiny", call())
    assert (found.ending, found.found) == ("best", "state 4, points 6, dopri5") and found.loss > 0


def run(folder, chosen, seeds=(0, 1), small=0):
    console = Console(file=StringIO(), width=120)
    found = run_one_call(chosen, seeds, small, Setting(folder, quick=True), command="a command", console=console)
    return found, console.file.getvalue()


def chosen(metric="accuracy"):
    return [Subject("tiny", "A tiny one", DATA, network, {"metric": metric, "max_loss": 0.25})]


def test_calls_that_are_done_are_not_made_again(tmp_path, calls):
    first, _ = run(tmp_path, chosen(), seeds=(0,))
    again, printed = run(tmp_path, chosen())
    assert len(calls) == 2 and again[0] == first[0] and [one.seed for one in again] == [0, 1]
    assert calls[1]["validation"][1] is DATA.validation.labels and calls[1]["max_loss"] == 0.25
    run(tmp_path, chosen("agreement"), seeds=(0,))
    assert len(calls) == 3 and (tmp_path / "results-1.jsonl").exists(), "other settings, other rows"
    assert printed.startswith("2 of 2 default calls returned a reduced network, in the median ")


def test_report_has_the_verdict_first_then_networks_and_calls(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(coverage, "STEPS", 3)
    found, printed = run(tmp_path, chosen(), small=1)
    report = (tmp_path / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", report[report.index("<body>") :])
    verdict, counted = findings(found, KEY)
    assert verdict in printed and verdict in text and text.index(verdict) < text.index("By network")
    assert "the stated bound holds for 2 of 2" in verdict
    assert "holds on fresh data in 1 of 1 runs" in counted and counted in text
    for words in (
        "tiny: A tiny one",
        "state 8",
        "7.0 / 3.0",
        "0.2 → 0.1",
        "a command",
        "Clopper",
        "what the call says",
    ):
        assert words in text
    assert "tiny: A tiny one" in printed and "1 thread" in printed


def test_verdict_counts_errors_and_broken_bounds(monkeypatch, calls):
    good = deliver("tiny", call(), timing_threads=1, budget_s=0.01)
    broken = dataclasses.replace(good, loss=0.7, seed=1)
    fails(monkeypatch)
    bad = deliver("other", call())
    verdict, errors = findings([good, broken, bad], KEY)
    assert verdict.startswith("2 of 3 default calls") and "the stated bound holds for 1 of 2" in verdict
    assert errors == "Calls that ended in an error, by network: other (1)."
    small = dataclasses.replace(bad, network=KEY)
    assert findings([small], KEY) == ["None of 1 calls on small networks stated a bound."]


def test_coverage_is_counted_exactly():
    """Law: of 60 bounds of 95 %, fewer than 53 hold in at most one of a hundred studies, fewer than 54 in more."""
    from scipy.stats import binom

    assert fewest_held(60, 0.95) == 53
    assert binom.cdf(52, 60, 0.95) <= 0.01 < binom.cdf(53, 60, 0.95)
    low, high = interval(57, 60)
    assert binom.sf(56, 60, low) == pytest.approx(0.025) and binom.cdf(57, 60, high) == pytest.approx(0.025)


@pytest.mark.parametrize("seed", range(3))
def test_small_networks_and_their_calls(monkeypatch, seed):
    """The metrics take turns, labels are given where they count, and all of it is a function of the seed."""
    monkeypatch.setattr(coverage, "STEPS", 3)
    one, again = small_call(seed), small_call(seed)
    metric = ("relative", "agreement", "accuracy")[seed]
    assert one.metric == metric and (one.validation is None) == (metric != "accuracy")
    seen = {tuple(sample.tolist()) for sample in one.calibration}
    assert len(one.test) == TEST and not any(tuple(sample.tolist()) in seen for sample in one.test.inputs[:1000])
    assert torch.equal(again.calibration, one.calibration)
    assert torch.equal(again.network.head.weight, one.network.head.weight)


def test_small_networks_learn():
    one = small_call(0)
    assert (one.network(one.test.inputs).argmax(1) == one.test.labels).double().mean() > 0.7


def test_every_network_of_the_studies_has_a_call():
    found = {one.key: one for one in subjects(digits(), load_sequences("digits"))}
    assert list(found) == "a b c d normalised latent rates controlled dense grouped".split()
    assert {key for key, one in found.items() if one.options.get("max_loss") == 0.003} == {"a", "b"}
    assert {key for key, one in found.items() if one.options["metric"] == "relative"} == {"latent"}
    assert found["normalised"].data.train.inputs.shape[2:] == (28, 28)


@pytest.mark.slow
def test_the_whole_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(one_call, "QUICK_KEYS", ("dense",))
    with pytest.raises(SystemExit) as exit_:
        main(["one-call", "--quick", "--coverage", "1", "--out", str(tmp_path)])
    assert not exit_.value.code
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()][1:]
    assert [(row["network"], row["seed"]) for row in rows] == [("dense", 0), (KEY, 0)]
    assert (tmp_path / "report.html").exists() and "dense: Perceptron" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["-1", str(2**33)])
def test_numbers_of_small_networks(tmp_path, capsys, number):
    with pytest.raises(SystemExit) as exit_:
        main(["one-call", "--coverage", number, "--out", str(tmp_path)])
    assert exit_.value.code == 2 and f"got {number}" in capsys.readouterr().err
