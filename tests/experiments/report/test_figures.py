"""Pictures: PNG files, with all that is to be seen in them."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from fake_results import SELECTIONS, image_showcase, make_row, plausible_rows, sequence_showcase
from torchmor.experiments.measure.comparison import layer_arguments
from torchmor.experiments.report import accuracy_figure, figures
from torchmor.experiments.report.accuracy_figure import accuracy_against_time, accuracy_by_method, accuracy_of_methods
from torchmor.experiments.report.spread import entries

pytestmark = pytest.mark.slow


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were drawn, in place of files."""
    kept = []
    for module in (accuracy_figure, figures):
        monkeypatch.setattr(module, "png", lambda figure: kept.append(figure) or b"")
    return kept


@pytest.fixture(scope="module")
def found():
    return entries({seed: plausible_rows(seed, 3136, seed == 0, seed == 0) for seed in range(2)})


def marks(axes):
    """All points that markers are drawn at."""
    return {
        (round(float(x), 9), round(float(y), 9))
        for line in axes.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(*line.get_data(), strict=True)
    }


@pytest.mark.parametrize("part", ["layer", "network"])
def test_every_row_is_in_the_accuracy_plot(found, drawn, part):
    accuracy_of_methods(found, part)
    own, coarse, _ = drawn[0].axes

    def expected(rows):
        times = [(1e3 * getattr(entry.row, part)[256].wall_s, entry.difference.mean) for entry in rows]
        return {(round(x, 9), round(y, 9)) for x, y in times}

    full = [entry for entry in found if entry.row.method == "full"]
    compressed = [entry for entry in found if entry.compressed]
    assert len(compressed) == 124
    assert marks(own) == expected([*full, *(entry for entry in compressed if entry.row.own_solver)])
    assert marks(coarse) == expected([*full[1:], *(entry for entry in compressed if not entry.row.own_solver)])
    texts = {text.get_text() for text in coarse.texts}
    assert {"1 Euler", "2 Euler", "4 Euler", "1 midpoint", "1 RK4"} < texts
    assert f"full network, own solver: {1e3 * getattr(full[0].row, part)[256].wall_s:.3g} ms →" in texts
    for axes in (own, coarse):
        assert axes.get_xscale() == "log"
        low, high = axes.get_ylim()
        assert all(low < entry.difference.low and entry.difference.high < high for entry in found)
        assert "ms" in axes.get_xlabel()
    assert own.get_ylabel().endswith("%")


def test_labels_of_the_accuracy_plot_do_not_overlap(found, drawn):
    accuracy_of_methods(found, "layer")
    for axes in drawn[0].axes[:2]:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) >= 6
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_tick_labels_are_true(found, drawn):
    """The accuracy at a tick is that of the full network plus the tick's difference."""
    accuracy_of_methods(found, "layer")
    own, _, right = drawn[0].axes
    accuracy = found[0].accuracy.mean
    words = own.yaxis.get_major_formatter()
    ticks = own.get_yticks()
    assert len(ticks) >= 6
    assert [float(words(tick, 0)) for tick in ticks] == pytest.approx([accuracy + tick for tick in ticks], abs=1e-6)
    assert right.get_ylim() == own.get_ylim()
    assert right.get_yscale() == own.get_yscale()


def test_every_method_by_itself(found, drawn):
    accuracy_by_method(found, "layer")
    shown = {axes.get_title(): axes for axes in drawn[0].axes if axes.get_title()}
    assert len(shown) == 12
    texts = [text.get_text() for text in shown["POD–DEIM"].texts]
    assert sorted(texts) == sorted(["256/512", "128/256", "64/128", "32/64", "16/32", "8/16"])
    assert sorted(text.get_text() for text in shown["neuron pruning"].texts) == sorted("14 12 10 8 4 2".split())


def test_narrow_cases_of_the_accuracy_plot(drawn):
    full = make_row("full", {"n": 9}, "euler steps", 90, 1e-3, own=True)
    ours = make_row("pod-deim", {"r": 2, "m": 4}, "1 Euler step", 89, 1e-4)
    for rows in ([full], [full, ours], [full, make_row("svd", {"rank": 1}, "euler steps", 0, 1e-4, own=True)]):
        accuracy_of_methods(entries({0: rows}), "layer")
        accuracy_against_time([row for row in rows if row.method != "svd"])
    assert [len(figure.axes) - 1 for figure in drawn[::2]] == [1, 1, 1]


def size(png):
    assert png.startswith(b"\x89PNG")
    image = Image.open(io.BytesIO(png))
    image.verify()
    return image.size


def test_points_and_channels():
    showcase = image_showcase()
    layers = {method: small.ode for method, small in showcase.reduced.items()}
    assert list(layers) == list(SELECTIONS)
    points = {method: layer.points["g1"] for method, layer in layers.items()}
    shape = layers["pod-deim"].state_shape
    background = showcase.inputs.mean(dim=(0, 1)).numpy()
    assert min(size(figures.selections_on_image(points, shape, background))) > 400
    assert min(size(figures.points_by_channel("pod-deim", points["pod-deim"], shape))) > 200
    assert min(size(figures.interpolation_points(points["pod-deim"], shape, background))) > 400


def test_numbers_of_points_are_true(drawn):
    """At each pixel stands the number of chosen channels."""
    shape = (3, 4, 5)
    points = np.ravel_multi_index([(0, 1, 2, 0), (1, 1, 1, 3), (2, 2, 2, 4)], shape)
    figures.selections_on_image({"pod-deim": points}, shape, np.ones((8, 10)))
    (axes,) = drawn[0].axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(2, 1): "3", (4, 3): "1"}
    assert axes.get_title().endswith("4 points, at 2 of 20 pixels")
    figures.points_by_channel("pod-deim", points, shape)
    titles = [axes.get_title() for axes in drawn[1].axes if axes.get_title()]
    assert titles == ["channel 0: 2", "channel 1: 1", "channel 2: 1"]


def test_units_in_the_order_of_their_variation(drawn):
    figures.selected_units({"pod-deim": np.array([0, 2])}, np.array([0.1, 0.3, 0.2]))
    _, below = drawn[0].axes
    (bars,) = below.collections
    assert sorted(bars.get_positions()) == [2, 3]  # unit 2 varies second most, unit 0 least


@pytest.mark.parametrize("make", [image_showcase, sequence_showcase])
def test_trajectories_start_together_and_leave_layers_as_they_were(make, drawn):
    showcase = make()
    full, reduced = showcase.full.ode, showcase.reduced["pod-deim"].ode
    before = str(full.settings), str(reduced.settings)
    figures.trajectories(full, reduced, layer_arguments(showcase.full, "ode", showcase.inputs[:1]), count=3)
    assert (str(full.settings), str(reduced.settings)) == before
    (axes,) = drawn[0].axes
    curves = [line.get_ydata() for line in axes.lines if len(line.get_xdata())]
    assert len(curves) == 6
    for exact, approximate in zip(curves[::2], curves[1::2], strict=True):
        assert len(exact) == 41
        assert abs(exact - approximate).max() < 0.5 * np.ptp(curves[0])


def test_singular_values_are_cut_where_they_are_rounding_errors(drawn):
    figures.singular_values({"state": np.array([2.0, 1.0, 1e-12]), "g1": np.ones(4)}, {"state": [1, 2, 3, 9]})
    (axes,) = drawn[0].axes
    curve, dots, *_ = axes.lines
    assert curve.get_ydata().tolist() == [1, 0.5]
    assert dots.get_xdata().tolist() == [1, 2]
