"""What is chosen from a table, and what is said about it, whoever wins."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fake_results import make_row, plausible_rows
from torchmor.engine.explanation import Explanation
from torchmor.engine.findings import ConfirmedLoss
from torchmor.experiments.measure.comparison import best_reduced, cheapest_full
from torchmor.experiments.report.spread import Spread, best_of_methods, entries, short_list
from torchmor.experiments.report.table import milliseconds, print_table, ratio, signed
from torchmor.experiments.report.verdict import findings, gained_and_lost, ranking, to_beat, verdict, winners


def full(solver, validation, wall_s, accuracy=90.0):
    return make_row("full", {"n": 1024}, solver, accuracy, wall_s, own=solver == "dopri5", validation=validation)


def reduced(validation, wall_s, accuracy=90.0, method="pod-deim", solver="dopri5"):
    sizes = {"r": 1024, "m": 2048}
    return make_row(method, sizes, solver, accuracy, wall_s, own=solver == "dopri5", validation=validation)


def says(line, *facts):
    """Whether these stand in a line, in this order."""
    return re.search(".*".join(map(re.escape, facts)), line) is not None


FULL = full("dopri5", 95.0, 1.0, accuracy=94.0)
MIDPOINT = full("1 midpoint step", 94.8, 0.1, accuracy=93.9)
EULER = full("1 Euler step", 94.6, 0.05)  # faster, but more than 0.3 points below
SKIPPED = make_row("skipped", {}, "none", 31.0, 1e-6, validation=30.0)


def test_the_one_to_beat_is_the_fastest_within_the_margin():
    assert cheapest_full([FULL, MIDPOINT, EULER, SKIPPED]) is MIDPOINT
    assert cheapest_full([FULL, EULER, SKIPPED]) is FULL


def test_best_reduced_is_fast_if_adequate_else_accurate():
    slow, fast, poor = reduced(94.9, 0.5), reduced(94.7, 0.2), reduced(90.0, 0.01)
    assert best_reduced([FULL, slow, fast, poor]) is fast
    assert best_reduced([FULL, poor, reduced(89.0, 0.001)]) is poor


@pytest.mark.parametrize(
    ("wall_s", "words"),
    [(0.02, "5.0 times as fast as the one to beat."), (0.105, "no faster"), (0.4, "4.0 times slower")],
)
def test_speed_is_said_plainly(wall_s, words):
    lines = verdict([FULL, MIDPOINT, SKIPPED, reduced(95.0, wall_s)])
    (line,) = [line for line in lines if "batch 256" in line and "reduced layer takes" in line]
    assert words in line
    assert ("Reducing wins nothing here." in line) == (wall_s > 0.1)


def test_a_loss_of_accuracy_is_said_plainly():
    lines = verdict([FULL, MIDPOINT, SKIPPED, reduced(80.0, 0.01, accuracy=81.0)])
    assert any(line.startswith("No reduced layer stays within 0.3 points") and "−13.0 points" in line for line in lines)
    assert any("31.0 % are left" in line for line in lines)


def test_what_one_call_gained_and_lost_is_said_in_a_sentence():
    """Over both full solvers, at both batches; on test data, and as the call states it."""
    explanation = Explanation((), {}, "midpoint", 100, 10, 6, (20, 10), {})
    said = gained_and_lost([FULL, MIDPOINT, SKIPPED, reduced(95.0, 0.02, accuracy=93.5)], explanation)
    assert said == (
        "One call made the ODE layer 50 (batch 256) and 50 (batch 1) times as fast as with dopri5, 5.0 (batch 256) and "
        "5.0 (batch 1) times as fast as with 1 midpoint step; the accuracy on test data went from 94.0 to 93.5 %."
    )
    stated = replace(explanation, confirmed=ConfirmedLoss(0.004, 0.0171, 0.95, 180))
    rows = [FULL, SKIPPED, reduced(95.0, 0.1, accuracy=94.5)]
    assert gained_and_lost(rows, stated) == (
        "One call made the ODE layer 10 (batch 256) and 10 (batch 1) times as fast as with dopri5; the accuracy on "
        "test data went from 94.0 to 94.5 %. It states that 0.4 % of the samples get another class, with 95 % "
        "confidence at most 1.7 %."
    )
    rows = [FULL, replace(rows[-1], impossible=("faster than light",))]
    assert "of whose speed nothing is said for impossible times" in gained_and_lost(rows, explanation)


def test_the_table_fits_a_pipe_and_a_narrow_terminal():
    rows = [FULL, MIDPOINT, EULER, SKIPPED, reduced(95.0, 0.01, solver="1 midpoint step")]
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width)
        print_table(console, rows)
        table = console.file.getvalue().partition("accuracy: on test data")[0]
        assert max(map(len, table.splitlines())) <= width
        for text in ("1,024", "2,048", "POD–DEIM", "93.9", "1000"):
            assert text in table
        assert "…" not in table


def test_numbers_in_words():
    assert [milliseconds(wall) for wall in (1.5, 0.0999, 0.0123456, 0.0009, 0.00012)] == [
        *("1500", "99.9", "12.3"),
        *("0.900", "0.120"),
    ]
    assert [ratio(factor) for factor in (123.4, 9.96, 1.04, 0.999, 0.31)] == ["123", "10", "1.0", "1.0", "0.31"]
    assert [signed(points) for points in (1.26, -0.34, -0.04, 0.0)] == ["+1.3", "−0.3", "0.0", "0.0"]


# -- all methods --------------------------------------------------------------------------------------------------


def found(*rows):
    return entries({0: [FULL, MIDPOINT, SKIPPED, *rows]})


def test_seeds_are_matched_by_method_sizes_and_solver():
    """Means and ranges of known rows; differences are taken to the full network of the same seed."""
    rows = {
        0: [full("dopri5", 95, 1.0, 90.0), reduced(94, 0.1, 89.0), reduced(94, 0.1, 88.0, solver="1 Euler step")],
        1: [full("dopri5", 96, None, 92.0), reduced(94, None, 92.5)],
        2: [full("dopri5", 97, None, 91.0), reduced(94, None, 89.0)],
    }
    of_full, ours, coarse = entries(rows)
    assert of_full.accuracy == Spread(91.0, 90.0, 92.0, 3)
    assert of_full.difference == Spread(0.0, 0.0, 0.0, 3)
    assert ours.row is rows[0][1]
    assert ours.accuracy == Spread(270.5 / 3, 89.0, 92.5, 3)
    assert ours.difference == Spread(-2.5 / 3, -2.0, 0.5, 3)
    assert coarse.accuracy == Spread(88.0, 88.0, 88.0, 1)


def test_ranking_has_the_fastest_good_row_of_each_method():
    slow, fast, poor = reduced(95, 0.5), reduced(94.8, 0.06, solver="1 midpoint step"), reduced(80, 0.01)
    svd = make_row("svd", {"rank": 4}, "1 midpoint step", 93.8, 0.08, validation=94.9)
    ranked = ranking(found(slow, fast, poor, svd), "layer", 256)
    assert ranked == [fast, svd, MIDPOINT]
    assert winners(ranked, "layer", 256) == [fast]
    best = best_of_methods(found(slow, fast, poor, svd))
    assert list(best) == ["full", "skipped", "pod-deim", "svd"]
    assert best["pod-deim"].row is fast


def test_winners_share_what_is_hardly_different_and_the_full_network_wins_a_tie():
    first, second = reduced(95, 0.060), make_row("svd", {"rank": 4}, "dopri5", 94, 0.065, own=True, validation=95)
    assert winners(ranking(found(first, second), "layer", 256), "layer", 256) == [first, second]
    lines = findings(found(first, second))
    assert any("POD–DEIM" in line and "SVD of weights" in line and "about equally fast" in line for line in lines)
    tie = reduced(95, 0.095)  # against 0.1 s
    assert winners(ranking(found(tie), "layer", 256), "layer", 256) == [MIDPOINT]
    lines = findings(found(tie))
    winner = ("the full network with 1 midpoint step", "100 ms", "wins")
    assert any(
        says(line, "ODE layer at batch 256", *winner, "POD–DEIM", "r 1,024, m 2,048", "dopri5", "95.0 ms")
        for line in lines
    )
    assert any("wins, since no compressed one is good enough" in line for line in findings(found()))


def test_findings_say_what_wins_and_by_how_much():
    fast = reduced(94.8, 0.02, solver="1 midpoint step")
    pruned = make_row("pruning", {"kept": 8}, "1 midpoint step", 80.0, 0.05, validation=81.0)
    lines = findings(found(fast, pruned))
    assert says(lines[0], "63.0 points", "31.0 %")
    assert says(lines[1], "dopri5", "1 midpoint step", "10 times as fast")
    ours = ("POD–DEIM", "r 1,024, m 2,048", "1 midpoint step", "20.0 ms")
    assert says(lines[2], "ODE layer at batch 256", *ours, "wins", "5.0 times as fast", "1 midpoint step", "100 ms")
    assert sum(line.startswith(("ODE layer at", "Whole network at")) for line in lines) == 4
    (line,) = [line for line in lines if line.startswith("The fastest reduced layer")]
    assert says(line, "50 times as fast", "dopri5", "5.0 times as fast", "1 midpoint step")
    (line,) = [line for line in lines if line.startswith("No size of these")]
    assert says(line, "neuron pruning", "−14.0") and "POD–DEIM" not in line
    assert says(lines[-1], "95 %", "POD–DEIM", "−4.0", "−1.2", "+0.5") and "pruning" not in lines[-1]


def test_findings_do_not_hide_that_reduction_loses():
    slow = reduced(94.8, 0.5)
    svd = make_row("svd", {"rank": 4}, "1 midpoint step", 93.8, 0.05, validation=94.9)
    lines = findings(found(slow, svd))
    assert says(lines[2], "ODE layer at batch 256", "SVD of weights", "rank 4", "50.0 ms", "wins", "2.0 times as fast")
    (line,) = [line for line in lines if line.startswith("The fastest reduced layer")]
    assert says(line, "2.0 times as fast", "dopri5", "5.0 times slower", "1 midpoint step")
    lines = findings(found(reduced(80.0, 0.01, accuracy=81.0)))
    assert any(line.startswith("No reduced layer stays within 0.3 points") for line in lines)
    assert any(says(line, "No size of these", "POD–DEIM", "−13.0") for line in lines)


def test_distillation_is_shown_beside_its_control():
    sizes = {"r": 32, "m": 64}
    tuned = make_row("distilled", sizes, "1 midpoint step", 93.8, 0.02, offline_s=41.6)
    alone = make_row("distilled", {"r": 8, "m": 16}, "1 midpoint step", 90.0, 0.01, offline_s=99.0)
    control = make_row("control", sizes, "1 midpoint step", 92.5, 0.02, offline_s=38.0)
    (line,) = [line for line in findings(found(tuned, alone, control)) if line.startswith("Distilled from")]
    assert says(line, "r 32, m 64", "−0.2", "−1.5", "42 s") and "r 8" not in line
    assert not any("Distil" in line for line in findings(found(tuned)))


def test_a_layer_that_is_not_needed_is_named():
    unneeded = make_row("skipped", {}, "none", 93.9, 1e-6, validation=94.9)
    assert "does not need it" in findings(entries({0: [FULL, unneeded]}))[0]


def test_findings_over_seeds():
    rows = {seed: plausible_rows(seed, 3136, seed == 0, seed == 0) for seed in range(3)}
    lines = findings(entries(rows))
    assert "over 3 seeds" in lines[0]
    assert lines[-1].startswith("On test data the fastest good rows differ")
    assert "mean and range over 3 seeds" in lines[-1]
    assert not any("over" in line and "seeds" in line for line in findings(entries({0: rows[0]})))


def test_rows_without_times():
    untimed = entries({0: [full("dopri5", 95, None), SKIPPED, reduced(95, None)]})
    assert to_beat(untimed) is None
    assert findings(untimed)[-1] == "Nothing was timed."
    assert [entry.row.method for entry in short_list(untimed)] == ["full", "skipped", "pod-deim"]
    some = entries({0: [FULL, MIDPOINT, SKIPPED, reduced(95, None), reduced(94.9, 0.03, method="pod-qdeim")]})
    assert [row.method for row in ranking(some, "layer", 256)] == ["pod-qdeim", "full"]
    assert "POD–Q-DEIM" in findings(some)[2]


BROKEN = ("at batch 256 the whole network takes less time than its ODE layer",)


def test_no_verdict_of_speed_on_impossible_times():
    """The fastest of all is broken: the next one counts, and what was left out is said."""
    broken = replace(reduced(95.0, 0.001), impossible=BROKEN)
    fine = reduced(94.9, 0.02)
    rows = [FULL, MIDPOINT, SKIPPED, broken, fine]
    assert best_reduced(rows) is fine
    lines = verdict(rows)
    assert any("5.0 times as fast as the one to beat" in line for line in lines)
    (line,) = [line for line in lines if "impossible" in line]
    assert says(line, "left out of all that is said about speed", "POD–DEIM, dopri5, r 1,024, m 2,048", BROKEN[0])
    fast = replace(MIDPOINT, impossible=BROKEN)
    assert cheapest_full([FULL, fast, SKIPPED, fine]) is FULL


@pytest.mark.parametrize("which", ["full", "ours"])
def test_nothing_is_said_about_speed_if_what_is_compared_is_impossible(which):
    ours, full_row = reduced(95.0, 0.001), FULL
    if which == "full":
        full_row = replace(FULL, impossible=BROKEN)
    else:
        ours = replace(ours, impossible=BROKEN)
    rows = [full_row, SKIPPED, ours]
    text = " ".join(verdict(rows))
    assert "so nothing is said about speed" in text
    assert not re.search(r"times as (fast|long)|slower|faster| ms|fastest", text.replace("takes less time", ""))
    console = Console(file=io.StringIO(), width=140)
    print_table(console, rows)
    table = console.file.getvalue()
    assert f"?: an impossible time, which is compared with nothing: {BROKEN[0]}" in table
    assert len(re.findall(r"\d \?", table)) == 2


def test_findings_leave_impossible_rows_out():
    rows = plausible_rows(0, 3136, True, True)
    fastest = min((row for row in rows if row.ours), key=lambda row: row.layer[256].wall_s)
    first = ranking(entries({0: rows}), "layer", 256)[0]
    for one in (fastest, first):
        marked = [replace(row, impossible=BROKEN) if row is one else row for row in rows]
        found = entries({0: marked})
        assert not any(row.impossible for row in ranking(found, "layer", 256))
        assert ranking(found, "layer", 256)
        assert any("left out of all that is said about speed" in line for line in findings(found))
    none = entries({0: [replace(rows[0], impossible=BROKEN), *rows[1:]]})
    assert to_beat(none) is None
    text = " ".join(findings(none))
    assert "so nothing is said about speed" in text
    assert "wins" not in text
