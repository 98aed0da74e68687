"""Times that are compared are medians of interleaved calls."""

import functools
import gc
import time

import pytest
import torch

from torchmor.adapters.networks import timing
from torchmor.adapters.networks.timing import WARM_UP, compare_times


def test_medians_of_known_durations(monkeypatch):
    """Calls of 1, 2, 9 s have the median 2 s and the quartiles 1.5 and 5.5 s; warm-up does not count."""
    clock = [0.0]
    durations = iter([100.0] * WARM_UP + [9.0, 1.0, 2.0])
    monkeypatch.setattr(timing, "now", lambda: clock[0])

    def call():
        clock[0] += next(durations)

    timed = compare_times({"call": call}, repeats=3)["call"]
    assert (timed.wall_s, timed.low_s, timed.high_s, timed.repeats) == (2.0, 1.5, 5.5, 3)
    assert timed.threads == torch.get_num_threads()


def test_a_slow_call_is_repeated_less_often(monkeypatch):
    """Each has half of 60 s: calls of 1 s are made 15 times, of 12 s three times, of 100 s as often as asked."""
    clock = [0.0]
    monkeypatch.setattr(timing, "now", lambda: clock[0])

    def repeats(seconds, **asked):
        def call(s):
            clock[0] += s

        calls = {s: functools.partial(call, s) for s in (1.0, seconds)}
        timed = compare_times(calls, budget_s=60.0, **asked)
        assert [timed[s].wall_s for s in calls] == list(calls)
        return [timed[s].repeats for s in calls]

    assert repeats(12.0) == repeats(100.0) == [15, 3]
    assert repeats(9.0, fewest=1) == [15, 2] and repeats(100.0, fewest=1) == [15, 1]
    assert repeats(20.0, fewest=1, warm_up=0) == [15, 2] and repeats(100.0, fewest=1, warm_up=0) == [15, 1]


def test_disturbances_do_not_make_repeats_few(monkeypatch):
    clock, durations = [0.0], iter([50.0] * (WARM_UP + 2) + [1.0] * 100)
    monkeypatch.setattr(timing, "now", lambda: clock[0])

    def call():
        clock[0] += next(durations)

    timed = compare_times({"call": call}, budget_s=10.0)["call"]
    assert (timed.wall_s, timed.repeats) == (1.0, 9)


def test_calls_are_interleaved():
    """Each round makes every call once, and not always in one order."""
    made = []
    names = ["a", "b", "c"]
    compare_times({name: lambda name=name: made.append(name) for name in names}, repeats=8)
    rounds = [made[i : i + 3] for i in range(0, len(made), 3)]
    assert len(rounds) == WARM_UP + 8
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_calls_run_without_gradients_and_garbage_collection():
    seen = []
    compare_times({"call": lambda: seen.append((torch.is_grad_enabled(), gc.isenabled()))}, repeats=1)
    assert set(seen) == {(False, False)}
    assert gc.isenabled()


def test_a_failing_call_leaves_no_trace():
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compare_times({"call": fail})
    assert gc.isenabled()
    assert torch.is_grad_enabled()


def test_a_longer_call_takes_longer():
    times = compare_times({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.02)}, repeats=3)
    assert times["long"].wall_s > times["short"].wall_s
