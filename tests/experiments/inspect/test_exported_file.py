"""`torchmor info` on exported files."""

import sys

import pytest
import torch
from torch import nn

from networks import NETWORKS
from torchmor.adapters import export_inductor, export_onnx, export_program, reduce_network, single_step
from torchmor.engine.errors import FileFormatError
from torchmor.experiments.cli import main
from torchmor.experiments.inspect import exported_file
from torchmor.experiments.inspect.exported_file import describe

pytestmark = pytest.mark.slow

EXPORTS = {".onnx": export_onnx, ".pt2": export_program}
suffixes = pytest.mark.parametrize("suffix", EXPORTS)
ENTRY = NETWORKS["sampled input"]


@pytest.fixture(scope="module")
def small():
    return reduce_network(ENTRY.network(), ENTRY.layer, ENTRY.batch(), **ENTRY.sizes, progress=False)


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for suffix, export in EXPORTS.items():
        export(small, folder / f"net{suffix}", *ENTRY.batch(3), verbose=False)
    return folder


@suffixes
def test_what_a_file_holds(suffix, files, small, capsys):
    path = files / f"net{suffix}"
    main_exits_cleanly(["info", str(path)])
    text = capsys.readouterr().out
    numbers = sum(parameter.numel() for parameter in small.parameters())
    inputs = next(line for line in text.splitlines() if line.startswith("inputs"))
    assert "(batch, 5) float64" in inputs and "(batch, 4, 2) float64" in inputs
    assert "(batch, 3) float64" in text and f"{path.stat().st_size:,} bytes" in text
    kept = int(next(line for line in text.splitlines() if line.startswith("parameters")).split()[1].replace(",", ""))
    assert numbers <= kept <= numbers + 50  # times and step sizes come along
    for words in (
        "ONNX, opset 20" if suffix == ".onnx" else f"torch.export program of torch {torch.__version__}",
        "10 Tanh" if suffix == ".onnx" else "10 aten.tanh.default",
        "written by torchmor",
        "from a Parts",
        "layer 'ode': reduced ODE layer",
        "method='euler', options={'step_size': 0.1}",
        "state      10 -> 4",
        "input      2 channels",
        "method     basis balanced, selection omp, fit least_squares",
        "dz/dt = B_z z + B_u u + B_g1 g1 + b",
    ):
        assert words in text


def main_exits_cleanly(arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert not exit.value.code


@suffixes
@pytest.mark.parametrize("damage", ["truncated", "emptied", "altered"])
def test_damaged_files(suffix, damage, files, small, tmp_path):
    path = tmp_path / f"net{suffix}"
    data = (files / f"net{suffix}").read_bytes()
    number = small.stem.weight.detach().numpy().tobytes()[:8]
    assert number in data
    # ONNX has no checksums: what is altered there is no weight but the model's header
    altered = data.replace(number, bytes(8)) if suffix == ".pt2" else b"\xff" * 64 + data[64:]
    path.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"", "altered": altered}[damage])
    with pytest.raises(FileFormatError, match="export it again"):
        describe(path)


@pytest.mark.parametrize("suffix", exported_file.SUFFIXES)
def test_other_files(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_text("some text, longer than any header")
    with pytest.raises(FileFormatError, match=suffix):
        describe(path)
    with pytest.raises(FileNotFoundError):
        describe(tmp_path / f"missing{suffix}")


def test_files_of_others(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(4, 3),)), path)
    text = describe(path)
    assert "(4, 3) float32" in text and "parameters 8 numbers, 32 bytes" in text and "written without torchmor" in text


def test_single_step(small, tmp_path):
    step = single_step(small.ode).float()
    example = torch.tensor(0.1), torch.randn(3, 4), torch.randn(3, 2)
    export_onnx(step, tmp_path / "step.onnx", *example, verbose=False)
    text = describe(tmp_path / "step.onnx")
    assert "t () float32; z (batch, 4) float32; u (batch, 2) float32" in text
    assert "one step of a reduced ODE layer" in text


@pytest.mark.inductor
def test_compiled_package_is_read_without_running_it(tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    export_inductor(nn.Linear(3, 2), path, torch.ones(4, 3), verbose=False)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_: pytest.fail("loaded"))
    text = describe(path)
    for words in ("AOTInductor package for linux", "(batch, 3) float32", "(batch, 2) float32", "8 numbers, 32 bytes"):
        assert words in text


def test_reading_onnx_needs_no_package(files, monkeypatch):
    expected = describe(files / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert describe(files / "net.onnx") == expected
