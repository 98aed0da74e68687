"""What each part needs installed, in fresh processes; import-linter checks the source."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from repository import module_name, modules
from torchmor.adapters import ODELayer, reduce_network, save

pytestmark = pytest.mark.slow

NOT_FOR_INFERENCE = ("pymor", "scipy", "torchdiffeq", "matplotlib")
TORCH = ("torch", "torchdiffeq", "functorch", "torchgen")

# The reduced layer of a file, run on inputs given by a formula; the output's digits are exact.
LOAD_AND_RUN = """
import json, torch
from torchmor.adapters import load
layer = load(sys.argv[1])
y0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 8)
u = torch.linspace(1, -1, 18, dtype=torch.float64).reshape(3, 3, 2)
print(json.dumps(layer(y0, u).tolist()))
"""


class RateNetwork(nn.Module):
    """y' = −y + tanh(A y) + B u."""

    def __init__(self, width, inputs):
        super().__init__()
        self.recurrent = nn.Linear(width, width)
        self.drive = nn.Linear(inputs, width, bias=False)

    def forward(self, t, y, u):
        return -y + torch.tanh(self.recurrent(y)) + self.drive(u)


def run(script: str, *arguments: str, missing: tuple[str, ...] = ()) -> str:
    """Run a script where ``missing`` packages cannot be imported; return what it prints."""
    script = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n{script}"
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    disabled = {"PYMOR_CONFIG_DISABLE": "torch"} if "torch" in missing else {}
    done = subprocess.run(command, env=os.environ | disabled, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_engine_modules_import_without_torch():
    script = "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = [module_name(path) for path in modules("engine")]
    assert "torchmor.engine.stages" in names
    run(script, *names, missing=TORCH)


def test_adapters_names_are_lazy():
    """Importing the package loads none of what inference does without, although all are installed."""
    loaded = run("import torchmor.adapters; print(*sys.modules, sep='\\n')").splitlines()
    assert not {name.split(".")[0] for name in loaded} & {*NOT_FOR_INFERENCE}


def test_public_names_resolve():
    run("import torchmor.adapters as a; assert a.__all__; [getattr(a, name) for name in a.__all__]")


@pytest.mark.parametrize("output", ["final", "trajectory"])
def test_load_and_fixed_step_forward_need_torch_only(tmp_path, output):
    """A saved layer gives the same bits where pyMOR, SciPy and torchdiffeq are missing."""
    layer = ODELayer(RateNetwork(8, 2), t=(0.0, 0.5, 1.0), method="rk4", output=output).double()
    calibration = (torch.randn(20, 8, dtype=torch.float64), torch.randn(20, 3, 2, dtype=torch.float64))
    classic = {"basis": "pod", "selection": "deim", "fit": "interpolation"}
    reduced = reduce_network(layer, "", calibration, state_dim=4, points=6, **classic, progress=False)
    path = str(tmp_path / "layer.safetensors")
    save(reduced, path)
    elsewhere = json.loads(run(LOAD_AND_RUN, path, missing=NOT_FOR_INFERENCE))

    y0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 8)
    u = torch.linspace(1, -1, 18, dtype=torch.float64).reshape(3, 3, 2)
    assert elsewhere == reduced(y0, u).tolist()
