"""Progress: bars on a terminal, which share one display and go away; the log elsewhere."""

import io
import logging
import re
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from torchmor.adapters.networks import progress
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.progress import phases, shown, track

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal on standard error gets."""
    file = io.StringIO()
    console = Console(force_terminal=True, file=file, width=100)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return file


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "torchmor")
    return caplog


@pytest.fixture
def clock(monkeypatch):
    """A clock that `log` reads, which stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def seen(terminal):
    return ANSI.sub("", terminal.getvalue())


def refresh():
    progress._BARS.get().refresh()


def test_bars_with_counts_and_the_remaining_time(terminal, log):
    with phases(True):
        for _ in track([1, 2, 3], "candidates"):
            refresh()
    assert re.search(r"candidates .*2/3 [-\d]+:[-\d]+:[-\d]+", seen(terminal))
    assert not log.records


def test_phases_inside_of_others_share_one_display(terminal):
    with phases(True):
        outer = progress._BARS.get()
        for _ in track(range(2), "candidates"):
            with phases(True):
                assert progress._BARS.get() is outer
                for _ in track(range(5), "epochs"):
                    refresh()
            assert [task.description for task in outer.tasks] == ["candidates"]
    lines = seen(terminal).splitlines()
    assert any("candidates" in a and "epochs" in b for a, b in pairwise(lines))


def test_words_may_change(terminal):
    with phases(True):
        candidates = track(range(2), "candidates")
        for number in candidates:
            candidates.say(f"state {number}")
            refresh()
    assert "state 0" in seen(terminal) and "state 1" in seen(terminal)


def test_errors_leave_nothing_on_the_terminal(terminal):
    def fail():
        with phases(True):
            for _ in track(range(3), "candidates"):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert progress._BARS.get() is None
    after = terminal.getvalue().rpartition("candidates")[2]
    assert "\x1b[2K" in after, "the line is erased"
    assert "\x1b[?25h" in after, "the cursor is shown again"


def test_without_progress_a_terminal_gets_the_log(terminal, log):
    with phases(False):
        assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert not terminal.getvalue()
    assert log.messages == ["letters: 3 in 0.0 s"]


def test_the_log_says_now_and_then_how_long_it_will_take(log, clock):
    with phases(True):
        items = track(iter(range(40)), "candidates", 40)
        for number in items:
            clock[0] += 4.0
            if number == 4:
                items.say("state 16, points 32")
    assert log.messages[:3] == [
        "candidates: 3 of 40, 148 s left",
        "state 16, points 32",
        "candidates: 6 of 40, 136 s left",
    ]
    assert log.messages[-1] == "candidates: 40 in 160.0 s"
    assert {record.name for record in log.records} == {"torchmor"}


def test_unknown_totals(log, clock):
    for _ in track((letter for letter in "abc"), "letters"):
        clock[0] += 11.0
    assert log.messages == ["letters: 1 in 11 s", "letters: 2 in 22 s", "letters: 3 in 33 s", "letters: 3 in 33.0 s"]


def test_batches_alone_have_a_display_of_their_own(terminal):
    data = Calibration(torch.zeros(10, 2), batch_size=4)
    assert [batch.size for batch in shown(data, True, "teacher")] == [4, 4, 2]
    assert "teacher" in seen(terminal) and progress._BARS.get() is None


def test_the_log_is_silent_where_nobody_asks_for_it(capsys):
    list(track(range(3), "candidates"))
    assert capsys.readouterr() == ("", "")
