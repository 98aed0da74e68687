"""Every function of the catalogue, reduced, to the slow targets: `make test-export`."""

import pytest
import torch

from catalogue import FUNCTIONS
from reduced_entries import arguments_of, reduced_entry
from torchmor.adapters import export_executorch, export_inductor

pytestmark = pytest.mark.every_target
entries = pytest.mark.parametrize("name", FUNCTIONS)


@entries
@pytest.mark.inductor
def test_inductor(name, tmp_path):
    layer = reduced_entry(name)
    export_inductor(layer, tmp_path / "layer.pt2", *arguments_of(name, layer, 3), verbose=False)
    package = torch._inductor.aoti_load_package(str(tmp_path / "layer.pt2"))
    for batch in (1, 5):
        arguments = arguments_of(name, layer, batch, seed=batch)
        torch.testing.assert_close(package(*arguments), layer(*arguments).detach(), rtol=1e-11, atol=1e-11)


@entries
@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own, as in adapters/export/executorch_file.py
def test_executorch(name, tmp_path):
    runtime = pytest.importorskip("executorch.runtime", reason="executorch is not installed")
    layer = reduced_entry(name).float()
    export_executorch(layer, tmp_path / "layer.pte", *arguments_of(name, layer, 3), max_batch=8, verbose=False)
    method = runtime.Runtime.get().load_program(tmp_path / "layer.pte").load_method("forward")
    for batch in (1, 8):
        arguments = arguments_of(name, layer, batch, seed=batch)
        torch.testing.assert_close(method.execute(arguments)[0], layer(*arguments).detach(), rtol=1e-4, atol=1e-4)
