"""Which arguments of a network are the times of its ODE layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.placing import copied
from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.adapters.solving.torch_private import tree_leaves


def time_arguments(network: nn.Module, example: Sequence[Any]) -> frozenset[int]:
    """Return the positions of those tensors among the leaves of an example that reach an ODE layer as its times.

    They have no batch, whatever their length. A copy of the network is called, where there may be any.
    """
    leaves = {i: leaf for i, leaf in enumerate(tree_leaves(tuple(example))) if isinstance(leaf, Tensor)}
    candidates = {i: leaf for i, leaf in leaves.items() if leaf.ndim == 1 and leaf.is_floating_point()}
    if not candidates or len(leaves) < 2:
        return frozenset()
    found = set[int]()

    def look(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        t = named.get("t", arguments[2] if len(arguments) > 2 else None)
        if isinstance(t, Tensor):
            storage = t.untyped_storage().data_ptr()
            found.update(i for i, leaf in candidates.items() if leaf.untyped_storage().data_ptr() == storage)

    network = copied(network)
    for layer in network.modules():
        if isinstance(layer, SolvingLayer):
            layer.register_forward_pre_hook(look, with_kwargs=True)
    with evaluation(network):
        try:
            network(*example)
        except Exception:  # whoever asked calls it next, and reports
            return frozenset()
    return frozenset(found)
