"""Every function of the catalogue, reduced, as .pt2 and ONNX: equal to torch at other batches than the example's."""

import onnxruntime
import pytest
import torch

from catalogue import FUNCTIONS
from reduced_entries import arguments_of, reduced_entry
from torchmor.adapters import export_onnx, export_program
from torchmor.adapters.export import onnx_file, program_file
from torchmor.adapters.export.graph import trace
from torchmor.engine.errors import ExportError
from torchmor.engine.tableaux import TABLEAUX

pytestmark = pytest.mark.slow

#: ONNX Runtime has no float64 error function.
WITH_ERF = ("GELU", "convolution in 1d")

#: Methods with one or two evaluations a step, with which every function is exported, and all others: a graph takes
#: as long as it has evaluations.
FEW = tuple(name for name, tableau in TABLEAUX.items() if len(tableau.b) <= 2)
MANY = tuple(name for name in TABLEAUX if name not in FEW)


@pytest.fixture(autouse=True)
def one_trace(monkeypatch):
    """Both files of an entry are written from one graph: that of the same layer at the same example."""
    traced = {}

    def once(module, example):
        key = tuple((tensor.dtype, tensor.shape) for tensor in example)
        if key not in traced:
            traced[key] = trace(module, example)
        return traced[key]

    for file in (program_file, onnx_file):
        monkeypatch.setattr(file, "trace", once)


def run_onnx(path, arguments):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), arguments, strict=True)}
    (value,) = session.run(None, feed)
    return torch.from_numpy(value)


def assert_close(value, expected, rtol):
    """Relative to the largest magnitude."""
    torch.testing.assert_close(value, expected, rtol=0, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "methods"),
    [*((name, FEW) for name in FUNCTIONS), *(("classic", (method,)) for method in MANY)],
    ids=lambda value: value if isinstance(value, str) else "few evaluations" if value == FEW else value[0],
)
def test_exported_entry_equals_torch(name, methods, tmp_path):
    """Law: the files, at batches 1 and 5, equal the layer exported with an example of batch 3; in float64 to 1e-12."""
    layer = reduced_entry(name, methods)
    export_program(layer, tmp_path / "layer.pt2", *arguments_of(name, layer, 3), verbose=False)
    program = torch.export.load(tmp_path / "layer.pt2").module()
    path, in_onnx = tmp_path / "layer.onnx", layer
    if name in WITH_ERF:
        with pytest.raises(ExportError, match=r"Erf"):
            export_onnx(layer, path, *arguments_of(name, layer, 3), verbose=False)
        assert not path.exists()
        in_onnx = reduced_entry(name, methods).float()
    export_onnx(in_onnx, path, *arguments_of(name, in_onnx, 3), verbose=False)
    for batch in (1, 5):
        arguments = arguments_of(name, layer, batch, seed=batch)
        expected = layer(*arguments).detach()
        assert_close(program(*arguments), expected, 1e-14)
        arguments = arguments_of(name, in_onnx, batch, seed=batch)
        assert_close(run_onnx(path, arguments), in_onnx(*arguments).detach(), 1e-5 if name in WITH_ERF else 1e-12)
