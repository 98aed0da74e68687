"""Results survive interruptions, and are never mixed with those of other settings."""

import json
from dataclasses import replace

import pytest

from torchmor.experiments.measure.comparison import Row
from torchmor.experiments.measure.timing import Timing
from torchmor.experiments.report.results_file import ResultsFile

TIMING = Timing(1.0, 0.9, 1.2, 5, 1, yardstick_s=2.0)
ROW = Row(
    method="pod-deim",
    sizes={"r": 4, "m": 8},
    solver="1 midpoint step",
    own_solver=False,
    evaluations=2,
    parameters=100,
    validation_accuracy=90.5,
    accuracy=90.25,
    agreement=95.0,
    difference_interval=(-1.5, 0.25),
    layer={1: TIMING, 256: TIMING},
    network={1: TIMING, 256: TIMING},
)
KEY = ("a", 0, "pod-deim", {"r": 4, "m": 8}, "1 midpoint step")


def test_rows_are_found_by_the_next_run(tmp_path):
    path = tmp_path / "results.jsonl"
    results = ResultsFile(path, {"seed": 0, "sizes": (1, 2)})
    assert results.find(*KEY) is None
    results.add(*KEY, ROW)
    results.add("a", 0, "svd", {"rank": 3}, "own", "SolverError: it failed")
    again = ResultsFile(path, {"seed": 0, "sizes": (1, 2)})
    assert again.renamed is None
    assert again.find(*KEY) == ROW
    assert again.find("a", 0, "svd", {"rank": 3}, "own") == "SolverError: it failed"
    assert again.find("b", *KEY[1:]) is None
    again.add("b", *KEY[1:], replace(ROW, accuracy=1.0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(line) for line in lines[:1]] == [["settings"]]
    assert [line["network"] for line in lines[1:]] == ["a", "a", "b"]


def test_other_settings_are_put_aside(tmp_path):
    path = tmp_path / "results.jsonl"
    for threads in (1, 2, 3):
        results = ResultsFile(path, {"threads": threads})
        assert results.find(*KEY) is None
        results.add(*KEY, ROW)
    assert results.renamed == tmp_path / "results-2.jsonl"
    names = ("results-1.jsonl", "results-2.jsonl", "results.jsonl")
    found = [json.loads((tmp_path / name).read_text().splitlines()[0])["settings"]["threads"] for name in names]
    assert found == [1, 2, 3]


def test_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    results = ResultsFile(tmp_path / "results.jsonl", {})
    results.add(*KEY, ROW)
    before = results.path.read_text()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.add("b", *KEY[1:], ROW)
    assert results.path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
