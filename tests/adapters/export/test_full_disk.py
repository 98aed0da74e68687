"""On a full disk every writer raises OSError, and leaves the old file."""

import os
import resource

import pytest
import torch

from networks import dense
from torchmor.adapters import export_onnx, export_operators, export_program, reduce_network, save

WRITERS = {
    "save": (".safetensors", lambda small, path: save(small, path)),
    "export_program": (".pt2", lambda small, path: export_program(small.ode, path, torch.ones(2, 10), verbose=False)),
    "export_onnx": (".onnx", lambda small, path: export_onnx(small.ode, path, torch.ones(2, 10), verbose=False)),
    "npz": (".npz", lambda small, path: export_operators(small.ode, path)),
    "mat": (".mat", lambda small, path: export_operators(small.ode, path)),
}


@pytest.fixture(scope="module")
def small():
    sizes = {"state_dim": 4, "points": 5, "progress": False}
    return reduce_network(dense(options={"step_size": 0.5}), "ode", torch.randn(40, 5), **sizes)


@pytest.fixture
def full_disk():
    """No file may be longer than 200 bytes; Python ignores the signal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "export" in n else ()) for n in WRITERS])
def test_full_disk(name, small, tmp_path, full_disk):
    suffix, write = WRITERS[name]
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"old")
    full_disk()
    with pytest.raises(OSError, match="net") as caught:
        write(small, path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]
