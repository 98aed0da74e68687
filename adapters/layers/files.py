"""Saving and loading reduced layers: safetensors with a JSON configuration. Loading needs torch and safetensors only.

A file holds, for each reduced layer, its tensors and what is needed to build the layer again; for a network also the
rest of its state. Nothing in it is code and nothing is unpickled.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.layers.chain_module import ChainModule
from torchmor.adapters.layers.file_schema import MOST_BYTES, fault, too_deep
from torchmor.adapters.layers.own_forward import PlacedInput, SolveForm, own_form, with_own_forward
from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.layers.solved_block import CallForm, SolvedBlock, source_of
from torchmor.adapters.layers.torch_functions import TORCH_FUNCTIONS
from torchmor.adapters.layers.typed_data import mismatch
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.engine.errors import FileFormatError, UnknownLayerError
from torchmor.engine.explanation import Explanation
from torchmor.engine.expressions import Expression

FORMAT = "torchmor reduced ODE layers"
VERSION = 1
_KEY = "torchmor"


def save(small_or_layer: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a reduced layer, or a network with reduced layers, to a safetensors file.

    The file is written whole or not at all.

    Parameters
    ----------
    small_or_layer
        A ReducedODELayer, or a network that contains one or more. Of a network the whole state is saved.
    path
        Where to; the usual suffix is ``.safetensors``.

    Raises
    ------
    UnknownLayerError
        There is no reduced layer in the network.
    ValueError
        A solver option is a function, or the network's state holds something else than tensors, or the layer is none
        that `load` would take; none of them can be saved.
    OSError
        The file cannot be written.
    """
    layers = {name: m for name, m in small_or_layer.named_modules() if isinstance(m, ReducedODELayer)}
    if not layers:
        raise UnknownLayerError(
            f"expected a ReducedODELayer or a network that contains one, got a {type(small_or_layer).__name__} "
            "without: reduce it with reduce_network first"
        )
    tensors = {}
    for key, value in small_or_layer.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"expected tensors in the network's state, got a {type(value).__name__} as '{key}'")
        tensors[key] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    config = {"format": FORMAT, "version": VERSION, "layers": {name: _config(m) for name, m in layers.items()}}
    blocks = {
        name: m
        for name, m in small_or_layer.named_modules()
        if isinstance(m, SolvedBlock) and f"{name}.layer".removeprefix(".") in layers
    }
    if blocks:
        config["blocks"] = {name: _plain(asdict(block.form), f"the form of '{name}'") for name, block in blocks.items()}
    forms = {name: form for name, m in small_or_layer.named_modules() if (form := own_form(m)) is not None}
    if forms:
        config["own_forwards"] = {name: _plain(asdict(form), f"the form of '{name}'") for name, form in forms.items()}
    words = fault(config, tensors)
    if words is not None:
        raise ValueError(f"expected layers that can be loaded again, but {words}: mend the layer before saving it")
    config["sha256"] = _digest(config, tensors)
    text = json.dumps(config, allow_nan=False)
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"expected a configuration of at most {MOST_BYTES:,} bytes, got {len(text):,}: use fewer times"
        )
    try:
        data = to_bytes(tensors, {_KEY: text})  # writing it here, as safetensors' writer has errors of its own
    except Exception as error:  # complex numbers, for example
        raise ValueError(f"expected tensors that safetensors can hold, got others ({error!r})") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load(path: str | os.PathLike[str], network: nn.Module | None = None) -> nn.Module:
    """Load what `save` has written, on the CPU.

    Law: the loaded layer returns the same bits as the saved one. A file that `save` did not write so, whatever it
    holds, is refused by one of the errors below, or gives a layer that runs.

    Parameters
    ----------
    path
        The file.
    network
        The network that was reduced, or one of the same architecture: a copy of it is returned, with the reduced
        layers placed and the saved state restored. Without it, the reduced layer alone is returned.

    Returns
    -------
    ReducedODELayer, or a copy of `network`.

    Raises
    ------
    FileFormatError
        The file is damaged, was altered, is no torchmor file, or has a format newer than this version reads.
    UnknownLayerError
        The file holds several layers, which only a network can place; or the network does not fit the file.
    OSError
        The file is missing, or may not be read.
    """
    config, tensors = read(path)
    layers: dict[str, nn.Module] = {name: build_layer(entry, name, tensors) for name, entry in config["layers"].items()}
    if network is None:
        if len(layers) > 1:
            raise UnknownLayerError(
                f"expected a file of one reduced layer, got {', '.join(map(repr, layers))} in {os.fspath(path)!r}: "
                "call load(path, network=network) with the network that was reduced"
            )
        return layers.popitem()[1]
    if "" in layers:
        raise UnknownLayerError(
            f"expected the file of a whole network, got a layer alone in {os.fspath(path)!r}: call load(path) and "
            "place it yourself"
        )
    for name, form in config.get("blocks", {}).items():
        layer = layers.pop(f"{name}.layer".removeprefix("."))
        layers[name] = _block(layer, form, name, network)
    own = {name: _solve_form(entry) for name, entry in config.get("own_forwards", {}).items()}
    inside = {f"{name}.{form.layer}".removeprefix("."): name for name, form in own.items()}
    network = with_layers(network, {name: layer for name, layer in layers.items() if name not in inside})
    for layer_name, name in inside.items():
        module = dict(network.named_modules(remove_duplicate=False)).get(name)
        if module is None:
            raise UnknownLayerError(f"expected a network with a module {name!r}, in whose forward a layer solves")
        with_own_forward(module, layers[layer_name].train(module.training), own[name])
    network = network.cpu()
    try:
        for key, value in network.state_dict(keep_vars=True).items():
            if key in tensors:  # loading casts silently to the dtype that is there
                value.data = value.data.to(tensors[key].dtype)
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UnknownLayerError(f"the network is not the one that was saved in {os.fspath(path)!r}: {error}") from error
    return network


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check a file; returns its configuration and tensors.

    Raises
    ------
    FileFormatError
        As `load`.
    """
    name = os.fspath(path)
    mode = os.stat(name).st_mode  # a missing file, or one that may not be read, is no matter of format
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # pipes would wait
        raise FileFormatError(f"expected a file, got {name!r}, which is a device or pipe: copy it to a file")
    with open(name, "rb"):
        pass
    try:
        with safetensors.safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            if len(metadata.get(_KEY, "")) > MOST_BYTES:
                raise ValueError(f"a configuration of more than {MOST_BYTES:,} bytes")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # safetensors and torch raise many kinds on damaged headers
        raise FileFormatError(
            f"expected a whole safetensors file, got {name!r}, which is truncated or of another kind ({error}): "
            "copy it again"
        ) from error
    if _KEY not in metadata:
        raise FileFormatError(f"expected a file written by torchmor's save, got the safetensors file {name!r}")
    try:
        config = json.loads(metadata[_KEY])
        version = config["version"]
        if type(version) is not int:
            raise TypeError(f"version {version!r:.80}")
        if too_deep(config):
            raise ValueError("lists in lists in lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"the configuration in {name!r} is damaged ({error}): copy the file again") from error
    if version != VERSION:
        raise FileFormatError(
            f"expected format version {VERSION}, got {version} in {name!r}: "
            + ("update torchmor to read it" if version > VERSION else "save it again with this torchmor")
        )
    if config.pop("sha256", None) != _digest(config, tensors):
        raise FileFormatError(f"{name!r} was altered after it was saved: its checksum does not fit; copy it again")
    words = fault(config, tensors)
    if words is None and config["format"] != FORMAT:
        words = f"expected the format {FORMAT!r}, got {config['format']!r:.80}"
    if words is not None:
        raise FileFormatError(f"the configuration in {name!r} is damaged ({words}): save it again")
    return config, tensors


def _config(layer: ReducedODELayer) -> dict[str, Any]:
    settings = {}
    for field in fields(SolveSettings):
        value = getattr(layer.settings, field.name)
        settings[field.name] = _plain(dict(value) if field.name == "options" else value, field.name)
    ode = layer.ode
    return {
        "settings": settings,
        "state_shape": list(layer.state_shape),
        "state_dim": None if isinstance(layer.encode, nn.Identity) else ode.state_size,
        "input_use": layer.input_use,
        "ode": {
            "state_size": ode.state_size,
            "input_size": ode.input_size,
            "expressions": [expression.to_json() for expression in ode.expressions],
            "maps": [[list(m.sources.items()), m.weight.shape[0]] for m in (*ode.stages, ode.output)],
        },
        "explanation": None if layer.explanation is None else layer.explain().to_json(),
        "usual_distance": layer.usual_distance,
    }


def build_layer(entry: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> ReducedODELayer:
    """Return a layer of a file that was `read`, from its entry among the configuration's layers.

    Raises
    ------
    FileFormatError
        The entry holds functions that do not exist or cannot run, or another explanation than torchmor writes.
    """
    prefix = f"{name}." if name else ""
    state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    try:
        ode, explanation = entry["ode"], entry["explanation"]
        module = ChainModule(
            ode["state_size"],
            ode["input_size"],
            [_expression(data, state["ode.output.weight"].dtype) for data in ode["expressions"]],
            [(dict(sources), size) for sources, size in ode["maps"]],
            state["ode.output.weight"].dtype,
        )
        layer = ReducedODELayer(
            SolveSettings(**entry["settings"]),
            entry["state_shape"],
            module,
            entry["state_dim"],
            entry["input_use"],
            None if explanation is None else _explanation(explanation, entry["state_shape"]),
        )
        layer.usual_distance = entry.get("usual_distance")
        layer.load_state_dict(state)
    except Exception as error:  # as many kinds as there are damages
        raise FileFormatError(f"the configuration of layer {name!r} is damaged ({error!r}): save it again") from error
    return layer


def _expression(data: Any, dtype: torch.dtype) -> Expression:
    """Return an expression that was tried on numbers of this dtype."""
    expression = Expression.from_json(data)
    with torch.no_grad():
        value = expression.evaluate(TORCH_FUNCTIONS, [torch.ones(1, 1, dtype=dtype)] * expression.arity)
    if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != (1, 1):
        raise ValueError("expected a function from numbers to a number of the same kind")
    return expression


def _explanation(data: Any, state_shape: Sequence[int]) -> Explanation:
    """Return an explanation of a layer for states of this shape, which was tried to be printed."""
    explanation = Explanation.from_json(data)
    finite = replace(explanation, curve=tuple(one for one in explanation.curve if math.isfinite(one.cost + one.loss)))
    if words := mismatch(finite, Explanation, "the explanation"):
        raise ValueError(words)
    if explanation.state_shape not in ((), tuple(state_shape)):
        raise ValueError(
            f"expected an explanation of states of shape {tuple(state_shape)}, got {explanation.state_shape}"
        )
    sizes = {part.name: part.full for part in explanation.parts}
    for name, points in explanation.points.items():
        if not all(0 <= point < sizes[name] for point in points):
            raise ValueError(f"expected points of '{name}' among its {sizes[name]} components, got others")
    str(explanation)
    return explanation


def _block(layer: nn.Module, entry: dict[str, Any], name: str, network: nn.Module) -> SolvedBlock:
    """Return the block around a layer, in the place of the network's module of this name."""
    form = CallForm(**{key: _tupled(value) for key, value in entry.items()})
    module = dict(network.named_modules(remove_duplicate=False)).get(name)
    return SolvedBlock(layer, form, None if module is None else source_of(module, form))


def _solve_form(entry: dict[str, Any]) -> SolveForm:
    """Return which solves of a module's own forward a layer answers."""
    return SolveForm(
        **_tupled_items(entry) | {"inputs": tuple(PlacedInput(**_tupled_items(one)) for one in entry["inputs"])}
    )


def _tupled_items(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: _tupled(value) for key, value in entry.items()}


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _plain(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):  # tensors and NumPy's numbers
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item, f"{name}['{key}']") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"expected solver settings of numbers and text, got {name} = {value!r}, which cannot be saved: remove it "
        "before saving, and set it again after loading"
    )


def _digest(config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(config).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
