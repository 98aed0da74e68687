"""The benchmark's rows and floor, on few samples."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from torchmor.experiments import benchmark
from torchmor.experiments.data.random_images import random_images
from torchmor.experiments.measure.floor import Machine, measure_machine, needs
from torchmor.experiments.studies.networks import CONVOLUTIONAL

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'torchmor[export]'")


def test_every_row_is_timed_and_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "COARSE", benchmark.COARSE[3:4])
    monkeypatch.setattr(benchmark, "BATCHES", (1, 5))
    monkeypatch.setattr(benchmark, "compiled", benchmark.eager)  # a compiler takes long
    rows, arguments = benchmark.subjects(CONVOLUTIONAL[0], tmp_path, samples=700)
    found = benchmark.times(rows, arguments, Machine(1e10, 1e11, 1), (1, 5), repeats=1)
    assert len(found) == 2 * len(rows)
    assert {(row["part"], row["runtime"]) for row in found} >= {
        (part, runtime) for part in ("layer", "network") for runtime in ("torch", "compiled", "ONNX Runtime")
    }
    assert all(row["wall_s"] > 0 and row["threads"] == 1 for row in found)
    assert {row["name"] for row in found if row["floor_s"]} == {row.name for row in rows if row.floor}
    text = io.StringIO()
    for part in ("layer", "network"):
        benchmark.print_times(Console(file=text, width=120), [row for row in found if row["part"] == part])
    assert "Network a, whole network, 1 thread: ms (times the floor)" in text.getvalue()
    assert "folded" in text.getvalue()


def test_ways_to_run_agree(tmp_path):
    """All ways to run the same thing give the same result."""
    data = random_images(8)
    layer = CONVOLUTIONAL[0].network(data, 0).eval().requires_grad_(False).ode
    states = torch.randn(8, *(16, 14, 14))
    with torch.no_grad():
        exact = layer(states)
        torch.testing.assert_close(benchmark.TorchodeLayer(layer)(states), exact, rtol=0, atol=1e-2)
        layer.method, layer.options = "midpoint", {"step_size": 0.5}
        run = benchmark.in_onnx_runtime(layer, tmp_path, "layer", states[:3])(1)(states)
        (found,) = run()
        torch.testing.assert_close(torch.from_numpy(found), layer(states), rtol=0, atol=1e-5)


def test_the_floor_counts_what_cannot_be_avoided():
    """The larger of (parameters + input + output bytes) over bandwidth, and multiply–adds over their rate."""
    module = nn.Linear(6, 4)
    moved, operations = needs(module, torch.ones(10, 6))
    assert (moved, operations) == (4 * (6 * 4 + 4 + 10 * 6 + 10 * 4), 10 * 6 * 4)
    assert Machine(bytes_per_s=100.0, operations_per_s=1.0, threads=1).floor_s(50, 7) == 7.0
    assert Machine(bytes_per_s=1.0, operations_per_s=100.0, threads=1).floor_s(50, 7) == 50.0
    machine = measure_machine(1)
    assert machine.bytes_per_s > 1e8
    assert machine.operations_per_s > 1e8
