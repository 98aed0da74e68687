"""Whole networks, full and reduced, to every target; what is refused, and that nothing is written then."""

import copy
import functools
import os
import sys

import onnx
import pytest
import torch
from torch import nn

from networks import NETWORKS
from torchmor.adapters import (
    ODELayer,
    export_executorch,
    export_inductor,
    export_onnx,
    export_program,
    reduce_network,
)
from torchmor.adapters.export import agreement as checks
from torchmor.adapters.export.graph import exportable, resized
from torchmor.engine.errors import ExportError, MissingPackageError, OutsideCalibrationWarning, ShapeError

pytestmark = pytest.mark.slow

TARGETS = {".pt2": export_program, ".onnx": export_onnx}
targets = pytest.mark.parametrize("suffix", TARGETS)
#: Those whose layer has fixed steps.
FIXED = [name for name in NETWORKS if name not in ("dense, adaptive", "callable input", "tied weights")]


@functools.cache
def reduced_once(name):
    entry = NETWORKS[name]
    return reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes, progress=False)


def reduced(name):
    return copy.deepcopy(reduced_once(name))


def precise(network, name, suffix):
    """The network in float64, or in float32 where ONNX Runtime has no float64 convolution, and what to expect."""
    if name == "convolutional" and suffix == ".onnx":
        network, example = in_float32(network, name)
        return network, example, 1e-5
    return network, NETWORKS[name].batch(3), 1e-12


def in_float32(network, name, batch=3):
    return copy.deepcopy(network).float(), tuple(argument.float() for argument in NETWORKS[name].batch(batch))


@targets
@pytest.mark.parametrize("name", FIXED)
def test_reduced_network(name, suffix, tmp_path):
    """Trajectories, samples of inputs, layers called twice: in float64 to rounding, checked on the spot."""
    small, example, bound = precise(reduced(name), name, suffix)
    found = TARGETS[suffix](small, tmp_path / f"net{suffix}", *example, verbose=False)
    assert found.batches == (3, 1, 6)
    assert found.relative < bound


@targets
@pytest.mark.parametrize("name", ["dense", "convolutional", "sampled input"])
def test_full_network_is_unrolled(name, suffix, tmp_path):
    """Law: a full ODELayer with fixed steps is exported with the numbers of torchdiffeq, to rounding."""
    network, example, bound = precise(NETWORKS[name].network(), name, suffix)
    found = TARGETS[suffix](network, tmp_path / f"net{suffix}", *example, verbose=False)
    assert found.batches == (3, 1, 6)
    assert found.relative < bound


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["convolutional", "sampled input"])
def test_inductor(name, tmp_path):
    small, example = in_float32(reduced(name), name)
    export_inductor(small, tmp_path / "net.pt2", *example, verbose=False)
    package = torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))
    for batch in (1, 5):
        _, arguments = in_float32(small, name, batch)
        torch.testing.assert_close(package(*arguments), small(*arguments).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own, as in adapters/export/executorch_file.py
@pytest.mark.parametrize("name", ["convolutional", "sampled input"])
def test_executorch(name, tmp_path):
    runtime = pytest.importorskip("executorch.runtime", reason="executorch is not installed")
    small, example = in_float32(reduced(name), name)
    export_executorch(small, tmp_path / "net.pte", *example, max_batch=8, verbose=False)
    method = runtime.Runtime.get().load_program(tmp_path / "net.pte").load_method("forward")
    for batch in (1, 8):
        _, arguments = in_float32(small, name, batch)
        torch.testing.assert_close(method.execute(arguments)[0], small(*arguments).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ExportError, match="expected max_batch of at least 3 for this example, got 2"):
        export_executorch(small, tmp_path / "other.pte", *example, max_batch=2)


def test_program_does_not_keep_the_example(tmp_path):
    example = torch.full((2, 5), 1234.5)
    export_program(nn.Linear(5, 3), tmp_path / "net.pt2", example, verbose=False)
    assert example.numpy().tobytes() not in (tmp_path / "net.pt2").read_bytes()
    assert torch.export.load(tmp_path / "net.pt2").example_inputs is None


# -- how -------------------------------------------------------------------------------------------------------------


def test_module_is_not_changed(tmp_path):
    small = reduced("convolutional").train()
    small.body.ode.adjoint = True
    small.body.ode.on_outside = "warn"
    small.body.ode.usual_distance = 0.0
    before, text = copy.deepcopy(small.state_dict()), repr(small)
    agreement = export_program(small, tmp_path / "net.pt2", *NETWORKS["convolutional"].batch(2), verbose=False)
    assert agreement.relative < 1e-12  # no warning either: on_outside stays behind
    assert small.training and all(parameter.requires_grad for parameter in small.parameters())
    assert repr(small) == text and small.body.ode.on_outside == "warn"
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in before.items())
    with pytest.warns(OutsideCalibrationWarning):
        small.eval()(*NETWORKS["convolutional"].batch(2))


