"""`save` and `load`: the same bits anywhere, and clear errors for anything that is not such a file."""

import copy
import functools
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from networks import DOUBLE, NETWORKS, Tanh, chain, dense
from torchmor.adapters import ODELayer, ReducedODELayer, load, reduce_network, save
from torchmor.adapters.layers import files
from torchmor.adapters.layers.files import FORMAT, VERSION, read
from torchmor.engine.errors import FileFormatError, NoRecordError, UnknownLayerError
from torchmor.engine.explanation import Trial
from torchmor.engine.findings import Clock, ConfirmedLoss, TimedCall, Tuning

TESTS = Path(__file__).resolve().parents[2]
SIZES = {"state_dim": 4, "points": 5}
networks = pytest.mark.parametrize("name", NETWORKS)


def reduced(name="dense"):
    return copy.deepcopy(reduced_once(name))


@functools.cache
def reduced_once(name):
    entry = NETWORKS[name]
    return reduce_network(entry.network(), entry.layer, entry.batch(), **entry.sizes)


def state_of(layer, batch=3):
    y0 = torch.randn(batch, *layer.state_shape, **DOUBLE).to(layer.ode.output.weight.dtype)
    return (y0,) if layer.input_use == "none" else (y0, lambda t: torch.stack([t, t.cos()]).expand(batch, 2))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a folder with spaces" / "small.safetensors"


@pytest.fixture(autouse=True)
def folder(path):
    path.parent.mkdir()


@pytest.fixture
def saved(path):
    """A saved network, as bytes."""
    save(reduced(), path)
    return path.read_bytes()


def run(code, *arguments, python_path=""):
    environment = os.environ | {"PYTHONPATH": str(python_path)}
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the same bits --------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits(name, dtype, path):
    """Law: the loaded layer, and the network with it, return the same bits as the saved ones."""
    entry = NETWORKS[name]
    small = reduced(name).to(dtype)
    layer = small.get_submodule(entry.layer)
    save(small, path)
    loaded = load(path)
    assert type(loaded) is ReducedODELayer
    arguments = state_of(layer)
    assert torch.equal(loaded(*arguments), layer(*arguments))
    assert loaded.settings == layer.settings and loaded.state_shape == layer.state_shape
    assert repr(loaded) == repr(layer) and str(loaded.explain()) == str(layer.explain())
    if entry.layer:
        original = entry.network().to(dtype)
        network = load(path, network=original)
        arguments = tuple(argument.to(dtype) for argument in entry.batch(3, seed=9))
        assert torch.equal(network(*arguments), small(*arguments))
        assert isinstance(original.get_submodule(entry.layer), ODELayer), "the network passed in is not changed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype, path):
    small = reduced().to(dtype)
    save(small.ode, path)
    (y0,) = state_of(small.ode)
    assert load(path).ode.output.weight.dtype == dtype and torch.equal(load(path)(y0), small.ode(y0))


def test_layer_alone(path):
    layer = reduced("layer alone")
    save(layer, str(path))
    (y0,) = state_of(layer)
    assert torch.equal(load(str(path))(y0), layer(y0))
    with pytest.raises(UnknownLayerError, match=r"file of a whole network, got a layer alone .* place it yourself"):
        load(path, network=NETWORKS["dense"].network())


@networks
def test_what_was_found_out_survives(name, path):
    """The curve, singular values, points and the shape of the state: all that a picture needs."""
    layer = reduced(name).get_submodule(NETWORKS[name].layer)
    told = layer.explanation
    assert told.state_shape == layer.state_shape and told.singular_values.keys() == layer.singular_values.keys()
    curve = (Trial("full", "dopri5", 9.0, 0.0), Trial("state 4, points 5", "1 Euler step", 1.0, 0.1))
    clock = Clock(
        (TimedCall("reduced", "1 Euler step", "layer", 1, 1.0), TimedCall("full", "rk4", "layer", 1, 2.0)), 1, "cpu"
    )
    layer.explanation = replace(
        told,
        curve=curve,
        chosen=curve[1],
        confirmed=ConfirmedLoss(0.1, 0.2, 0.95, 30),
        tuning=Tuning(0.2, 0.1, 0.1, 10, 100, 1.0, "1 RK4 step", "mix", 1e-3),
        clock=clock,
    )
    save(layer, path)
    again = load(path)
    assert again.explain() == layer.explain() and str(again.explain()) == str(layer.explain())
    for part, points in layer.points.items():
        assert np.array_equal(again.points[part], points)
    for part, values in layer.singular_values.items():
        assert np.array_equal(again.singular_values[part], values[:512])


