"""Reports and pictures: escaped, whole or not at all, and legible."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torchmor.experiments.report.label_placement import place_labels
from torchmor.experiments.report.report import Listing, Paragraph, Settings, Table, part_html, write_report


def test_text_is_escaped(tmp_path):
    path = tmp_path / "report.html"
    parts = [Paragraph("a < b & c"), Listing("<script>"), Settings({"<name>": "<value>"})]
    write_report(path, "x < y", {"": parts, "<heading>": parts})
    text = path.read_text(encoding="utf-8")
    assert "a &lt; b &amp; c" in text
    for raw in ("<script>", "<name>", "<value>", "<heading>", "x < y"):
        assert raw not in text


def test_nested_settings_are_words(tmp_path):
    values = {"levels": {"sizes": ((8, 16), (4, 8)), "kept": [2, 1], "dense": ()}, "seed": 0, "cost": 0.5}
    text = part_html(Settings(values))
    assert "<td>sizes: 8/16, 4/8<br>kept: 2, 1<br>dense: none</td>" in text
    assert "<td>seed</td><td>0</td>" in text


def test_tables_mark_what_stands_out():
    lines = [["x", "1\ndetail <1>"], ["y", "2"], ["z", "3"]]
    text = part_html(Table(["a\nb", "c"], lines, best=[(0, 1), 2], weak=[1]))
    assert "<th>a<br>b</th>" in text
    assert "<td class=best>1<small>detail &lt;1&gt;</small></td>" in text
    assert '<tr class="weak"><td>y</td><td>2</td></tr><tr class="best"><td>z</td>' in text


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, "old", {})
    with pytest.raises(AttributeError):
        write_report(path, "new", {"": ["no part"]})
    assert "old" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_hide_nothing(seed):
    """Labels of a crowd overlap neither each other nor a point, and lie inside the axes."""
    figure = Figure(figsize=(9, 6))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = np.random.default_rng(seed).normal(size=(14, 2))
    axes.plot(*at.T, "o", label="crowd")
    axes.margins(0.3)
    axes.legend(loc="lower right")
    boxes = place_labels(axes, at.tolist(), [f"128/256, {i} steps" for i in range(14)], ["black"] * 14)
    pixels = axes.transData.transform(at)
    inside = axes.get_window_extent()
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)
    assert not any(box.overlaps(axes.get_legend().get_window_extent()) for box in boxes)
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes)