def test_onnx_file_has_a_named_batch_its_opset_and_no_paths(tmp_path, capsys):
    path = tmp_path / "net.onnx"
    small, example = in_float32(reduced("sampled input"), "sampled input", 1)  # a batch of 1 is no constant
    export_onnx(small, path, *example)
    model = onnx.load(path)
    dimensions = [value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)]
    assert dimensions == ["batch"] * 3
    assert [opset.version for opset in model.opset_import] == [20]
    assert os.listdir(tmp_path) == ["net.onnx"]
    printed = capsys.readouterr().out
    for words in ("net.onnx: ONNX, opset 20, ", "against torch at batch 1, 4, 2", "max absolute error", "relative"):
        assert words in printed
    assert b".py" not in path.read_bytes()


def test_rows_of_other_batches():
    x, t = torch.tensor([[1.0], [2.0]]), torch.tensor(0.5)
    rows, unchanged = resized((x, t), 3)
    assert rows.flatten().tolist() == pytest.approx([1, 2, 0.8]) and unchanged is not x and unchanged == t
    assert resized((x,), 1)[0].tolist() == [[1.0]]
    assert resized((x.long(),), 3)[0].tolist() == [[1], [2], [1]]


# -- what is refused -------------------------------------------------------------------------------------------------


@targets
def test_adaptive_solvers(suffix, tmp_path, monkeypatch):
    """Before any tracing, with the layer's name, its solver, and steps to set if any were tried."""
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("traced"))
    entry = NETWORKS["dense, adaptive"]
    small = reduced("dense, adaptive")
    steps = small.ode.explain().steps
    tried = rf"set layer.method = '{steps.method}'; layer.options = .*: {steps.count} equal steps were tried"
    unknown = "it is not known how many equal steps do what it does"
    for network, advice in ((small, tried), (entry.network(), unknown)):
        with pytest.raises(ExportError, match=f"got layer 'ode' with method='dopri5'.*{advice}"):
            TARGETS[suffix](network, tmp_path / f"net{suffix}", *entry.batch(2))
    assert not os.listdir(tmp_path)


def test_solvers_and_options_of_torchdiffeq():
    network = NETWORKS["dense"].network()
    network.ode.options = {"perturb": True}
    with pytest.raises(ExportError, match=r"layer 'ode' with 'perturb', which needs torchdiffeq.*step_size"):
        exportable(network)
    network.ode.method, network.ode.options = "implicit_adams", {}
    with pytest.raises(ExportError, match="method='implicit_adams'"):
        exportable(network)


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Fixed(nn.Module):
    def forward(self, x):
        return x + torch.zeros(2, 1)


