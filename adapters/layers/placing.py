"""Layers of a network by their names: finding them, and putting others in their places."""

import copy
import difflib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.engine.errors import NotCompiledWarning, UnknownLayerError, UnsupportedOperationError


def with_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of a network with layers in the places of its modules of these names.

    A module that the network holds in several places is replaced in all of them.

    Raises
    ------
    UnknownLayerError
        The network has no such module.
    """
    placed = {}
    for name, layer in layers.items():
        try:
            old = network.get_submodule(name)
        except AttributeError as error:
            raise UnknownLayerError(f"expected a network with a module {name!r}, got one without ({error})") from error
        placed[id(old)] = layer.train(old.training)
    return copied(network, placed)


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the network that `torch.compile` wrapped; one that is not compiled is returned as it is.

    Warns
    -----
    NotCompiledWarning
        It is compiled, and what is made of it is not.
    """
    original = getattr(network, "_orig_mod", network)
    if original is not network or getattr(network, "_compiled_call_impl", None) is not None:
        warnings.warn(
            "the network is compiled: its original is used, and what is returned is not compiled; do so with the "
            "result, torch.compile(small)",
            NotCompiledWarning,
            stacklevel=3,
        )
    return original


def find_module(network: nn.Module, name: str) -> nn.Module:
    """Return a module of a network by its name.

    Raises
    ------
    UnknownLayerError
        There is none.
    """
    modules = dict(network.named_modules(remove_duplicate=False))  # a shared module has several names
    return modules[name] if name in modules else find_layer(network, name)


def find_layer(network: nn.Module, name: str) -> ODELayer:
    """Return the ODE layer of a network by its name in ``network.named_modules()``; "" is the network itself.

    Raises
    ------
    UnknownLayerError
        There is no module of this name, or it is no ODELayer.
    """
    modules = dict(network.named_modules(remove_duplicate=False))  # a shared layer has several names
    layers = [key for key, module in modules.items() if isinstance(module, ODELayer)]
    advice = f"its ODE layers are {', '.join(map(repr, layers))}" if layers else "it has no ODE layer"
    advice += "; find_ode_layers(network, *example) lists other modules that solve ODEs, too"
    if name not in modules:
        close = difflib.get_close_matches(name, layers + [key for key in modules if key not in layers])
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise UnknownLayerError(f"expected the name of an ODE layer of the network, got {name!r}{hint}: {advice}")
    layer = modules[name]
    if not isinstance(layer, ODELayer):
        raise UnknownLayerError(f"expected an ODELayer as {name!r}, got a {type(layer).__name__}: {advice}")
    return layer


def copied(network: nn.Module, placed: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of a network, with other modules in some places; tensors that keep a graph lose it.

    Raises
    ------
    UnsupportedOperationError
        It holds something that has no copy.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    memo |= placed or {}
    try:
        with torch.no_grad():  # scripted modules copy their parameters by an operation
            copy_of_it = copy.deepcopy(network, memo)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedOperationError(
            f"expected a network that can be copied, got one that cannot ({error}): keep what has no copy outside of it"
        ) from error
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule) and id(module) in memo:
            for parameter, other in zip(module.parameters(), memo[id(module)].parameters(), strict=True):
                other.requires_grad_(parameter.requires_grad)
    return copy_of_it