def test_trained_layer_is_saved_as_it_is(path):
    layer = reduced().ode
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    layer.method, layer.options, layer.t = "midpoint", {"step_size": 0.1}, (1.0, 0.3, 0.0)
    save(layer, path)
    loaded = load(path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), layer.parameters(), strict=True))
    assert (loaded.method, loaded.options, loaded.t) == ("midpoint", {"step_size": 0.1}, (1.0, 0.3, 0.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"jump_t": torch.tensor([0.25, 0.5]), "max_num_steps": 1000}},
        {"options": {"first_step": np.float64(0.1), "safety": np.float32(0.5), "max_num_steps": np.int64(99)}},
        {"t": torch.linspace(0, 1, 4), "rtol": np.float64(1e-4), "atol": torch.tensor(1e-5)},
    ],
)
def test_settings_of_numpy_and_torch_numbers(settings, path):
    (x,) = NETWORKS["dense"].batch()
    small = reduce_network(dense(method="dopri5", **settings).double(), "ode", x, **SIZES)
    save(small, path)
    (y0,) = state_of(small.ode)
    loaded = load(path)
    assert torch.equal(loaded(y0), small.ode(y0))
    for key in ("t", "rtol", "atol"):
        assert getattr(loaded, key) == getattr(small.ode, key)
    assert loaded.options.keys() == settings.get("options", {}).keys()
    for key, value in settings.get("options", {}).items():
        np.testing.assert_array_equal(loaded.options[key], value)


def test_loaded_layer_can_be_trained_and_saved_again(saved, path):
    layer = load(path)
    layer(*state_of(layer)).sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())
    again = path.with_name("again")
    save(layer, again)
    assert torch.equal(load(again).decode.weight, layer.decode.weight)
    with pytest.raises(NoRecordError, match="loaded from a file"):
        _ = layer.bases
    assert layer.rom.solution_space.dim == 4


def test_loaded_layer_does_not_live_in_the_file(saved, path):
    layer = load(path)
    before = layer.decode.weight.clone()
    with path.open("r+b") as file:
        file.write(b"\0" * len(saved))
    assert torch.equal(layer.decode.weight, before)


# -- networks -------------------------------------------------------------------------------------------------------


def test_several_layers(path):
    a, b = ODELayer(Tanh(10), method="rk4"), ODELayer(Tanh(10), method="heun2")
    network, (x,) = chain(stem=nn.Linear(5, 10), a=a, b=b).double(), NETWORKS["dense"].batch()
    small = reduce_network(reduce_network(network, "a", x, **SIZES), "b", x, state_dim=3, points=4)
    save(small, path)
    assert torch.equal(load(path, network=network)(x), small(x))
    with pytest.raises(UnknownLayerError, match=r"one reduced layer, got 'a', 'b' .*load\(path, network=network\)"):
        load(path)


def test_shared_layers_and_tied_weights_stay_so(path):
    for name in ("called twice", "tied weights"):
        save(reduced(name), path)
        loaded = load(path, network=NETWORKS[name].network())
        if name == "called twice":
            assert loaded.ode is loaded.again and isinstance(loaded.ode, ReducedODELayer)
        else:
            assert loaded.head is loaded.stem and loaded.shift.tolist() == [0, 1, 2, 3, 4]


def test_training_flags_are_those_of_the_network(path):
    save(reduced(), path)
    network = NETWORKS["dense"].network().train()
    network.ode.eval()
    loaded = load(path, network=network)
    assert loaded.training and loaded.stem.training and not loaded.ode.training


def test_saved_dtype_wins(path):
    small = reduced()
    save(small, path)
    (x,) = NETWORKS["dense"].batch(3)
    assert torch.equal(load(path, network=NETWORKS["dense"].network().float())(x), small(x))


