"""What an explanation says: the network first, absent findings left out, as text and as HTML, through JSON too."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from torchmor.engine.explanation import EqualSteps, Explanation, Part, Trial
from torchmor.engine.findings import Clock, ConfirmedLoss, TimedCall, Tuning

PARTS = (
    Part("state", "y", 3136, 32, "reduced", "balanced, chosen by the search", 0.01, error=0.1, operations=4096),
    Part("g1", "tanh(a1)", 3136, 128, "reduced", "omp, as asked", reads=("y",), error=0.1, operations=4096),
    Part("g2", "sqrt(a1)", 8, 0, "absorbed", reads=("y",), operations=0),
    Part("g3", "sin(a1)", 1, 1, "kept", "depends on the time alone", reads=("t",), operations=1),
)
CURVE = (
    Trial("full", "dopri5", 1000.0, 0.0),
    Trial("full", "1 midpoint step", 60.0, 0.01),
    Trial("state 16, points 64", "1 midpoint step", 10.0, 0.02),
    Trial("state 32, points 128", "1 midpoint step", 20.0, 0.004),
    Trial("state 32, points 128", "1 Euler step", 22.0, 0.03),
    Trial("state 512, points 512", "1 Euler step", float("inf"), float("inf")),
)


def calls(part, batch, *seconds):
    solvers = (("reduced", "1 midpoint step"), ("full", "dopri5"), ("full", "1 midpoint step"))
    return [TimedCall(*one, part, batch, s) for one, s in zip(solvers, seconds, strict=False)]


PLAIN = Explanation(
    PARTS,
    method={"basis": "balanced", "selection": "omp", "fit": "least_squares"},
    solver="t=(0.0, 1.0), method='midpoint', options={'step_size': 1.0}",
    snapshots=6000,
    samples=240,
    evaluations=14,
    operations=(194688, 128),
    errors={"layer output": 0.034, "network output": 0.012},
    metric="agreement",
    state_shape=(64, 7, 7),
)
FULL = replace(
    PLAIN,
    curve=CURVE,
    chosen=CURVE[3],
    steps=EqualSteps("rk4", 2, 0.0003),
    confirmed=ConfirmedLoss(0.0042, 0.0081, 0.95, 400),
    tuning=Tuning(0.034, 0.0021, 0.002, 10, 16000, 35.2, "2 midpoint steps", "mix", 1e-3),
    clock=Clock(
        (
            *calls("layer", 1, 1e-4, 4.1e-4, 1.3e-4),
            *calls("layer", 256, 1e-3, 125e-3, 3.1e-3),
            *calls("network", 1, 2e-4, 5e-4, 2.4e-4),
            *calls("network", 256, 2e-3, 24e-3, 4e-3),
        ),
        threads=2,
        device="cpu",
    ),
    singular_values={"state": (3.0, 1.0, 0.1)},
    points={"g1": (0, 50, 3000)},
)


def lines(explanation):
    return dict(line.split(": ", 1) for line in str(explanation).split("\n\n")[0].splitlines())


def test_the_network_comes_first():
    text = str(FULL)
    assert text.splitlines()[0] == (
        "loss (agreement): 0.42 %, with 95 % confidence at most 0.81 %, on 400 samples that nothing was chosen by"
    )
    assert lines(FULL)["relative error on held-out calibration data"] == "network output 1.2 %, layer output 3.4 %"
    headings = ["loss (agreement)", "relative error", "speed of the layer", "speed of the network", "tuning", "sizes"]
    places = [text.index(f"\n{heading}") if heading != headings[0] else 0 for heading in headings]
    assert places == sorted(places) and places[-1] < text.index("\ndetails\n") < text.index("\npart ")


def test_speed_is_told_for_every_batch_and_solver():
    found = lines(FULL)
    assert found["speed of the layer (cpu, 2 threads)"] == (
        "125 times as fast as the full layer with its own solver (dopri5), 3.1 times as with 1 midpoint step, "
        "batch 256; batch 1: 4.1 and 1.3 times"
    )
    assert found["speed of the network (cpu, 2 threads)"] == (
        "12 times as fast as the full network with its own solver (dopri5), 2 times as with 1 midpoint step, "
        "batch 256; batch 1: 2.5 and 1.2 times"
    )


def test_speed_beside_a_single_solver():
    clock = Clock(tuple(calls("layer", 8, 1e-3, 4e-3)), threads=1, device="cuda")
    assert lines(replace(FULL, clock=clock))["speed of the layer (cuda, 1 thread)"] == (
        "4 times as fast as the full layer with its own solver (dopri5), batch 8"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "10 epochs of 16,000 samples, mixtures among them, in 35 s, by the full layer with 2 midpoint steps"),
        ({"augment": "none"}, "10 epochs of 16,000 samples, in 35 s, by"),
        ({"augment": "a function", "epochs": 1}, "1 epoch of 16,000 samples, those of a function among them, in 35 s"),
        ({"trained": 0.0003}, "more calibration data would help: on what was trained on it is 0.0003"),
    ],
)
def test_tuning(changes, words):
    text = lines(replace(FULL, tuning=replace(FULL.tuning, **changes)))["tuning"]
    assert text.startswith("its loss fell from 0.034 to 0.0021 on data that was")
    assert words in text and ("would help" in text) is ("trained" in changes)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("relative", "0.42 %, with 95 % confidence at most 0.81 %, on"),
        ("accuracy", "0.42 points, with 95 % confidence at most 0.81 points, on"),
        ("a function", "0.0042, with 95 % confidence at most 0.0081, on"),
    ],
)
def test_losses_have_the_unit_of_their_metric(metric, words):
    assert lines(replace(FULL, metric=metric))[f"loss ({metric})"].startswith(words)


def test_a_loss_without_a_bound():
    text = lines(replace(FULL, confirmed=ConfirmedLoss(0.25, None, 0.95, 1)))["loss (agreement)"]
    assert text == "25 %, on 1 sample that nothing was chosen by"


def test_a_loss_that_was_chosen_by_is_called_so():
    searched = replace(FULL, confirmed=None)
    assert lines(searched)["loss (agreement)"] == "0.4 % on the data that it was chosen by"
    assert "loss (agreement)" not in lines(replace(searched, since="its parameters were changed"))


def test_what_was_not_found_out_is_left_out():
    assert list(lines(PLAIN)) == ["relative error on held-out calibration data", "sizes"]
    assert lines(replace(PLAIN, errors={}))["relative error on held-out calibration data"] == "not measured"
    assert "search: " not in str(PLAIN) and "equal steps" not in str(PLAIN)


def test_sizes_in_one_line():
    assert lines(PLAIN)["sizes"] == "state 3,136 -> 32, g1 3,136 -> 128, 1 stage absorbed, 1 stage kept"
    assert lines(FULL)["sizes"].endswith(", with 1 midpoint step"), "the solver that the search chose"
    kept = replace(PLAIN, parts=(replace(PARTS[0], fate="kept", reduced=3136), *[PARTS[1]] * 9))
    assert lines(kept)["sizes"] == ", ".join(["state 3,136 kept", *["g1 3,136 -> 128"] * 6, "and 3 more"])


def test_details():
    text = str(FULL)
    for words in (
        "method: basis balanced, selection omp, fit least_squares",
        "2 equal steps of rk4 do the same within its tolerances (relative difference 0.0003)",
        "calibration: 6,000 snapshots of 240 samples, 14 evaluations of the ODE function in a forward pass",
        "one evaluation of the ODE function: 194,688 -> 128 multiply-adds for each sample (1,521 times fewer)",
        "search: 6 networks tried on validation data; those that no other beats:",
        "kept: depends on the time alone",
    ):
        assert text.index(words) > text.index("\ndetails\n")
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "state 32, points 128, 1 midpoint step 50 0.004 chosen" in rows
    assert sum("chosen" in row.split()[-1:] for row in rows) == 1


def test_changes_are_told_at_the_top():
    changed = FULL.as_of("others", FULL.solver)
    assert changed == FULL, "a file without a checksum is believed"
    changed = replace(FULL, fingerprint="some").as_of("others", "t=(0.0, 1.0), method='rk4'")
    assert "its parameters were changed and its solver was" in lines(changed)["since the reduction"]
    assert not [label for label in lines(changed) if label.startswith(("loss", "speed"))]
    assert changed.loss is changed.bound is None and changed.points == FULL.points


def test_loss_and_bound():
    assert (FULL.loss, FULL.bound) == (0.0042, 0.0081)
    assert PLAIN.loss is PLAIN.bound is None


@pytest.mark.parametrize("explanation", [PLAIN, FULL])
def test_json_keeps_everything(explanation):
    again = Explanation.from_json(json.loads(json.dumps(explanation.to_json(), allow_nan=False)))
    assert again == explanation and str(again) == str(explanation)


def test_json_of_earlier_and_later_versions():
    data = FULL.to_json()
    for name in ("singular_values", "points", "state_shape", "confirmed", "tuning", "clock"):
        del data[name]
    old = Explanation.from_json(data | {"of a later version": 1})
    assert (old.singular_values, old.points, old.state_shape, old.clock) == ({}, {}, (), None)


@pytest.mark.parametrize("explanation", [PLAIN, FULL])
def test_html_says_what_the_text_says(explanation):
    root = ElementTree.fromstring(explanation._repr_html_())
    words = " ".join("".join(root.itertext()).split())
    (hidden,) = root.iter("details")
    assert root.tag == "div" and "color" not in explanation._repr_html_(), "that of the page, dark or light"
    for label, text in lines(explanation).items():
        cells = [cell.text for row in root.iter("tr") for cell in row]
        assert label in cells and text in cells
        assert text not in [cell.text for cell in hidden.iter("td")]
    assert "tanh(a1)" in words and ("networks tried" in words) is bool(explanation.curve)


def test_html_is_escaped():
    bad = "<script>alert('&')</script>"
    names = {"method": {bad: bad}, "solver": bad, "metric": bad, "errors": {bad: 0.1}, "since": bad}
    part = replace(PARTS[0], name=bad, what=bad[:30], how=bad, reads=(bad,))
    trial = replace(CURVE[0], sizes=bad, solver=bad)
    tuning = replace(FULL.tuning, teacher=bad)
    clock = Clock(tuple(replace(call, solver=bad) for call in calls("layer", 1, 1.0, 2.0)), 1, bad)
    html = replace(
        FULL, **names, parts=(part, part), curve=(trial,), chosen=trial, tuning=tuning, clock=clock
    )._repr_html_()
    assert "<script" not in html and html.count("&lt;script&gt;") >= 10
    ElementTree.fromstring(html)
