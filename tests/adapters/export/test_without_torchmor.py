"""Exported files run without torchmor, and the ONNX file without torch."""

import json
import subprocess
import sys

import pytest
import torch

from networks import NETWORKS
from torchmor.adapters import export_inductor, export_onnx, export_program, reduce_network

pytestmark = pytest.mark.slow

BLOCKED = "import json, sys\nsys.modules.update(dict.fromkeys({missing!r}))\n"
RUNNERS = {
    "onnx": """
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
x = numpy.linspace(-1, 1, 35).reshape(7, 5)
print(json.dumps(session.run(None, {session.get_inputs()[0].name: x})[0].tolist()))
""",
    "program": """
import torch
x = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5)
print(json.dumps(torch.export.load(sys.argv[1]).module()(x).tolist()))
""",
    "inductor": """
import torch
x = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5)
print(json.dumps(torch._inductor.aoti_load_package(sys.argv[1])(x).tolist()))
""",
}
EXPORTS = {"onnx": (export_onnx, ".onnx"), "program": (export_program, ".pt2"), "inductor": (export_inductor, ".pt2")}
OURS = ("torchmor", "torchmor.adapters", "pymor", "scipy", "torchdiffeq", "safetensors")


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=[pytest.mark.inductor] * (target == "inductor")) for target in RUNNERS]
)
def test_runs_alone(target, tmp_path):
    entry = NETWORKS["dense"]
    small = reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes, progress=False)
    export, suffix = EXPORTS[target]
    path = tmp_path / f"net{suffix}"
    export(small, path, *entry.batch(3), verbose=False)
    script = BLOCKED.format(missing=OURS + (("torch",) if target == "onnx" else ())) + RUNNERS[target]
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    x = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout), dtype=x.dtype), small(x), rtol=1e-12, atol=1e-12)
