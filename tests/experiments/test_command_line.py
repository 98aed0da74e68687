"""The command line: help, a saved file in words, and one clean line for each error."""

import io
import sys
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
        (OSError(28, "No space left on device"), 2, "torchmor: No space left on device\n"),
        (OSError("one\x1b[31m\ntwo"), 2, "torchmor: one\\x1b[31m two\n"),
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


COMMANDS = ("demo", "convolutional", "recurrent", "functions", "one-call")
ABSURD = [
    (["--threads", "0"], "expected --threads from 1 to 1024, got 0"),
    (["--threads", "-1"], "got -1"),
    (["--threads", str(10**10)], "got 10000000000"),
    (["--seed", "-1"], "got -1"),
    (["--seed", str(2**64)], "got 18446744073709551616"),
    (["--out", "a file"], "as --out, got a file: a file is a file"),
    (["--out", "a file/folder"], "a file is a file"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("arguments", "said"), ABSURD)
def test_absurd_arguments(capsys, tmp_path, monkeypatch, command, arguments, said):
    """They are told in one line before anything is computed or written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("mine")
    code, out, err = run(capsys, command, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err.replace(f"{tmp_path}/", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a file"] and (tmp_path / "a file").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS[1:])
@pytest.mark.parametrize("folder", ["missing", "a file"])
def test_data_folder_that_is_none(capsys, tmp_path, monkeypatch, command, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("mine")
    code, out, err = run(capsys, command, "--data-dir", folder)
    assert (code, out, err) == (2, "", f"torchmor: expected a folder as --data-dir, got {folder}, which is none\n")


@pytest.mark.parametrize("seeds", ["0", "-3", str(2**33)])
def test_number_of_seeds(capsys, seeds):
    code, _, err = run(capsys, "recurrent", "--seeds", seeds)
    assert (code, err.count("\n")) == (2, 1) and f"got {seeds}" in err


def test_folder_that_may_not_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, _, err = run(capsys, "demo", "--out", str(tmp_path / "new"))
    assert (code, err.count("\n")) == (2, 1) and "may be written as --out" in err


@pytest.mark.parametrize("arguments", [["info"], ["info", "a", "b"], ["demo", "--threads", "x"], ["demo", "--what"]])
def test_wrong_commands_have_no_traceback(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code in (1, 2) and "Traceback" not in out + err


def test_terminals_that_know_ascii_only(saved, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("torchmor.experiments.inspect.saved_file.describe", lambda path: "4 × 5")
    with pytest.raises(SystemExit) as exit_:
        main(["info", str(saved)])
    sys.stdout.flush()
    assert not exit_.value.code and raw.getvalue() == b"4 \\xd7 5\n"
