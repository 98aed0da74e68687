"""The picture of an explanation: the curve with the choice, singular values with sizes, points on the state's grid."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest

from torchmor.engine.errors import MissingPackageError
from torchmor.engine.explanation import Explanation, Part, Trial

CURVE = (
    Trial("full", "dopri5", 1000.0, 0.0),
    Trial("full", "1 midpoint step", 50.0, 0.01),
    Trial("state 2, points 2", "1 midpoint step", 10.0, 0.02),
    Trial("state 4, points 4", "1 midpoint step", 20.0, 0.004),
    Trial("state 8, points 8", "1 Euler step", float("inf"), float("inf")),
)
#: Stages of 2 channels of 3 × 4 places each.
EXPLANATION = Explanation(
    (
        Part("state", "y", 24, 2, "reduced"),
        Part("g1", "tanh(a1)", 24, 4, "reduced"),
        Part("g2", "tanh(a1)", 24, 2, "reduced"),
    ),
    method={},
    solver="",
    snapshots=1,
    samples=1,
    evaluations=1,
    operations=(2, 1),
    errors={},
    curve=CURVE,
    chosen=CURVE[3],
    singular_values={"state": (4.0, 1.0, 0.5, 1e-12), "g1": (2.0, 1.0)},
    points={"g1": (0, 5, 12, 23), "g2": (12, 11)},
    state_shape=(2, 3, 4),
)


def panels(explanation):
    figure = explanation.plot()
    figure.savefig(io.BytesIO(), format="png")  # all of it can be drawn
    return figure.axes[:3]


def series(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_curve():
    axes, _, _ = panels(EXPLANATION)
    found = series(axes)
    assert found["full, its own solver (dopri5)"] == ([1.0], [0.0])
    assert found["full, coarse steps"] == ([0.05], [0.01])
    assert found["reduced"] == ([0.01, 0.02], [0.02, 0.004])
    assert found["chosen"] == ([0.02], [0.004])
    assert found["no other is better"] == ([0.01, 0.02, 1.0], [0.02, 0.004, 0.0])
    assert words(axes) == ["1 midpoint step"]
    low, high = axes.get_ylim()
    assert low < 0 and high > 0.02


def test_a_gain_of_accuracy_is_inside_of_the_picture():
    better = replace(CURVE[3], loss=-0.2)
    axes, _, _ = panels(replace(EXPLANATION, curve=(*CURVE[:3], better), chosen=better))
    assert axes.get_ylim()[0] < -0.2


def test_singular_values_and_sizes():
    _, axes, _ = panels(EXPLANATION)
    found = series(axes)
    assert found["state"] == ([1, 2, 3], [1.0, 0.25, 0.125]), "rounding errors are left out"
    assert found["g1"] == ([1, 2], [1.0, 0.5])
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [(*dot.get_xdata(), *dot.get_ydata()) for dot in dots] == [(2, 0.25)], "g1 has more points than values"
    assert words(axes) == ["2"]


def test_points_on_the_grid_of_the_state():
    _, _, axes = panels(EXPLANATION)
    (image,) = axes.get_images()
    # 0 and 12 are the same place in two channels, of which 12 is taken twice
    np.testing.assert_array_equal(image.get_array(), [[3, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2]])
    assert "3 × 4" in axes.get_title()
    assert axes.figure.axes[3].get_ylabel() == "points of g1, g2, in all channels"


def test_stages_of_other_sizes_are_not_on_the_grid():
    other = replace(EXPLANATION.parts[2], full=25)
    _, _, axes = panels(replace(EXPLANATION, parts=(*EXPLANATION.parts[:2], other)))
    assert axes.get_images()[0].get_array().sum() == 4
    assert axes.figure.axes[3].get_ylabel() == "points of g1, in all channels"


def test_points_of_vectors_are_marks():
    _, _, axes = panels(replace(EXPLANATION, state_shape=(24,)))
    assert not axes.get_images()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["g1: 4 of 24", "g2: 2 of 24"]
    first, second = axes.get_lines()
    np.testing.assert_allclose(first.get_xdata(), np.array([0, 5, 12, 23]) / 24)
    np.testing.assert_allclose(second.get_ydata(), [1, 1])


def test_what_there_is_not_is_said():
    empty = replace(EXPLANATION, curve=(), chosen=None, singular_values={}, points={})
    assert [words(axes) for axes in panels(empty)] == [
        ["sizes were given:\nnothing was searched"],
        ["none were computed"],
        ["no stage was reduced to points"],
    ]


@pytest.mark.parametrize("shape", [(2, 3, 4), (24,)])
def test_a_picture_after_json_is_the_same(shape):
    one = replace(EXPLANATION, state_shape=shape)
    for axes, again in zip(panels(one), panels(Explanation.from_json(one.to_json())), strict=True):
        assert series(axes) == series(again)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchmor.engine.explanation_figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(MissingPackageError, match=r"matplotlib.axes is missing: pip install 'torchmor\[experiments\]'"):
        EXPLANATION.plot()
