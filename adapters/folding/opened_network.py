"""A network with reduced layers as a graph of tensor operations, in which projections and liftings stand alone.

torch.export traces it with a dynamic batch, so that it does not matter how the network is written. Of a reduced layer,
projection and lifting are traced as operations like those around them, and the solve as one operation in between.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.nn import functional as F

from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.solving.runge_kutta import is_fixed_step
from torchmor.adapters.solving.torch_private import tree_leaves, tree_map, tree_unflatten
from torchmor.engine.errors import ShapeError, TorchmorError, UnknownLayerError, UnsupportedOperationError


@torch.library.custom_op("torchmor::reduced_solve", mutates_args=())
def reduced_solve(z0: Tensor, u: Tensor | None, times: Sequence[float] | None, layer: int, outputs: int) -> Tensor:
    """Stand for the solve of the reduced layer of a number, with so many outputs (0: the final state)."""
    raise AssertionError("modules take its place before the graph is run")


@reduced_solve.register_fake
def _(z0: Tensor, u: Tensor | None, times: Sequence[float] | None, layer: int, outputs: int) -> Tensor:
    return z0.new_empty((outputs, *z0.shape) if outputs else z0.shape)


class _OpenedLayer(nn.Module):
    """A reduced layer whose projection and lifting are operations of their own, and whose solve is one operation."""

    def __init__(self, layer: ReducedODELayer, number: int):
        super().__init__()
        self.layer, self.number = layer, number

    def forward(self, y0: Tensor, u: Any = None, t: Any = None) -> Tensor:
        layer = self.layer
        if (u is not None and not isinstance(u, Tensor)) or isinstance(t, Tensor):
            return self._closed(y0, u, t)
        if tuple(y0.shape[1:]) != layer.state_shape:
            expected, got = (", ".join(map(str, shape)) for shape in (layer.state_shape, y0.shape[1:]))
            raise ShapeError(
                f"expected a state of shape (batch, {expected}), for which the layer was reduced, got (batch, {got}): "
                "call fold with arguments that the network can be called with"
            )
        outputs = 0 if layer.output == "final" else len(layer.t if t is None else t)
        times = None if t is None else [float(time) for time in t]
        if isinstance(layer.encode, nn.Identity):
            return torch.ops.torchmor.reduced_solve(y0, u, times, self.number, outputs)
        z0 = F.linear(y0.flatten(1), layer.encode.weight, layer.encode.bias)
        z = torch.ops.torchmor.reduced_solve(z0, u, times, self.number, outputs)
        y = F.linear(z, layer.decode.weight, layer.decode.bias)
        return y.reshape(*z.shape[:-1], *layer.state_shape)

    def _closed(self, y0: Tensor, u: Any, t: Any) -> Tensor:
        """Trace the whole layer: a function of t is no argument of an operation."""
        if not is_fixed_step(self.layer.method):
            raise UnsupportedOperationError(
                "expected samples of the input u, and times as numbers, to trace the solve of a reduced layer with the "
                f"method {self.layer.method}, got a function, or times as a Tensor: pass samples (batch, times, p), or "
                "set a fixed-step method"
            )
        return self.layer(y0, u, t)


def open_network(
    small: nn.Module, example: tuple[Any, ...], batched: tuple[Any, ...]
) -> tuple[fx.GraphModule, dict[str, ReducedODELayer]]:
    """Return the graph of a copy of a network in eval mode, and copies of its reduced layers by name, in their order.

    Parameters
    ----------
    small
        The network.
    example
        Arguments of a call, with two samples or more.
    batched
        The same with True in the place of batched tensors.

    Raises
    ------
    UnknownLayerError
        The network has no reduced layer.
    UnsupportedOperationError
        torch.export cannot trace the network with a dynamic batch.
    """
    layers = {name: copy.deepcopy(m) for name, m in small.named_modules() if isinstance(m, ReducedODELayer)}
    if not layers:
        raise UnknownLayerError(
            f"expected a network with a ReducedODELayer, got a {type(small).__name__} without: reduce it with "
            "reduce_network first"
        )
    opened = {name: _OpenedLayer(layer, number) for number, (name, layer) in enumerate(layers.items())}
    network = with_layers(small, opened).eval()
    batch = torch.export.Dim("batch")
    dynamic = tree_map(lambda is_batched: {0: batch} if is_batched else None, batched)
    dynamic = inspect.signature(network.forward).bind(*dynamic).arguments
    failures = []
    for strict in (False, True):  # the first does not understand len(x), the second not all of Python
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch about itself
                program = torch.export.export(network, example, dynamic_shapes=dynamic, strict=strict)
                program = program.run_decompositions({})
        except TorchmorError:
            raise
        except Exception as error:  # torch raises what it likes
            failures.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            continue
        return _plain(program, example), layers
    full = ", ".join(repr(name) for name, module in small.named_modules() if isinstance(module, ODELayer))
    raise UnsupportedOperationError(
        "expected a network that torch.export can trace with a dynamic batch, got one that it cannot "
        f"({'; '.join(dict.fromkeys(failures))}): let its forward consist of tensor operations that do not branch on "
        "values, for any number of samples"
        + (f"; the ODE layers {full} are solved by torchdiffeq, which it cannot trace: reduce them too" if full else "")
    )


def _plain(program: torch.export.ExportedProgram, example: tuple[Any, ...]) -> fx.GraphModule:
    """Return the module of a program without its checks, and without flattening of arguments that are flat."""
    module = program.module()
    for node in reversed(module.graph.nodes):
        if node.target == "_guards_fn" or "_assert" in str(node.target):
            module.graph.erase_node(node)
        elif node.op == "output":
            output = node
    result = tree_unflatten(list(output.args[0]), program.call_spec.out_spec)
    nested = any(leaf is not argument for leaf, argument in zip_longest(tree_leaves(example), example))
    if not nested and _is_plain(result):
        module.graph.set_codegen(fx.graph.CodeGen())
        output.args = (result,)
    return module


def _is_plain(result: Any) -> bool:
    if type(result) in (tuple, list, immutable_list, dict, immutable_dict):  # the second of each are from a graph
        return all(_is_plain(part) for part in (result.values() if isinstance(result, dict) else result))
    return result is None or isinstance(result, fx.Node | bool | int | float | str)
