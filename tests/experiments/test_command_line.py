"""The command line: help, a saved file in words, and one clean line for each error."""

import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer, reduce_network, save
from torchmor.experiments.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    layer = ODELayer(nn.Sequential(nn.Linear(12, 12), nn.Tanh()), method="midpoint")
    path = tmp_path / "a layer.safetensors"
    save(reduce_network(layer, "", torch.randn(60, 12), state_dim=4, points=6), path)
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["info", "--help"]])
def test_help(capsys, arguments):
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "torchmor" in out
    assert ("--seed" in out and "--out" in out) == (arguments[0] == "demo")


def test_info_says_what_a_file_holds(capsys, saved):
    code, out, _ = run(capsys, "info", str(saved))
    assert code == 0
    for text in ("12 -> 4", "points     6", "method='midpoint'", "g1 = tanh(a1)", "A1_z: 6 x 4", "dropped energy"):
        assert text in out


def test_info_of_a_missing_file(capsys, tmp_path):
    code, _, err = run(capsys, "info", str(tmp_path / "none.safetensors"))
    assert (code, err.count("\n")) == (2, 1)
    assert "No such file" in err


def test_info_of_a_truncated_file(capsys, saved):
    saved.write_bytes(saved.read_bytes()[:-10])
    code, _, err = run(capsys, "info", str(saved))
    assert (code, err.count("\n")) == (2, 1)
    assert "truncated" in err


def test_unknown_command(capsys):
    code, _, _ = run(capsys, "reduec")
    assert code == 2