def test_network_that_does_not_fit(path):
    save(reduced(), path)
    other = chain(stem=nn.Linear(6, 10), ode=ODELayer(Tanh(10)), head=nn.Linear(10, 3))
    with pytest.raises(UnknownLayerError, match=r"is not the one that was saved(.|\n)*size mismatch for stem.weight"):
        load(path, network=other)
    with pytest.raises(UnknownLayerError, match="expected a network with a module 'ode', got one without"):
        load(path, network=nn.Linear(2, 2))
    with pytest.raises(UnknownLayerError, match=r'Unexpected key.*"head'):
        load(path, network=chain(stem=nn.Linear(5, 10), ode=ODELayer(Tanh(10))))


# -- what is in the file --------------------------------------------------------------------------------------------


def test_file_is_safetensors_and_json_and_nothing_else(saved, path):
    length = int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert list(metadata) == ["torchmor"]
    config = json.loads(metadata["torchmor"])
    assert config["format"] == FORMAT and config["version"] == VERSION == 1 and set(config["layers"]) == {"ode"}
    ends = [entry["data_offsets"][1] for entry in header.values()]
    assert len(saved) == 8 + length + max(ends), "the rest is the tensors' bytes"
    assert {entry["dtype"] for entry in header.values()} == {"F64"}
    config, tensors = read(path)
    assert config["layers"]["ode"]["state_dim"] == 4 and set(tensors) == set(reduced().state_dict())


def test_same_layer_gives_the_same_file(saved, path):
    save(reduced(), path)
    assert path.read_bytes() == saved


def test_permissions_respect_the_umask(path):
    umask = os.umask(0o027)
    try:
        save(reduced(), path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    save(reduced(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a file that exists keeps its mode"


ALONE = """
import sys
from dataclasses import replace
import torch, safetensors.torch
from torchmor.adapters import load

layer = load(sys.argv[1])
tensors = safetensors.torch.load_file(sys.argv[2])
assert torch.equal(layer(tensors["y0"]), tensors["y"])
assert "tanh" in str(layer.explain())
heavy = {name.partition(".")[0] for name in sys.modules} & {"pymor", "scipy", "torchdiffeq", "networks", "pickle5"}
assert not heavy, heavy
print("fine")
"""
WITH_NETWORK = """
import sys
from dataclasses import replace
import torch, safetensors.torch
from networks import NETWORKS
from torchmor.adapters import load

entry = NETWORKS[sys.argv[3]]
network = load(sys.argv[1], network=entry.network())
tensors = safetensors.torch.load_file(sys.argv[2])
assert torch.equal(network(tensors["y0"]), tensors["y"])
print("fine")
"""


@pytest.mark.slow
def test_in_a_new_process_without_the_network(path):
    """Loading and running a fixed-step layer imports torch and safetensors: no pyMOR, SciPy or torchdiffeq."""
    small = reduced()
    save(small, path)
    (y0,) = state_of(small.ode)
    tensors = path.with_name("tensors")
    safetensors.torch.save_file({"y0": y0, "y": small.ode(y0).detach()}, tensors)
    assert run(ALONE, path, tensors) == "fine\n"


@pytest.mark.parametrize("name", ["dense, adaptive"])
@pytest.mark.slow
def test_in_a_new_process_with_the_network(name, path):
    small, (x,) = reduced(name), NETWORKS[name].batch(3)
    save(small, path)
    tensors = path.with_name("tensors")
    safetensors.torch.save_file({"y0": x, "y": small(x).detach()}, tensors)
    assert run(WITH_NETWORK, path, tensors, name, python_path=TESTS) == "fine\n"


# -- what cannot be saved -------------------------------------------------------------------------------------------


def test_nothing_to_save(path):
    for module in (NETWORKS["dense"].network(), nn.Linear(2, 2)):
        with pytest.raises(UnknownLayerError, match="without: reduce it with reduce_network first"):
            save(module, path)
    assert not path.exists()


def test_functions_among_the_options(path):
    small = reduced("dense, adaptive")
    small.ode.options = {"norm": torch.linalg.vector_norm}
    with pytest.raises(ValueError, match=r"got options\['norm'\] = .*cannot be saved: remove it before saving"):
        save(small, path)
    assert os.listdir(path.parent) == []


def test_state_that_is_no_tensor(path):
    class Stateful(nn.Identity):
        def get_extra_state(self):
            return {"anything": 1}

        def set_extra_state(self, state):
            pass

    small = chain(extra=Stateful(), ode=reduced().ode)
    with pytest.raises(ValueError, match=r"tensors in the network's state, got a dict as 'extra\._extra_state'"):
        save(small, path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("crash", [OSError("no space left"), KeyboardInterrupt(), RuntimeError("half")])
def test_crash_while_writing_leaves_the_old_file(saved, path, monkeypatch, crash):
    small, write_bytes = reduced(), Path.write_bytes

    def half(temporary, data):
        write_bytes(temporary, data[:50])
        raise crash

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(crash)):
        save(small, path)
    assert path.read_bytes() == saved and os.listdir(path.parent) == [path.name]


def test_missing_folder(path):
    with pytest.raises(FileNotFoundError):
        save(reduced(), path.parent / "missing" / "file")


# -- what cannot be loaded ------------------------------------------------------------------------------------------


def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"small\.safetensors"):
        load(path)
    with pytest.raises(IsADirectoryError):
        load(path.parent)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 0.3, 0.6, 0.95, -1])
