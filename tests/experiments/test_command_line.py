"""The command line: help, a saved file in words, and one clean line for each error."""

from importlib import metadata

import pytest
import torch
from torch import nn

from torchmor.adapters import ODELayer, reduce_network, save
from torchmor.engine.errors import SizeError
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


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"{metadata.version('torchmor')}\n", "")


def test_info_of_several_layers(capsys, tmp_path):
    """A file of a network with two reduced layers is described without the network."""
    network = nn.Sequential(*(ODELayer(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), method="euler") for _ in range(2)))
    data = torch.randn(60, 6)
    small = reduce_network(reduce_network(network, "1", data, state_dim=3, points=4), "0", data, state_dim=2, points=3)
    save(small, tmp_path / "two.safetensors")
    code, out, _ = run(capsys, "info", str(tmp_path / "two.safetensors"))
    assert code == 0
    for text in ("2 reduced layers", "layer '0'", "6 -> 2", "layer '1'", "6 -> 3"):
        assert text in out


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "torchmor: interrupted\n"),
        (SizeError("expected one,\n   got two"), 2, "torchmor: expected one, got two\n"),
        (ModuleNotFoundError("no", name="sklearn"), 2, "torchmor: this command needs sklearn: pip install"),
        (PermissionError(13, "Permission denied", "/root"), 2, "torchmor: Permission denied: /root\n"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, monkeypatch, raised, code, said):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr("torchmor.experiments.inspect.saved_file.describe", fail)
    exit_code, out, err = run(capsys, "info", "any.safetensors")
    assert (exit_code, out) == (code, "")
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_faults_of_ours_keep_their_traceback(monkeypatch):
    def fail(path):
        raise ValueError("a fault of ours")

    monkeypatch.setattr("torchmor.experiments.inspect.saved_file.describe", fail)
    with pytest.raises(ValueError, match="a fault of ours"):
        main(["info", "any.safetensors"])
