"""Torch-Pruning's structured pruning of a whole network with an ODE layer, as a peer."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.placing import find_layer, with_layers
from torchmor.adapters.networks.evaluation import recorded_calls
from torchmor.engine.errors import SizeError, UnsupportedOperationError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prune_structure(network: nn.Module, name: str, example: Tensor, kept: Sequence[int]) -> list[nn.Module]:
    """Prune the channels of a whole network, the state of its ODE layer included, with Torch-Pruning.

    Its dependency graph finds what belongs together: the layers that make the state, the ODE function, and those that
    read the state lose the same channels, those of the smallest weights in the group. Other hidden channels are pruned
    by the same ratio. The number of scores stays.

    Parameters
    ----------
    network
        The trained network; it is not changed.
    name
        Name of its ODE layer.
    example
        Inputs (batch, …) of the network, to trace it with.
    kept
        Channels, or units, of the ODE's state that are kept, about: one network for each.

    Returns
    -------
    list of nn.Module
        The networks, in the order of `kept`.

    Raises
    ------
    UnsupportedOperationError
        Torch-Pruning cannot prune the network.
    SizeError
        There are not so many channels.

    References
    ----------
    Fang, Ma, Song, Mi, Wang: DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    import torch_pruning

    layer = find_layer(network, name)
    channels = _state_channels(network, layer, example)
    if not kept or not all(1 <= count <= channels for count in kept):
        raise SizeError(f"expected to keep 1 to {channels} channels, all that there are, got kept={tuple(kept)}")
    pruned = []
    for count in kept:
        flat = with_layers(network, {name: _TwoSteps(copy.deepcopy(layer.func), layer.input_use != "none")})
        parameters = sum(parameter.numel() for parameter in flat.parameters())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of parameters that it does not prune
                pruner = torch_pruning.pruner.BasePruner(
                    flat,
                    example,
                    importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                    pruning_ratio=1 - count / channels,
                    ignored_layers=[_last(flat, example)],
                )
                pruner.step()
            with torch.no_grad():
                flat(example)
        except Exception as error:  # whatever it meets in a network that it does not know
            raise UnsupportedOperationError(
                f"expected a network that Torch-Pruning can prune, got one on which it fails ({error})"
            ) from error
        if count < channels and sum(parameter.numel() for parameter in flat.parameters()) >= parameters:
            raise UnsupportedOperationError("expected Torch-Pruning to remove channels, got the network unchanged")
        small = copy.deepcopy(layer)
        steps: Any = flat.get_submodule(name)
        small.func = steps.func
        pruned.append(with_layers(flat, {name: small}).train(network.training))
    return pruned


class _TwoSteps(nn.Module):
    """Two Euler steps: a graph that can be traced, in which the state meets itself."""

    def __init__(self, func: Callable[..., Tensor], driven: bool):
        super().__init__()
        self.func, self.driven = func, driven

    def forward(self, y: Tensor, u: Any = None) -> Tensor:
        for _ in range(2):
            y = y + (self.func(0.0, y, u[:, 0]) if self.driven else self.func(y))
        return y


def _state_channels(network: nn.Module, layer: nn.Module, example: Tensor) -> int:
    with torch.no_grad(), recorded_calls(layer) as calls:
        network(example)
    return calls[0][0][0].shape[1]


def _last(network: nn.Module, example: Tensor) -> nn.Module:
    """Return the layer that makes the scores: its outputs are the classes."""
    called: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
    hooks = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in layers]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return called[-1]
