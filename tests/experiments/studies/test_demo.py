"""The demo at its small scale: every part runs, and the numbers that must come out do."""

import base64
import html
import json
import re
from io import BytesIO, StringIO

import pytest
import torch
from PIL import Image
from rich.console import Console

from torchmor.adapters import load
from torchmor.experiments.measure.comparison import BATCHES
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.verdict import gained_and_lost
from torchmor.experiments.studies.candidates import method_of
from torchmor.experiments.studies.demo import run_demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder") / "demo"
    console = Console(file=StringIO(), width=120)
    outcome = run_demo(folder, seed=0, quick=True, console=console)
    return outcome, folder, console.file.getvalue()


def test_table_has_the_rows_of_an_honest_comparison(demo):
    outcome, _, printed = demo
    names = [row.name for row in outcome.rows]
    for name in ("full, dopri5", "full, 1 Euler step", "full, 2 Euler steps", "full, 4 Euler steps"):
        assert names.count(name) == 1
    assert {"full, 1 midpoint step", "full, 1 RK4 step", "ODE layer skipped"} < set(names)
    (ours,) = (row for row in outcome.rows if row.ours)
    assert ours.sizes["r"] < 1024 and ours.sizes["m"] <= 1024
    assert outcome.rows[0].sizes == {"n": 1024}
    assert all(name in printed for name in set(names))


def test_first_line_says_what_was_gained_and_lost(demo):
    outcome, _, printed = demo
    full, (ours,) = outcome.rows[0], [row for row in outcome.rows if row.ours]
    explanation = load(demo[1] / "reduced.safetensors").explain()
    assert printed.splitlines()[0] == outcome.findings[0] == gained_and_lost(outcome.rows, explanation)
    assert f"went from {full.accuracy:.1f} to {ours.accuracy:.1f} %" in outcome.findings[0]


def test_network_learns_and_the_layer_matters(demo):
    rows = {row.name: row for row in demo[0].rows}
    full = rows["full, dopri5"]
    assert full.accuracy > 85
    assert full.agreement == 100
    assert rows["ODE layer skipped"].accuracy < full.accuracy - 5
    assert rows["full, 1 RK4 step"].agreement > 97
    assert full.evaluations > rows["full, 1 RK4 step"].evaluations == 4


def test_times_are_medians_of_the_repeats(demo):
    for row in demo[0].rows:
        assert set(row.layer) == set(BATCHES)
        for timing in row.layer.values():
            assert timing.repeats == 3
            assert 0 < timing.low_s <= timing.wall_s <= timing.high_s


def test_report_is_one_file_with_pictures(demo):
    report = (demo[1] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)\s*=\s*"(?!data:|#)', report)
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", report)
    assert len(pictures) == 3
    for picture in pictures:
        image = Image.open(BytesIO(base64.b64decode(picture)))
        assert min(image.size) > 200
    assert "torchmor demo --seed 0" in report


def test_raw_rows_are_json_lines(demo):
    lines = [json.loads(line) for line in (demo[1] / "rows.jsonl").read_text().splitlines()]
    settings, *rows = lines
    assert settings["settings"]["seed"] == 0
    assert [row["accuracy"] for row in rows] == [row.accuracy for row in demo[0].rows]


def test_saved_network_is_the_reduced_one(demo):
    layer = load(demo[1] / "reduced.safetensors")
    assert layer(torch.rand(3, 16, 8, 8)).shape == (3, 16, 8, 8)
    assert "held-out" in str(layer.explain())


def test_report_says_what_the_layer_says_of_itself(demo):
    """Method, solver and sizes are read from the object that was saved."""
    explanation = load(demo[1] / "reduced.safetensors").explain()
    report = html.unescape((demo[1] / "report.html").read_text(encoding="utf-8"))
    settings = json.loads((demo[1] / "rows.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["reduction"] == ", ".join(f"{name} {value}" for name, value in explanation.method.items())
    words = METHODS["distilled" if explanation.tuning else method_of(explanation.method)]
    assert f"The method is {words.words}: {words.explanation}" in report
    assert f"with {explanation.samples:,} of these images" in report
    assert explanation.errors, "measured with the reduced layer's solver"
    assert not explanation.since
    assert explanation.parts[1].what in settings["ODE layer"]
