"""Results survive interruptions, and are never mixed with those of other settings."""

import json
import threading
from dataclasses import replace

import pytest

from torchmor.adapters.networks.timing import Timing
from torchmor.experiments.measure.comparison import Row
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
    results = ResultsFile(path, {"seed": 0, "sizes": (1, 2)}, Row)
    assert results.find(*KEY) is None
    results.add(*KEY, ROW)
    results.add("a", 0, "svd", {"rank": 3}, "own", "SolverError: it failed")
    again = ResultsFile(path, {"seed": 0, "sizes": (1, 2)}, Row)
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
        results = ResultsFile(path, {"threads": threads}, Row)
        assert results.find(*KEY) is None
        results.add(*KEY, ROW)
    assert results.renamed == tmp_path / "results-2.jsonl"
    names = ("results-1.jsonl", "results-2.jsonl", "results.jsonl")
    found = [json.loads((tmp_path / name).read_text().splitlines()[0])["settings"]["threads"] for name in names]
    assert found == [1, 2, 3]


def test_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    results = ResultsFile(tmp_path / "results.jsonl", {}, Row)
    results.add(*KEY, ROW)
    before = results.path.read_text()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.add("b", *KEY[1:], ROW)
    assert results.path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_two_runs_at_once_keep_all_rows(tmp_path):
    path = tmp_path / "results.jsonl"
    runs = [ResultsFile(path, {}, Row) for _ in range(2)]

    def add(run, number):
        for i in range(40):
            run.add(f"{number}-{i}", *KEY[1:], ROW)

    threads = [threading.Thread(target=add, args=(run, number)) for number, run in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ResultsFile(path, {}, Row)
    assert found.damaged == 0 and len(path.read_text().splitlines()) == 81
    assert all(found.find(f"{number}-{i}", *KEY[1:]) == ROW for number in range(2) for i in range(40))


def test_a_run_that_was_put_aside_goes_on_there(tmp_path):
    path = tmp_path / "results.jsonl"
    first = ResultsFile(path, {"threads": 1}, Row)
    first.add(*KEY, ROW)
    second = ResultsFile(path, {"threads": 2}, Row)
    second.add(*KEY, "failed")
    first.add("b", *KEY[1:], ROW)
    second.add("b", *KEY[1:], "failed")
    for name, threads, found in (("results-1.jsonl", 1, ROW), ("results.jsonl", 2, "failed")):
        again = ResultsFile(tmp_path / name, {"threads": threads}, Row)
        assert again.renamed is None
        assert again.find(*KEY) == again.find("b", *KEY[1:]) == found
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_half_a_row_is_mended(tmp_path, cut):
    """A row that was cut is measured again; one that lacks only the end of its line is kept."""
    path = tmp_path / "results.jsonl"
    results = ResultsFile(path, {}, Row)
    results.add(*KEY, ROW)
    whole = path.read_bytes()
    results.add("b", *KEY[1:], ROW)
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:cut])
    again = ResultsFile(path, {}, Row)
    assert again.find(*KEY) == ROW and again.find("b", *KEY[1:]) == (ROW if cut == -1 else None)
    assert again.damaged == (0 if cut == -1 else 1)
    again.add("c", *KEY[1:], ROW)
    third = ResultsFile(path, {}, Row)
    assert third.damaged == 0 and third.find("c", *KEY[1:]) == ROW


@pytest.mark.parametrize("line", [b"{}", b"\xff\xfe", b"[1]", b'{"network": 1}', bytes(100), b"[" * 100_000])
def test_lines_that_are_no_rows(tmp_path, line):
    path = tmp_path / "results.jsonl"
    results = ResultsFile(path, {}, Row)
    results.add(*KEY, ROW)
    path.write_bytes(path.read_bytes() + line + b"\n")
    results.add("b", *KEY[1:], ROW)
    again = ResultsFile(path, {}, Row)
    assert again.damaged == 1 and again.find(*KEY) == again.find("b", *KEY[1:]) == ROW


def test_a_file_that_was_deleted_is_written_again(tmp_path):
    results = ResultsFile(tmp_path / "results.jsonl", {}, Row)
    results.add(*KEY, ROW)
    results.path.unlink()
    results.add("b", *KEY[1:], ROW)
    again = ResultsFile(results.path, {}, Row)
    assert again.find(*KEY) == again.find("b", *KEY[1:]) == ROW
