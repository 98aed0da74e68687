"""The experiments from end to end at a small scale: all methods, files, resuming, interruption."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from torchmor.experiments.cli import main
from torchmor.experiments.data.images import load_images
from torchmor.experiments.data.sequences import load_sequences
from torchmor.experiments.measure.comparison import Measurement
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.studies import convolutional, recurrent
from torchmor.experiments.studies.experiment import Scale, in_short, run_experiment

pytestmark = pytest.mark.slow

EXPERIMENTS = {
    "convolutional": (convolutional.EXPERIMENT, load_images),
    "recurrent": (recurrent.EXPERIMENT, load_sequences),
}


@pytest.fixture(scope="module", params=EXPERIMENTS)
def finished(request, tmp_path_factory):
    """The folder of a quick run from the command line, and the experiment's name."""
    folder = tmp_path_factory.mktemp(request.param) / "results"
    with pytest.raises(SystemExit) as stopped:
        main([request.param, "--quick", "--out", str(folder)])
    assert stopped.value.code in (0, None)
    return folder, request.param


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_method_has_rows(finished):
    folder, name = finished
    settings, *rows = lines(folder)
    assert settings["settings"]["experiment"] == name
    assert [row for row in rows if "failure" in row] == []
    for key in {"convolutional": "ab", "recurrent": "cd"}[name]:
        of_network = [row["row"] for row in rows if row["network"] == key]
        expected = set(METHODS) - ({"svd-dense"} if name == "recurrent" else set())
        assert {row["method"] for row in of_network} == expected
        full = of_network[0]
        assert (full["method"], full["own_solver"], full["agreement"]) == ("full", True, 100.0)
        assert full["difference_interval"] == [0.0, 0.0]
        for row in of_network:
            assert set(row["layer"]) == set(row["network"]) == {"1", "256"}
            for timing in (*row["layer"].values(), *row["network"].values()):
                assert 0 < timing["low_s"] <= timing["wall_s"] <= timing["high_s"]
                assert timing["threads"] == 1


def test_compression_shrinks(finished):
    folder, _ = finished
    found = [(line["network"], line["row"]) for line in lines(folder)[1:]]
    full = {network: row["parameters"] for network, row in reversed(found) if row["method"] == "full"}
    compressed = [(network, row) for network, row in found if row["method"] in ("pruning", "svd", "torch-pruning")]
    assert len(compressed) >= 6
    for network, row in compressed:
        assert row["parameters"] < full[network], row


def test_files(finished):
    folder, _ = finished
    assert (folder / "report.html").stat().st_size > 50_000
    assert len(list((folder / "plots").glob("*.png"))) >= 8
    assert len(list((folder / "networks").glob("*.safetensors"))) == 2
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(lines(folder)) - 1


def test_rerun_measures_nothing_again(finished, monkeypatch):
    folder, name = finished
    before = (folder / "results.jsonl").read_bytes()
    monkeypatch.setattr(Measurement, "row", lambda *args, **kwargs: pytest.fail("measured again"))
    (folder / "report.html").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([name, "--quick", "--out", str(folder)])
    assert stopped.value.code in (0, None)
    assert (folder / "results.jsonl").read_bytes() == before
    assert (folder / "report.html").exists()


def small(recipes=1):
    data = load_sequences("digits")
    experiment, scale, data = in_short(recurrent.EXPERIMENT, Scale(range(1)), data)
    levels = replace(experiment.levels, sizes=((4, 8),), kept=(128,), ranks=(8,))
    return replace(experiment, recipes=experiment.recipes[:recipes], levels=levels), scale, data


def test_interrupted_run_keeps_its_rows_and_goes_on(tmp_path, monkeypatch, capsys):
    experiment, scale, data = small()
    measured = []
    row = Measurement.row

    def until_the_fifth(self, candidate, **options):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(candidate.method)
        return row(self, candidate, **options)

    monkeypatch.setattr(Measurement, "row", until_the_fifth)
    run = {"command": "torchmor recurrent", "console": console()}
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, data, tmp_path, scale, **run)
    kept = lines(tmp_path)[1:]
    assert len(kept) == 5
    monkeypatch.setattr(Measurement, "row", lambda self, *args, **kw: measured.append("more") or row(self, *args, **kw))
    run_experiment(experiment, data, tmp_path, scale, **run)
    everything = lines(tmp_path)[1:]
    assert everything[:5] == kept
    assert measured.count("more") == len(everything) - 5


def test_seeds_beyond_the_first_are_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("torchmor.experiments.measure.comparison.ADEQUATE_POINTS", 100.0)  # every coarse solver is
    experiment, scale, data = small()
    (result,) = run_experiment(
        experiment, data, tmp_path, replace(scale, seeds=(0, 1)), command="torchmor recurrent", console=console()
    )
    assert list(result.rows) == [0, 1]
    assert all(row.layer and row.network for row in result.rows[0])
    assert not any(row.layer or row.network for row in result.rows[1])
    names = [{(row.method, row.size, row.solver) for row in result.rows[seed]} for seed in (0, 1)]
    controls = {name for name in names[0] if name[0] == "control"}
    assert controls, "of the first seed only"
    assert names[1] == names[0] - controls, "also with the layer's own solver, whose steps are fixed"
    rates = [result.rows[seed][0].accuracy for seed in (0, 1)]
    assert rates[0] != rates[1]


def test_failures_are_reported_not_fatal(tmp_path):
    experiment, scale, data = small()
    levels = replace(experiment.levels, sizes=((300, 400), (4, 8)))
    (result,) = run_experiment(
        replace(experiment, levels=levels), data, tmp_path, scale, command="torchmor recurrent", console=console()
    )
    assert any("POD–DEIM, r 300, m 400" in failure and "SizeError" in failure for failure in result.failures)
    assert "r 300, m 400" in (tmp_path / "report.html").read_text()


def console():
    import io

    from rich.console import Console

    return Console(file=io.StringIO(), width=120)


def test_threads_are_restored(tmp_path):
    before = torch.get_num_threads()
    experiment, scale, data = small()
    scale = replace(scale, timing_threads=before + 1)
    run_experiment(experiment, data, tmp_path, scale, command="torchmor recurrent", console=console())
    assert torch.get_num_threads() == before