def test_truncated_file(saved, path, length):
    path.write_bytes(saved[: int(length * len(saved)) if isinstance(length, float) else length])
    with pytest.raises(FileFormatError, match=r"expected a whole safetensors file, got '.*', which is truncated or of"):
        load(path)


def test_one_altered_bit_anywhere(saved, path):
    generator = np.random.default_rng(0)
    length = int.from_bytes(saved[:8], "little")
    places = [*range(16), *generator.integers(8, 8 + length, 80), *generator.integers(8 + length, len(saved), 30)]
    for place in places:
        altered = bytearray(saved)
        altered[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(altered)
        with pytest.raises(FileFormatError, match=r"small\.safetensors"):
            load(path)


def test_altered_number(saved, path):
    altered = bytearray(saved)
    altered[-1] ^= 1
    path.write_bytes(altered)
    with pytest.raises(FileFormatError, match=r"was altered after it was saved: its checksum does not fit; copy it"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"{}", np.random.default_rng(0).bytes(3000), b"PK\x03\x04" + bytes(100)])
def test_file_of_another_kind(path, content):
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="of another kind"):
        load(path)


def test_pickles_are_not_read(path):
    torch.save(reduced(), path)
    with pytest.raises(FileFormatError, match="of another kind"):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors_file(path, metadata):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(FileFormatError, match="expected a file written by torchmor's save, got the safetensors file"):
        load(path)


def forge(path, change):
    """Write a file with a configuration or tensors that `save` does not write, and a checksum that fits."""
    config, tensors = read(path)
    tensors = dict(tensors)
    config = change(config, tensors) or config
    if isinstance(config, dict):
        config["sha256"] = files._digest(config, tensors)
    safetensors.torch.save_file(tensors, path, {"torchmor": json.dumps(config)})


def changed(*keys, **values):
    def change(config, tensors):
        for key in keys:
            config = config[key]
        config.update(values)

    return change


