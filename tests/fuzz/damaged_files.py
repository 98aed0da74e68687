"""Saved files, and what can happen to them: bits, lengths and places of bytes, and configurations signed anew."""

import copy
import functools
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from foreign_networks import FOREIGN
from networks import NETWORKS
from torchmor.adapters import reduce_network, save
from torchmor.adapters.layers import files

OLD = Path(__file__).resolve().parents[1] / "adapters" / "layers" / "saved_by_0.1.safetensors"

SAVED = ("layer alone", "dense, adaptive", "sampled input", "convolutional", "second order", "input by a setter", "0.1")


@dataclass(frozen=True)
class Original:
    """A saved file.

    Parameters
    ----------
    data
        Its bytes.
    network
        What it is loaded into; None for a layer alone.
    arguments
        Of a call of the network.
    """

    data: bytes
    network: nn.Module | None
    arguments: tuple[Any, ...]


@functools.cache
def original(name: str, folder: Path) -> Original:
    """Return one of the files of `SAVED`."""
    if name == "0.1":
        return Original(OLD.read_bytes(), None, ())
    entry, path = {**NETWORKS, **FOREIGN}[name], folder / "original"
    network, named = entry.network(), {"progress": False}
    if name in FOREIGN:
        named["input_attribute"] = entry.input_attribute
    save(reduce_network(network, entry.layer, [entry.batch(40)], **entry.sizes, **named), path)
    return Original(path.read_bytes(), network if entry.layer else None, entry.batch(2))


def damaged(data: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """Return a file with flipped bits, a part of it, or one with parts of files in it."""
    result, kind = bytearray(data), random.integers(5)
    header = 8 + int.from_bytes(data[:8], "little")
    place = int(random.integers(len(data) if random.random() < 0.5 else header))
    if kind == 0:
        for _ in range(random.integers(1, 9)):
            result[random.integers(len(data) if random.random() < 0.5 else header)] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del result[place:]
    elif kind == 2:
        other = others[random.integers(len(others))]
        start, length = int(random.integers(len(other))), int(random.integers(1, 200))
        result[place : place + length * int(random.integers(2))] = other[start : start + length]
    elif kind == 3:
        del result[place : place + int(random.integers(1, 50))]
    else:
        result[:8] = struct.pack("<Q", int(random.choice([0, 1, header, 2**20, 2**31, 2**40, 2**63])))
    return bytes(result)


def signed_anew(path: Path, random: np.random.Generator) -> None:
    """Change a file's configuration or tensors in absurd ways, and sign it."""
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["torchmor"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    config.pop("sha256")
    for _ in range(int(random.choice([1, 1, 1, 2, 3]))):
        if random.random() < 0.8:
            config = _mutated(config, random)
        else:
            _mutate_tensors(tensors, random)
    if isinstance(config, dict):
        try:
            config["sha256"] = files._digest(config, tensors)
        except RecursionError:
            config["sha256"] = ""
    safetensors.torch.save_file(tensors, path, {"torchmor": json.dumps(config)})


def _absurd(random: np.random.Generator) -> Any:
    deep: Any = []
    for _ in range(int(random.choice([10, 60, 400]))):
        deep = [deep]
    choices = [
        0, 1, 2, 3, -1, 10, 2**31, 2**40, 2**63, -(2**70), 10**30, 10**400, 0.0, 0.5, -0.25, 1e-9, 1e-300, 1e300,
        float("inf"), float("nan"), "", "a", "inf", "%0", "%1", "%99999999", "y", "u", "t", "g1", "g2", "g9", "final",
        "trajectory", "euler", "dopri5", "rk4", "scipy_solver", "implicit_adams", "RK45", "exact", "kept", "none",
        "\ud800", "\x1b[31m\n", "a.b", "x" * 10_000, None, True, False, [], {}, [[]], [0], [0, 1], [1.0, 0.0], ["y", 1],
        {"": 0}, {"a": {}}, [["y", 2]], list(range(2000)), deep,
    ]  # fmt: skip
    return copy.deepcopy(choices[random.integers(len(choices))])


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return all containers in a value with their keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        if len(found) < 3000:
            _places(item, found)
    return found


def _mutated(config: Any, random: np.random.Generator) -> Any:
    places = _places(config, [])
    if not places or random.random() < 0.01:
        return _absurd(random)
    container, key = places[random.integers(len(places))]
    kind = random.integers(7)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other, place = places[random.integers(len(places))]
        container[key] = copy.deepcopy(other[place])
    elif kind == 2 and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif kind == 2:
        container[str(_absurd(random))[:20]] = container[key]
    elif kind == 3 and isinstance(container[key], int | float):
        container[key] = container[key] * int(random.choice([-1, 2, 10, 10**6])) + int(random.integers(-1, 2))
    elif kind == 4 and isinstance(container, list):
        random.shuffle(container)
    else:
        container[key] = _absurd(random)
    return config


def _mutate_tensors(tensors: dict[str, torch.Tensor], random: np.random.Generator) -> None:
    if not tensors:
        return
    name, kind = sorted(tensors)[random.integers(len(tensors))], random.integers(7)
    tensor = tensors.pop(name)
    if kind == 0:
        return
    if kind == 1:
        dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
        for key in [name] if random.random() < 0.5 else [name, *tensors]:
            tensors[key] = tensors.get(key, tensor).to(dtypes[random.integers(len(dtypes))])
    elif kind == 2:
        tensors[name] = tensor.T.contiguous() if tensor.ndim == 2 else tensor[None].clone()
    elif kind == 3:
        tensors[name] = tensor.new_zeros(0, *tensor.shape)
    elif kind == 4:
        tensors[name] = tensor * float(random.choice([0, 1e200, float("nan"), float("inf")]))
    elif kind == 5:
        tensors[str(_absurd(random))[:20].encode("utf-8", "ignore").decode()] = tensor
    else:
        tensors[name] = tensor[:-1].clone()
