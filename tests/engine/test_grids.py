"""Grids and steps of fixed-step solvers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmor.engine.grids import equal_step_size, plan_steps, step_grid
from torchmor.engine.tableaux import TABLEAUX

TIMES = st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=6, unique=True).map(sorted)


@given(times=TIMES, backward=st.booleans(), step_size=st.sampled_from([None, 0.1, 0.3, 7.0]))
def test_plan(times, backward, step_size):
    """Law: the grid is `step_grid`, mirrored for decreasing times; each time but the first is an output of one step."""
    grid = step_grid(times, step_size)
    sign = -1.0 if backward else 1.0
    steps = plan_steps([sign * time for time in times], TABLEAUX["rk4_classic"], step_size)
    assert [step.end for step in steps] == [sign * time for time in grid[1 : len(steps) + 1]]
    assert [step.times[0] for step in steps] == [sign * time for time in grid[: len(steps)]]
    assert all(step.times[-1] == step.end and math.copysign(1.0, step.size) == sign for step in steps)
    reached = [(step.end - step.size) + x * step.size for step in steps for x in step.outputs]
    assert reached == pytest.approx([sign * time for time in times[1:]], rel=1e-12, abs=1e-12)
    assert steps[-1].outputs and all(0 <= x <= 1 for step in steps for x in step.outputs)


def test_no_step_of_no_length():
    """30 steps of 1.1 / 30 arrive at 1.1, where torchdiffeq takes one more: its grid holds 1.1 twice."""
    grid = step_grid((0.0, 1.1), 1.1 / 30)
    assert grid[-1] == grid[-2] and len(grid) == 32
    steps = plan_steps((0.0, 1.1), TABLEAUX["euler"], 1.1 / 30)
    assert len(steps) == 30 and steps[-1].end == 1.1


@given(st.floats(1e-3, 1e3), st.integers(1, 300))
def test_equal_steps(duration, count):
    """Law: ``len(step_grid((0, duration), equal_step_size(duration, count))) == count + 1``."""
    size = equal_step_size(duration, count)
    assert len(step_grid((0.0, duration), size)) == count + 1
    assert size == pytest.approx(duration / count, rel=1e-15 * count)
