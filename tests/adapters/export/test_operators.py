"""`export_operators`: the numbers of a reduced layer, and the equation that they solve."""

import copy
import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from networks import DOUBLE, NETWORKS, dense
from torchmor.adapters import export_operators, reduce_network
from torchmor.engine import functions

networks = pytest.mark.parametrize("name", NETWORKS)
WORDS = {"equation", "shapes", "solver", "state_shape"}


def layer_of(name):
    return copy.deepcopy(reduced_once(name))


@functools.cache
def reduced_once(name):
    entry = NETWORKS[name]
    return reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes).get_submodule(entry.layer)


def exported(layer, path):
    export_operators(layer, path)
    if path.suffix == ".npz":
        with np.load(path) as file:  # without pickle
            return dict(file)
    return {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}


def right_hand_side(entries, z, u, t):
    """dz/dt by the equation in words, read as a program."""
    names = dict(entries, z=z, u=u, t=t, **functions.VALUES)
    for line in str(entries["equation"]).splitlines():
        name, value = line.split(" = ", 1)
        if name not in ("z(t0)", "y(t)", "z"):
            program = re.sub(r"\b([AB]\w*) (\w+)", r"\1 @ \2", value)
            names[{"dz/dt": "dz"}.get(name, name)] = eval(program, {}, names)
    return names["dz"]


@networks
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_equation_in_words_is_the_layer(name, suffix, tmp_path):
    """Law: the equation, evaluated with the arrays of the file, is the reduced ODE function."""
    layer = layer_of(name)
    entries = exported(layer, tmp_path / f"operators{suffix}")
    if suffix == ".mat":
        entries = {key: value[0] if key in WORDS else value for key, value in entries.items()}
    z, u = torch.randn(3, layer.ode.state_size, **DOUBLE), torch.randn(3, layer.ode.input_size, **DOUBLE)
    expected = layer.ode(z, u, 0.3).detach().numpy()
    for i in range(3):
        vectors = [vector.numpy() for vector in (z[i], u[i], torch.tensor([0.3], **DOUBLE))]
        if suffix == ".mat":
            vectors = [vector[:, np.newaxis] for vector in vectors]  # as MATLAB has them
        np.testing.assert_allclose(right_hand_side(entries, *vectors).ravel(), expected[i], rtol=1e-12, atol=1e-13)


@networks
def test_encoding_and_decoding(name, tmp_path):
    layer = layer_of(name)
    entries = exported(layer, tmp_path / "operators.npz")
    kept = name == "state kept"
    assert {"E", "e", "D", "d"} & set(entries) == (set() if kept else {"E", "e", "D", "d"})
    words = str(entries["equation"]).splitlines()
    assert (words[0], "y(t) = D z(t) + d" in words) == (("z = y", False) if kept else ("z(t0) = E y(t0) + e", True))
    if not kept:
        y0 = torch.randn(*layer.state_shape, **DOUBLE)
        z0 = entries["E"] @ y0.numpy().ravel() + entries["e"]
        np.testing.assert_allclose(z0, layer.encode(y0.flatten()).detach(), rtol=1e-13, atol=1e-14)
        y = (entries["D"] @ z0 + entries["d"]).reshape(layer.state_shape)
        projected = layer.decode(layer.encode(y0.flatten())).detach().reshape(layer.state_shape)
        np.testing.assert_allclose(y, projected, rtol=1e-13, atol=1e-14)


@networks
def test_both_formats_hold_the_same(name, tmp_path):
    layer = layer_of(name)
    npz, mat = (exported(layer, tmp_path / f"operators{suffix}") for suffix in (".npz", ".mat"))
    assert npz.keys() == mat.keys() >= WORDS | {"times"}
    for key, array in npz.items():
        if key in WORDS:
            assert mat[key].item() == array.item()
        else:
            assert array.dtype == mat[key].dtype == np.float64
            np.testing.assert_array_equal(mat[key], array[:, np.newaxis] if array.ndim == 1 else array)


@networks
def test_shapes_in_words(name, tmp_path):
    layer = layer_of(name)
    entries = exported(layer, tmp_path / "operators.npz")
    shapes = dict(line.split(": ") for line in str(entries["shapes"]).splitlines())
    assert shapes == {key: " x ".join(map(str, array.shape)) for key, array in entries.items() if key not in WORDS}
    assert str(entries["state_shape"]) == " x ".join(map(str, layer.state_shape))
    assert entries["times"].tolist() == list(layer.t) and layer.method in str(entries["solver"])


def test_names_of_the_classic_layer(tmp_path):
    entries = exported(layer_of("dense"), tmp_path / "operators.npz")
    assert str(entries["equation"]).splitlines() == [
        "z(t0) = E y(t0) + e",
        "a1 = A1_z z + b1",
        "g1 = tanh(a1)",
        "dz/dt = B_g1 g1 + b",
        "y(t) = D z(t) + d",
    ]
    assert entries["E"].shape == (4, 10) and entries["A1_z"].shape == (5, 4) and entries["B_g1"].shape == (4, 5)


def test_names_of_gates_inputs_and_times(tmp_path):
    entries = exported(layer_of("trajectories"), tmp_path / "operators.npz")
    text = str(entries["equation"])
    for words in ("a2_1 = ", "a2_2 = ", "A2_1_g1 g1", "A2_1_t t", "tanh(a2_1) * sigmoid(a2_2)", "B_z z"):
        assert words in text
    assert entries["A2_1_g1"].shape == entries["A2_2_g1"].shape == (7, 6) and entries["A2_1_t"].shape == (7, 1)
    assert entries["times"].tolist() == [1.0, 0.7, -0.5]
    assert "B_u u" in str(exported(layer_of("sampled input"), tmp_path / "operators.npz")["equation"])


def test_low_precision_is_written_as_float64(tmp_path):
    layer = layer_of("dense").to(torch.bfloat16)
    entries = exported(layer, tmp_path / "operators.npz")
    np.testing.assert_array_equal(entries["E"], layer.encode.weight.detach().double())
    assert {array.dtype for key, array in entries.items() if key not in WORDS} == {np.dtype(np.float64)}


def test_trained_operators_are_exported(tmp_path):
    layer = layer_of("dense")
    torch.nn.init.ones_(layer.encode.weight)
    assert (exported(layer, tmp_path / "operators.npz")["E"] == 1).all()


@pytest.mark.parametrize("path", ["operators", "operators.txt", "operators.npz.zip"])
def test_other_suffix(path, tmp_path):
    with pytest.raises(ValueError, match=r"expected a path that ends in \.npz or \.mat, got '.*operators"):
        export_operators(layer_of("dense"), str(tmp_path / path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("module", [dense(), dense().ode])
def test_other_module(module, tmp_path):
    with pytest.raises(TypeError, match=r"expected a ReducedODELayer, got a \w+: pass the layer, small\.ode"):
        export_operators(module, tmp_path / "operators.npz")


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_crash_while_writing_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    layer, path = layer_of("dense"), tmp_path / f"a file with spaces{suffix}"
    export_operators(layer, str(path))
    before, write_bytes = path.read_bytes(), Path.write_bytes

    def half(temporary, data):
        write_bytes(temporary, data[:50])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        export_operators(layer, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
