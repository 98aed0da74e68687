"""A network with reduced layers as one graph of tensor operations, in which projections and liftings stand alone.

The graph is that of torch.export with a dynamic batch, so that it does not matter how the network is written. The solve
of each reduced layer is one node, its projection and its lifting are operations like those around them.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from torchmor.adapters.cost import count
from torchmor.adapters.files import with_layers
from torchmor.adapters.operations import SHAPE_ONLY
from torchmor.adapters.reduced_layer import ReducedODELayer
from torchmor.adapters.solvers import is_fixed_step
from torchmor.engine.errors import (
    CalibrationError,
    ShapeError,
    TorchmorError,
    UnknownLayerError,
    UnsupportedOperationError,
)

#: Samples of the example with which the network is traced.
_TRACED_SAMPLES = 3


@torch.library.custom_op("torchmor::reduced_solve", mutates_args=())
def _reduced_solve(z0: Tensor, u: Tensor | None, times: Sequence[float] | None, layer: int, outputs: int) -> Tensor:
    """Stands in a graph for the solve of the reduced layer of a number, until its module takes the place."""
    raise AssertionError("a placeholder, which is never run")


@_reduced_solve.register_fake
def _(z0, u, times, layer, outputs):
    return z0.new_empty((outputs, *z0.shape) if outputs else z0.shape)


class _Opened(nn.Module):
    """A reduced layer whose projection and lifting are operations of their own, and whose solve is one operation."""

    def __init__(self, layer: ReducedODELayer, number: int):
        super().__init__()
        self.layer, self.number = layer, number

    def forward(self, y0, u=None, t=None):
        layer = self.layer
        if (u is not None and not isinstance(u, Tensor)) or isinstance(t, Tensor):
            if not is_fixed_step(layer.method):
                raise UnsupportedOperationError(
                    "expected samples of the input u and times as numbers, to trace the solve of a reduced layer with "
                    f"the method {layer.method}, got a function, or times as a Tensor: pass samples (batch, times, p), "
                    "or set a fixed-step method"
                )
            return layer(y0, u, t)
        if tuple(y0.shape[1:]) != layer.state_shape:
            raise ShapeError(f"expected a state of shape (batch, {layer.state_shape}), got {tuple(y0.shape)}")
        outputs = 0 if layer.output == "final" else len(layer.t if t is None else t)
        times = None if t is None else [float(time) for time in t]
        if isinstance(layer.encode, nn.Identity):
            return torch.ops.torchmor.reduced_solve(y0, u, times, self.number, outputs)
        z0 = F.linear(y0.flatten(1), layer.encode.weight, layer.encode.bias)
        z = torch.ops.torchmor.reduced_solve(z0, u, times, self.number, outputs)
        y = F.linear(z, layer.decode.weight, layer.decode.bias)
        return y.reshape(*z.shape[:-1], *layer.state_shape)


@dataclass(frozen=True)
class Call:
    """One call of a reduced layer in the graph.

    Parameters
    ----------
    layer
        Name of the layer.
    solve
        Node of its solve.
    encode, decode
        Nodes of projection and lifting; None where the state is kept.
    """

    layer: str
    solve: fx.Node
    encode: fx.Node | None
    decode: fx.Node | None


class NetworkGraph:
    """A network in eval mode as a graph of tensor operations.

    Parameters
    ----------
    small
        A network with reduced layers; it is copied.
    example
        Its arguments.

    Attributes
    ----------
    module
        The graph as a module.
    calls
        The calls of reduced layers, in the order of evaluation.
    closed
        Names of layers whose input is a function, or whose times are a Tensor: they are not opened.

    Raises
    ------
    UnknownLayerError
        The network has no reduced layer.
    CalibrationError
        There are no samples in the example.
    UnsupportedOperationError
        torch.export cannot trace the network with a dynamic batch.
    """

    def __init__(self, small: nn.Module, example: Sequence[Any]):
        layers = {name: m for name, m in small.named_modules() if isinstance(m, ReducedODELayer)}
        if not layers:
            raise UnknownLayerError(
                f"expected a network with a ReducedODELayer, got a {type(small).__name__} without: reduce it with "
                "reduce_network first"
            )
        batched = [a for a in tree_leaves(example) if isinstance(a, Tensor) and a.ndim]
        if not batched or not len(batched[0]):
            got = f"a Tensor of shape {tuple(batched[0].shape)}" if batched else "none"
            raise CalibrationError(
                f"expected example arguments of the network, with at least one sample along dimension 0, got {got}"
            )
        self.samples = len(batched[0])
        layers = {name: copy.deepcopy(layer) for name, layer in layers.items()}
        opened = {name: _Opened(layer, number) for number, (name, layer) in enumerate(layers.items())}
        network = with_layers(small, opened).eval()
        traced = self.select(example, np.arange(_TRACED_SAMPLES) % self.samples)
        self.module = _export(network, traced, tree_map(self._batched, tuple(example)))
        self.graph = self.module.graph
        self.batched_placeholder = next(
            node
            for node in self.placeholders
            if isinstance(node.meta.get("val"), Tensor) and isinstance(node.meta["val"].shape[0], torch.SymInt)
        )
        self._batch = self.batched_placeholder.meta["val"].shape[0].node.expr
        self.calls = self._place_solves(list(layers.items()))
        self.closed = tuple(name for name in layers if name not in {call.layer for call in self.calls})
        self.symbols = [n for n in self.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt)]
        self._dependent: dict[fx.Node, bool] = {}
        for node in self.graph.nodes:
            self._dependent[node] = self._find_dependence(node)
        self.costs = self._measure(traced)

    # -- arguments --------------------------------------------------------------------------------------------------

    def _batched(self, argument: Any) -> bool:
        return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == self.samples

    def select(self, example: Sequence[Any], rows: np.ndarray) -> tuple[Any, ...]:
        """Return the arguments of some samples of the example, by their indices."""
        rows = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return tuple(tree_map(lambda a: a[rows.to(a.device)] if self._batched(a) else a, tuple(example)))

    @property
    def placeholders(self) -> list[fx.Node]:
        """Nodes of the arguments."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    # -- what is known of a node --------------------------------------------------------------------------------------

    def depends(self, node: fx.Node) -> bool:
        """Whether a node's value is a tensor that depends on the arguments' values."""
        return self._dependent[node]

    def batch_axis(self, node: fx.Node) -> int | None:
        """Return the dimension of a tensor that counts samples; None where there is not exactly one that does."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        axes = [i for i, length in enumerate(value.shape) if isinstance(length, torch.SymInt)]
        return axes[0] if len(axes) == 1 and value.shape[axes[0]].node.expr == self._batch else None

    def sample_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of one sample of a tensor that has a batch axis."""
        axis = self.batch_axis(node)
        return tuple(int(length) for i, length in enumerate(node.meta["val"].shape) if i != axis)

    def size(self, node: fx.Node) -> int:
        """Number of entries of one sample."""
        return prod(self.sample_shape(node))

    # -- values -------------------------------------------------------------------------------------------------------

    def arguments(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that a node reads; of operations that read shapes only, no tensors that depend on arguments."""
        if not _reads_shapes_only(node):
            return node.all_input_nodes
        return [n for n in node.all_input_nodes if not self._dependent[n]]

    def needed(self, targets: Sequence[fx.Node], stop: Sequence[fx.Node] = ()) -> list[fx.Node]:
        """Return the nodes that targets are computed from, up to some that are known, in the order of evaluation."""
        stop = set(stop)
        found, stack = set(), [t for t in targets if t not in stop]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(a for a in self.arguments(node) if a not in stop)
        return [node for node in self.graph.nodes if node in found]

    def evaluate(
        self, targets: Sequence[fx.Node], known: Mapping[fx.Node, Any], batch: int, call: Callable | None = None
    ) -> list[Any]:
        """Return the values of nodes, from the known values of others, in a batch of a size.

        `call` is called as call(node, function, args, kwargs) instead of the operations.
        """
        values = dict(known)
        for node in self.symbols:
            values[node] = self._number(node.meta["val"], batch)
        order = self.needed(targets, tuple(values))
        for node in order:
            if node.op == "placeholder":
                raise AssertionError(f"the argument {node.name} is not known")
            if node.op == "get_attr":
                values[node] = self.value(node)
                continue
            for argument in node.all_input_nodes:
                if argument not in values:  # read for its shape
                    values[argument] = self._zeros(argument, batch)
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            function = self.module.get_submodule(node.target) if node.op == "call_module" else node.target
            values[node] = function(*args, **kwargs) if call is None else call(node, function, args, kwargs)
        return [values[target] for target in targets]

    def value(self, node: fx.Node) -> Tensor:
        """Return the tensor that a node reads from the module."""
        return operator.attrgetter(node.target)(self.module)

    def as_function(self, target: fx.Node, sources: Sequence[fx.Node]) -> Callable[[Tensor], Tensor]:
        """Return what takes the values of sources to that of a target, as a function of rows.

        Law: it maps (batch, Σ sizes of sources), the sources flattened and side by side, to (batch, size of target).
        """
        sizes = [self.size(source) for source in sources]

        def function(rows: Tensor) -> Tensor:
            known = {
                source: part.reshape(len(rows), *self.sample_shape(source)).movedim(0, self.batch_axis(source))
                for source, part in zip(sources, rows.split(sizes, dim=1), strict=True)
            }
            (value,) = self.evaluate([target], known, len(rows))
            return value.movedim(self.batch_axis(target), 0).reshape(len(rows), -1)

        return function

    def _number(self, value: Any, batch: int) -> int:
        return int(value.node.expr.subs({self._batch: batch})) if isinstance(value, torch.SymInt) else int(value)

    def _zeros(self, node: fx.Node, batch: int) -> Tensor:
        value = node.meta["val"]
        return torch.zeros([self._number(n, batch) for n in value.shape], dtype=value.dtype, device=value.device)

    def new_name(self, stem: str) -> str:
        """Return a name that the module does not use yet."""
        return next(name for name in (f"{stem}_{i}" for i in numbers()) if not hasattr(self.module, name))

    # -- building -----------------------------------------------------------------------------------------------------


    def _place_solves(self, layers: list[tuple[str, ReducedODELayer]]) -> list[Call]:
        """Put the modules of reduced solves in the place of the operation that stands for them."""
        calls, targets = [], {}
        for node in list(self.graph.nodes):
            if node.target is not torch.ops.torchmor.reduced_solve.default:
                continue
            z0, u, times, number, _ = node.args
            name, layer = layers[number]
            kept = isinstance(layer.encode, nn.Identity)
            if number not in targets:
                targets[number] = self.new_name("reduced_solve")
                self.module.add_submodule(targets[number], _inner(layer).eval())
            with self.graph.inserting_before(node):
                solve = self.graph.call_module(targets[number], (z0, u, times))
            solve.meta = dict(node.meta)
            decode = None if kept else next(iter(node.users), None)
            node.replace_all_uses_with(solve)
            self.graph.erase_node(node)
            calls.append(Call(name, solve, None if kept else z0, decode))
        self.graph.lint()
        return calls

    def _find_dependence(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if node.op == "placeholder":
            return isinstance(value, Tensor)
        if node.op in ("get_attr", "output") or isinstance(value, torch.SymInt) or _reads_shapes_only(node):
            return False
        return node.op == "call_module" or any(self._dependent[n] for n in node.all_input_nodes)

    def _measure(self, example: tuple[Any, ...]) -> dict[fx.Node, tuple[int, int]]:
        """Return multiply–adds and bytes written of each node, for each sample."""
        costs: dict[fx.Node, tuple[int, int]] = {}

        def call(node, function, args, kwargs):
            operations, written, value = count(function, *args, **kwargs)
            costs[node] = (operations // _TRACED_SAMPLES, written // _TRACED_SAMPLES)
            return value

        outputs = [n for node in self.graph.nodes if node.op == "output" for n in node.all_input_nodes]
        known = dict(zip(self.placeholders, tree_leaves(example), strict=True))
        with torch.no_grad():
            self.evaluate(outputs, known, _TRACED_SAMPLES, call)
        return costs


def _reads_shapes_only(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and operation(node) in SHAPE_ONLY


def operation(node: fx.Node) -> str:
    """Return the name of a node's operation in words for users."""
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target._schema.name.removeprefix("aten::")
        return "batch_norm" if "batch_norm" in name else name
    return getattr(node.target, "__name__", str(node.target))


def _inner(layer: ReducedODELayer) -> ReducedODELayer:
    """Return the solve of a reduced layer as a layer z(t_0) ↦ z, with the error norm of the whole layer."""
    if isinstance(layer.encode, nn.Identity):
        return layer
    settings = layer.solver_settings()
    return ReducedODELayer(settings, (layer.ode.state_size,), layer.ode, None, layer.input_use, layer.explanation)


def _export(network: nn.Module, example: tuple[Any, ...], batched: tuple[Any, ...]) -> fx.GraphModule:
    """Return the functional graph of a network with a dynamic batch."""
    batch = torch.export.Dim("batch")
    dynamic = tree_map(lambda b: {0: batch} if b else None, batched)
    dynamic = inspect.signature(network.forward).bind(*dynamic).arguments
    failures = []
    for strict in (False, True):  # the first does not understand len(x), the second less of Python
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
        return _plain(program, example)
    raise UnsupportedOperationError(
        "expected a network that torch.export can trace with a dynamic batch, got one that it cannot: "
        f"{'; '.join(dict.fromkeys(failures))}; let its forward consist of tensor operations that do not depend on "
        "values, for any number of samples, or fold the part of it that does"
    )


def _plain(program: torch.export.ExportedProgram, example: tuple[Any, ...]) -> fx.GraphModule:
    """Return the module of an exported program without its checks, and without flattening where there is nothing to."""
    module = program.module()
    for node in reversed(module.graph.nodes):
        if node.target == "_guards_fn" or "_assert" in str(node.target):
            module.graph.erase_node(node)
        elif node.op == "output":
            output = node
    result = tree_unflatten(list(output.args[0]), program.call_spec.out_spec)
    nested = any(leaf is not a for leaf, a in zip_longest(tree_leaves(example), example))
    if not nested and _is_plain(result):
        module.graph.set_codegen(fx.graph.CodeGen())
        output.args = (result,)
    return module


def _is_plain(result: Any) -> bool:
    if type(result) in (tuple, list, dict):
        return all(_is_plain(part) for part in (result.values() if isinstance(result, dict) else result))
    return result is None or isinstance(result, fx.Node | bool | int | float | str)