FUNCTION = {"function": "os.system", "operands": ["%0"], "parameters": {}}
FORGED = {
    "newer": (changed(version=2), "expected format version 1, got 2 in .*: update torchmor to read it"),
    "older": (changed(version=0), "got 0 in .*: save it again with this torchmor"),
    "no version": (changed(version="x"), "configuration .* is damaged"),
    "no layers": (changed(layers={}), "no layers"),
    "layers of another type": (changed(layers=[1]), "expected an object as the configuration.layers, got a list"),
    "layer of another type": (changed("layers", ode=None), r"expected an object as the configuration.layers\['ode'\]"),
    "other sizes": (changed("layers", "ode", state_dim=5), "layer 'ode' is damaged"),
    "other shape": (changed("layers", "ode", state_shape=[3]), "size mismatch"),
    "huge": (changed("layers", "ode", state_shape=[10**15]), "damaged"),
    "other method": (changed("layers", "ode", "settings", method="magic"), "expected method to be one of"),
    "other setting": (changed("layers", "ode", "settings", magic=1), "damaged"),
    "other function": (
        changed("layers", "ode", "ode", expressions=[{"arity": 1, "instructions": [FUNCTION]}]),
        "expected a primitive, got 'os.system'",
    ),
    "other explanation": (changed("layers", "ode", explanation={"a": 1}), "damaged"),
    "points that are not there": (
        changed("layers", "ode", "explanation", points={"g1": [10]}),
        "expected points of 'g1' among its 10 components, got others",
    ),
    "points of another stage": (changed("layers", "ode", "explanation", points={"g7": [0]}), "damaged"),
    "points of another type": (changed("layers", "ode", "explanation", points={"g1": [0.5]}), "damaged"),
    "singular values of another type": (
        changed("layers", "ode", "explanation", singular_values={"state": ["1"]}),
        "damaged",
    ),
    "explanation of other states": (
        changed("layers", "ode", "explanation", state_shape=[5, 2]),
        r"expected an explanation of states of shape \(10,\), got \(5, 2\)",
    ),
    "list": (lambda config, tensors: [1], "damaged"),
    "missing tensor": (lambda config, tensors: tensors.__delitem__("ode.encode.weight"), "Missing key"),
    "another tensor": (lambda config, tensors: tensors.update({"ode.x": torch.ones(1)}), "Unexpected key"),
    "tensor of another type": (
        lambda config, tensors: tensors.update({"ode.ode.output.weight": torch.ones(4, 5, dtype=torch.int64)}),
        "damaged",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_file_that_save_did_not_write(saved, path, case):
    change, text = FORGED[case]
    forge(path, change)
    with pytest.raises(FileFormatError, match=text):
        load(path)


def instructions(*program):
    names = ("function", "operands", "parameters")
    return [{"arity": 1, "instructions": [dict(zip(names, one, strict=True)) for one in program]}]


def setting(**values):
    return changed("layers", "ode", "settings", **values)


def of_ode(**values):
    return changed("layers", "ode", "ode", **values)


def option(name, value, method="dopri5"):
    return setting(method=method, options={name: value})


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


ABSURD = {
    "version is infinite": (changed(version=float("inf")), "version inf"),
    "version is true": (changed(version=True), "version True"),
    "another format": (changed(format="other"), "expected the format 'torchmor reduced ODE layers', got 'other'"),
    "an unknown entry": (changed(extra=1), "got the unknown 'extra'"),
    "half of a surrogate pair": (changed(format="\ud800"), r"expected a text as the configuration\.format"),
    "deep": (changed("layers", "ode", explanation={"a": nested(60)}), "lists in lists in lists"),
    "too deep for JSON": (lambda config, tensors: nested(900), "damaged"),
    "layer without settings": (
        lambda config, tensors: config["layers"]["ode"].__delitem__("settings"),
        "got none of sett",
    ),
    "infinite distance": (changed("layers", "ode", usual_distance=float("inf")), "expected a finite number"),
    "negative distance": (changed("layers", "ode", usual_distance=-1.0), "expected a usual distance of at least 0"),
    "input without channels": (changed("layers", "ode", input_use="maybe"), "'required' or 'optional' or 'none'"),
    "axes": (changed("layers", "ode", state_shape=[10] + [1] * 60), "a state shape of 1 … 60 positive lengths"),
    "negative lengths": (changed("layers", "ode", state_shape=[-2, -5]), "a state shape of 1 … 60 positive lengths"),
    "huge lengths": (changed("layers", "ode", state_shape=[2**62, 2**62]), "size mismatch for (en|de)code"),
    "huge number": (changed("layers", "ode", state_dim=10**400), "expected an integer of 64 bits"),
    "other unknowns": (of_ode(state_size=10**9), "expected an ODE of 4 unknowns, got 1000000000"),
    "no maps": (of_ode(maps=[]), "expected a map for each of 1 stages and one for the output, got 0 maps"),
    "source that comes later": (of_ode(maps=[[[["g1", 5]], 5], [[["g1", 5]], 4]]), r"among y \(4\), t \(1\), got 'g1"),
    "source that is no input": (of_ode(maps=[[[["u", 2]], 5], [[["g1", 5]], 4]]), r"among y \(4\), t \(1\), got 'u"),
    "source twice": (of_ode(maps=[[[["y", 4], ["y", 4]], 5], [[["g1", 5]], 4]]), "got 'y"),
    "source of another size": (of_ode(maps=[[[["y", 10**9]], 5], [[["g1", 5]], 4]]), r"got 'y \(1000000000\)'"),
    "huge map": (of_ode(maps=[[[["y", 4]], 10**9], [[["g1", 10**9]], 4]]), r"size mismatch for ode\.stages\.0\.weight"),
    "arity": (of_ode(expressions=[{"arity": 3, "instructions": []}]), "5 rows of stages.0 to be shared by its argume"),
    "huge arity": (of_ode(expressions=[{"arity": 10**9, "instructions": []}]), "5 rows of stages.0 to be shared"),
    "truth values": (of_ode(expressions=instructions(["gt", ["%0", 0.0], {}])), "from numbers to a number of the same"),
    "condition of numbers": (of_ode(expressions=instructions(["where", ["%0"] * 3, {}])), "condition to be a boolean"),
    "slot": (
        of_ode(expressions=instructions(["tanh", ["%7"], {}])),
        r"expected an operand of tanh in %0 … %0, got '%7'",
    ),
    "explanation that cannot be printed": (
        lambda config, tensors: config["layers"]["ode"]["explanation"].update(operations=[1, "a"]),
        "expected an integer of 64 bits as the explanation.operations",
    ),
    "times": (setting(t=[0.0, 1e400]), "expected a finite number"),
    "times as text": (setting(t="01"), "expected a list as"),
    "times of great length": (setting(t=[-1.7e308, 1.7e308]), "expected times that torch.float64 can hold"),
    "many steps": (setting(method="rk4", options={"step_size": 1e-9}), "expected at most 1,000,000 steps"),
    "endless steps": (setting(method="rk4", t=[0.0, 1e300], options={"step_size": 5e-324}), "at most 1,000,000 steps"),
    "adjoint as a number": (setting(adjoint=1), "expected true or false"),
    "tolerance as text": (setting(rtol="a"), "expected a finite number"),
    "norm": (option("norm", "max"), r"no options\['norm'\], which is no plain data"),
    "dtype": (option("dtype", "float32"), r"no options\['dtype'\], which is no plain data"),
    "grid": (option("grid_constructor", "a", "euler"), "expected null as options.grid_constructor"),
    "step as text": (option("step_size", "1", "euler"), "expected a finite number as options.step_size"),
    "steps that never grow": (option("ifactor", 0.1), r"expected options\['ifactor'\] from 1 to inf, got 0.1"),
    "steps that never shrink": (option("dfactor", 1.0), r"expected options\['dfactor'\] from 0 to 0.99, got 1.0"),
    "steps backward": (option("safety", -1), r"expected options\['safety'\] from 0 to 1, got -1"),
    "jumps": (option("jump_t", ["a"]), r"expected a finite number as options\.jump_t\[0\]"),
    "solver of SciPy": (option("solver", "__class__", "scipy_solver"), "'RK45' or 'RK23'"),
    "integers": (
        lambda c, tensors: tensors.update({k: v.long() for k, v in tensors.items()}),
        "expected tensors of one d",
    ),
    "two dtypes": (
        lambda c, tensors: tensors.update({"ode.encode.bias": torch.zeros(4)}),
        "expected tensors of one dtype",
    ),
    "block without a layer": (
        changed(blocks={"x": {"parameters": ["y"], "state": "y", "t": [0, 1]}}),
        "a layer in the block 'x', got none",
    ),
    "block without a form": (changed(blocks={"x": {}}), "got none of parameters, state, t"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_files_that_are_signed(saved, path, case):
    """Nothing is built, or allocated, before all of the configuration fits."""
    change, text = ABSURD[case]
    forge(path, change)
    with pytest.raises(FileFormatError, match=text):
        load(path)


BLOCK = {"parameters": ["x", "t"], "state": "x", "t": [0.0, 1.0], "times_kept": -1}
FORMS = {
    "state": ({"state": "z"}, "expected the state, times, input and constants among the parameters"),
    "names twice": ({"parameters": ["x", "x"]}, "expected names that differ"),
    "state as times": ({"times": ["x"]}, "expected names that differ"),
    "constant": ({"constants": [["z", 1]]}, "expected the state, times, input and constants among the parameters"),
    "constant without a value": ({"constants": [["t"]]}, "expected a list of 2"),
    "input": ({"input": "t"}, "expected an input where the layer takes one"),
    "attribute": ({"input_attribute": "a..b"}, "expected a path of attributes"),
    "batch": ({"batch_dims": 3}, "expected 1 or 2 dimensions of batch, got 3"),
    "zeros": ({"zeros": 10}, "expected zeros for a part of the state, got 10"),
    "entries": ({"entries": [8, 3]}, "expected entries that the state has"),
    "negative entries": ({"entries": [-1, 3]}, "expected entries that the state has"),
    "all times": ({"times_kept": None}, "expected a layer that returns what the block keeps"),
    "skipped times": ({"times_skipped": 2}, "expected times that there are"),
    "axes": ({"axes": [0, 0]}, "expected a permutation of 2 axes"),
    "returned times": ({"times_returned": 7}, "or with sign 1 or -1, got 7"),
    "times": ({"t": [1.0, 1.0]}, "expected times that increase or decrease"),
    "unknown": ({"magic": 1}, "got the unknown 'magic'"),
}


@pytest.mark.parametrize("case", FORMS)
def test_absurd_forms_of_blocks(saved, path, case):
    values, text = FORMS[case]

    def change(config, tensors):
        config["layers"]["ode.layer"] = config["layers"].pop("ode")
        config["blocks"] = {"ode": {**BLOCK, **values}}
        for key in [key for key in tensors if key.startswith("ode.")]:
            tensors[f"ode.layer.{key.removeprefix('ode.')}"] = tensors.pop(key)

    forge(path, change)
    with pytest.raises(FileFormatError, match=text):
        load(path)
    values.clear()
    save(reduced(), path)
    forge(path, change)
    assert type(load(path)) is ReducedODELayer, "the case fails for its own reason"


def test_integers_in_the_place_of_weights(saved, path):
    forge(path, lambda config, tensors: tensors.update({"stem.weight": tensors["stem.weight"].long()}))
    with pytest.raises(UnknownLayerError, match="is not the one that was saved"):
        load(path, network=NETWORKS["dense"].network())


def test_long_configurations(saved, path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    with pytest.raises(FileFormatError, match="a configuration of more than 100 bytes"):
        load(path)
    with pytest.raises(ValueError, match="expected a configuration of at most 100 bytes"):
        save(reduced(), path)
    assert path.read_bytes() == saved


def test_devices_and_pipes_are_not_read(path):
    os.mkfifo(path)
    with pytest.raises(FileFormatError, match="which is a device or pipe"):
        load(path)


def test_what_could_not_be_loaded_is_not_saved(path):
    small = reduced()
    small.ode.encode.float()
    with pytest.raises(ValueError, match=r"layers that can be loaded again, but .*tensors of one dtype"):
        save(small, path)
    small = reduced()
    small.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"expected tensors that safetensors can hold"):
        save(small, path)
    assert os.listdir(path.parent) == []


def test_network_that_is_reduced_already_is_a_fit(path):
    small, (x,) = reduced(), NETWORKS["dense"].batch(3)
    for bias in (small.stem.bias, small.ode.decode.bias):
        nn.init.ones_(bias)
    save(small, path)
    again = load(path, network=reduced())
    assert isinstance(again.ode, ReducedODELayer)
    assert torch.equal(again(x), small(x)) and not torch.equal(again(x), reduced()(x))


@pytest.mark.gpu
def test_gpu(path):
    small, (x,) = reduced(), NETWORKS["dense"].batch(3)
    save(small.cuda(), path)
    network = load(path, network=NETWORKS["dense"].network().cuda())
    assert not any(parameter.is_cuda for parameter in network.parameters())
    torch.testing.assert_close(network(x), small(x.cuda()).cpu())


def test_files_of_version_0_1_load():
    """The files hold a phrase where parts have a fate now."""
    saved = Path(__file__).with_name("saved_by_0.1.safetensors")
    expected = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    layer = load(saved)
    y0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 12)
    torch.testing.assert_close(layer(y0), torch.tensor(expected["y"], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert str(layer.explain()) == expected["explanation"]
    parts = layer.explain().parts
    assert [part.fate for part in parts] == ["kept", "absorbed", "absorbed", "reduced", "reduced"]
    assert [part.how for part in parts] == ["as asked", "", "", "omp, as asked", "omp, as asked"]
