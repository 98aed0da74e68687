"""Running what somebody else wrote, and leaving no trace of it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from torchmor.adapters.layers.places import steps


@contextmanager
def evaluation(network: nn.Module | Callable[..., Any]) -> Iterator[None]:
    """Run a network, a layer or a function in eval mode without gradients, and leave no trace of it.

    Law: afterwards, and after an exception too, the training flag of every submodule, the buffers, and the random
    states of torch, NumPy and Python are what they were. Modules that an ODE function holds where torch does not look,
    in a closure or a partial function, are treated alike. All that is ever evaluated of a user's network is so in here.
    """
    modules = _modules(network)
    training = [(module, module.training) for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    others = random.getstate(), np.random.get_state()  # noqa: NPY002 # the network may draw from it
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), torch.no_grad():
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module, flag in training:
                module.training = flag
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002


def _modules(network: Any) -> list[nn.Module]:
    """Return the modules of a network, and those that its functions hold."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting: list[Any] = [network]
    while waiting:
        value = waiting.pop()
        if id(value) not in seen and callable(value) and not isinstance(value, type):
            seen.add(id(value))
            if isinstance(value, nn.Module):
                found[id(value)] = value
            waiting += [inner for _, inner in steps(value)]
    return list(found.values())
