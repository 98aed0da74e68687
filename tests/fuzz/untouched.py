"""Everything of a user's network and process that a call must leave as it was."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(*networks: nn.Module) -> Iterator[None]:
    """Assert that what happens inside leaves the networks and the process as they were, bit for bit."""
    before = _process(), [_network(network) for network in networks]
    try:
        yield
    finally:  # a refusal changes nothing either
        after = _process(), [_network(network) for network in networks]
        changed = {key for key, value in before[0].items() if not _equal(value, after[0][key])}
        for was, now in zip(before[1], after[1], strict=True):
            changed |= {key for key in was.keys() | now.keys() if not _equal(was.get(key), now.get(key))}
        assert not changed, f"changed: {', '.join(sorted(changed))}"


def _process() -> dict[str, Any]:
    return {
        "torch's random state": torch.get_rng_state(),
        "NumPy's random state": np.random.get_state(),  # noqa: NPY002 - users have it
        "Python's random state": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "number of threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "warning of these": torch.is_deterministic_algorithms_warn_only_enabled(),
        "float32 products": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "printing": {name: repr(value) for name, value in vars(torch._tensor_str.PRINT_OPTS).items()},
        "warnings filters": list(warnings.filters),
        "NumPy's errors": np.geterr(),
        "recursion limit": sys.getrecursionlimit(),
        "global hooks": [
            dict(value) for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and value
        ],
    }


def _network(network: nn.Module) -> dict[str, Any]:
    """Everything that its modules hold: parameters, buffers, gradients, flags, hooks and plain attributes."""
    held: dict[str, Any] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    held[f"{path}.{key}"] = _kept(tensor)
                    if tensor is not None:
                        facts = id(tensor), tensor.requires_grad, tensor.dtype, tensor._version
                        held[f"identity of {path}.{key}"] = facts
                        held[f"gradient of {path}.{key}"] = _kept(tensor.grad)
            elif name == "_modules":
                held[f"parts of {path}"] = [(key, id(part)) for key, part in value.items()]
            elif name.endswith("_hooks"):
                held[f"{path}.{name}"] = list(value.items())
            elif isinstance(value, Tensor | bool | int | float | str | tuple | None):
                held[f"{path}.{name}"] = _kept(value)
            else:
                held[f"identity of {path}.{name}"] = id(value)
    return held


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return a is b or bool(a == b)