class Measured(nn.Module):
    def forward(self, x):
        return x + torch.zeros(len(x), 1)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            Branching(),
            r"its part '1', a Branching, branches on the values .*test_networks.py, line \d+: return x \+ 1 if x.sum",
        ),
        (
            Fixed(),
            r"its forward works for the batch of the example only.*: take the batch from the arguments, y.shape\[0\]",
        ),
    ],
)
def test_what_cannot_be_traced(module, words, tmp_path, capfd):
    """One short message with the part, the place and the cause, and nothing printed beside it."""
    network = nn.Sequential(nn.Linear(3, 3), module)
    with pytest.raises(ExportError, match=rf"with a dynamic batch.*{words}"):
        export_program(network, tmp_path / "net.pt2", torch.ones(2, 3))
    assert not os.listdir(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_length_as_a_number(tmp_path):
    """Law: len(x) is traced as x.shape[0]."""
    assert export_program(Measured(), tmp_path / "net.pt2", torch.ones(2, 3), verbose=False).batches == (2, 1, 5)


def test_wrong_examples(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(ShapeError, match=r"same batch, 1 or more, in dimension 0, got shapes \(2, 3\), \(4, 3\)"):
        export_program(nn.Linear(3, 3), path, torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(ShapeError, match="got shapes none"):
        export_program(nn.Linear(3, 3), path)
    with pytest.raises(ExportError, match=r"tensors, got a function: give inputs u\(t\) as samples"):
        export_program(nn.Linear(3, 3), path, lambda t: t)
    with pytest.raises(ExportError, match=r"expected an nn.Module to export, got a function"):
        export_program(lambda x: x, path, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"ends in .pt2, got 'net.pth'"):
        export_program(nn.Linear(3, 3), "net.pth", torch.ones(2, 3))
    with pytest.raises(ExportError, match="returns finite values for the example"):
        export_program(nn.Linear(3, 3), path, torch.full((2, 3), torch.nan))
    assert not os.listdir(tmp_path)


@targets
def test_disagreement_raises_and_keeps_the_old_file(suffix, tmp_path, monkeypatch):
    """A file that computes something else is not written."""
    path = tmp_path / f"net{suffix}"
    path.write_text("old")
    network = nn.Linear(3, 3)
    example = torch.ones(2, 3)
    monkeypatch.setattr(checks, "TOLERANCES", {torch.float32: -1.0})
    with pytest.raises(
        ExportError, match=r"relative error of at most .* for torch.float32, got .* nothing was written"
    ):
        TARGETS[suffix](network, path, example)
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_other_outputs_are_noticed():
    """The comparison sees errors at each batch, shapes, and failures."""
    module, example = nn.Linear(3, 3).double().requires_grad_(False), (torch.randn(2, 3).double(),)
    wrong = {
        "got 0.*at batch 5": lambda x: module(x) + (1e-3 if len(x) == 5 else 0),
        r"got \[\(\(2, 3\), torch.float32\)\]": lambda x: module(x).float(),
        r"fails in here at batch 1 \(ValueError: static": lambda x: module(x) if len(x) > 1 else static(),
    }
    assert checks.compare(lambda a: [module(*a)], module, example, "here").absolute == 0
    for words, run in wrong.items():
        with pytest.raises(ExportError, match=words):
            checks.compare(lambda a, run=run: [run(*a)], module, example, "here")


def static():
    raise ValueError("static")


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_missing_packages(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package} is missing: pip install 'torchmor\[export\]'"):
        export_onnx(nn.Linear(3, 3), tmp_path / "net.onnx", torch.ones(2, 3))


def test_missing_executorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(MissingPackageError, match=r"the package executorch, .* is missing: pip install executorch"):
        export_executorch(nn.Linear(3, 3), tmp_path / "net.pte", torch.ones(2, 3))


def test_user_code_may_export_a_network_itself():
    """A full layer with fixed steps can be traced, for torchdiffeq cannot."""
    layer = ODELayer(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), method="rk4").requires_grad_(False)
    x = torch.randn(2, 3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch}, None, None)[:1])
    torch.testing.assert_close(program.module()(x), layer(x))
