"""What is known of a network's graph: what its values are, depend on, and cost."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from torchmor.adapters.export.time_arguments import time_arguments
from torchmor.adapters.folding.opened_network import open_network
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.cost import Cost, count
from torchmor.adapters.solving.torch_private import operation_name, tree_leaves, tree_map
from torchmor.adapters.tracing.operations import SHAPE_ONLY
from torchmor.engine.errors import CalibrationError

#: Samples of the example with which the network is traced, and its cost measured.
_TRACED_SAMPLES = 3


@dataclass(frozen=True)
class Call:
    """One call of a reduced layer in a graph.

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
    """A network with reduced layers as a graph of tensor operations, in eval mode; solves are modules in it.

    Parameters
    ----------
    small
        The network; it is copied.
    example
        Arguments of a call. Tensors as long as the first along dimension 0 are batched, but for times of ODE layers.

    Attributes
    ----------
    module
        The graph as a module.
    calls
        Calls of reduced layers, in the order of evaluation.
    closed
        Names of layers without such calls: of those that were traced as a whole.
    samples
        Number of samples of the example.
    costs
        Operation → its Cost.

    Raises
    ------
    CalibrationError
        The example has no samples.
    UnknownLayerError, UnsupportedOperationError
        As :func:`~torchmor.adapters.folding.opened_network.open_network`.
    """

    def __init__(self, small: nn.Module, example: Sequence[Any]):
        leaves, times = tree_leaves(tuple(example)), time_arguments(small, example)
        self._times = [leaves[i] for i in times]
        tensors = [a for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.ndim and i not in times]
        if not tensors or not len(tensors[0]):
            got = f"a Tensor of shape {tuple(tensors[0].shape)}" if tensors else "no Tensor"
            raise CalibrationError(
                f"expected arguments of the network with at least one sample along dimension 0, got {got}: call "
                "fold(small, x) as the network is called, small(x)"
            )
        self.samples = len(tensors[0])
        traced = self.select(example, np.arange(_TRACED_SAMPLES) % self.samples)
        self.module, layers = open_network(small, traced, tree_map(self._is_batched, tuple(example)))
        self.batched_placeholder = next(
            node
            for node in self.placeholders
            if isinstance(node.meta["val"], Tensor) and any(isinstance(n, torch.SymInt) for n in node.meta["val"].shape)
        )
        self._batch = self.batched_placeholder.meta["val"].shape[0].node.expr
        self.calls = self._place_solves(list(layers.items()))
        self.closed = tuple(name for name in layers if name not in {call.layer for call in self.calls})
        self._dependent: dict[fx.Node, bool] = {}
        for node in self.nodes:
            self._dependent[node] = self._find_dependence(node)
        self.costs = self._measure(traced)

    @property
    def nodes(self) -> Iterable[fx.Node]:
        """All nodes, in the order of evaluation."""
        return self.module.graph.nodes

    @property
    def placeholders(self) -> list[fx.Node]:
        """Nodes of the arguments."""
        return [node for node in self.nodes if node.op == "placeholder"]

    @property
    def outputs(self) -> list[fx.Node]:
        """Nodes of the results."""
        return [result for node in self.nodes if node.op == "output" for result in node.all_input_nodes]

    def select(self, example: Sequence[Any], rows: np.ndarray) -> tuple[Any, ...]:
        """Return the arguments of some samples of the example, by their indices."""
        indices = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return tuple(tree_map(lambda a: a[indices.to(a.device)] if self._is_batched(a) else a, tuple(example)))

    def _is_batched(self, argument: Any) -> bool:
        known = any(argument is times for times in self._times)
        return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == self.samples and not known

    # -- what a node is -----------------------------------------------------------------------------------------------

    def depends(self, node: fx.Node) -> bool:
        """Whether a node's value is a tensor that depends on the values of the arguments."""
        return self._dependent[node]

    def batch_axis(self, node: fx.Node) -> int | None:
        """Return the dimension of a tensor that counts samples; None where there is not exactly one that does."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        axes = {
            i: cast(Any, length).node.expr for i, length in enumerate(value.shape) if isinstance(length, torch.SymInt)
        }
        return next(iter(axes)) if list(axes.values()) == [self._batch] else None

    def sample_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of one sample of a tensor with a batch axis."""
        axis = self.batch_axis(node)
        return tuple(int(length) for i, length in enumerate(node.meta["val"].shape) if i != axis)

    def size(self, node: fx.Node) -> int:
        """Number of entries of one sample."""
        return prod(self.sample_shape(node))

    def arguments(self, node: fx.Node) -> list[fx.Node]:
        """Nodes whose values a node reads, other than their shapes."""
        if not _reads_shapes_only(node):
            return node.all_input_nodes
        return [a for a in node.all_input_nodes if not (self._dependent[a] and self._has_known_shape(a))]

    def needed(self, targets: Iterable[fx.Node], known: Iterable[fx.Node] = ()) -> list[fx.Node]:
        """Return the nodes that targets are computed by, from some that are known, in the order of evaluation."""
        known, found = set(known), set()
        stack = [target for target in targets if target not in known]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(argument for argument in self.arguments(node) if argument not in known)
        return [node for node in self.nodes if node in found]

    # -- values -------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        targets: Sequence[fx.Node],
        known: Mapping[fx.Node, Any],
        batch: int,
        call: Callable[..., Any] | None = None,
    ) -> list[Any]:
        """Return the values of nodes for known values of others, in a batch of a size.

        Each operation is called as ``call(node, function, args, kwargs)``, by default ``function(*args, **kwargs)``.
        """
        values = dict(known)
        for node in self.nodes:
            if isinstance(node.meta.get("val"), torch.SymInt) and self._is_known(node.meta["val"]):
                values[node] = self._number(node.meta["val"], batch)
        for node in self.needed(targets, values):
            if node.op == "placeholder":
                raise AssertionError(f"the argument {node.name} is not known")
            if node.op == "get_attr":
                values[node] = self.value(node)
                continue
            for argument in node.all_input_nodes:
                if argument not in values:  # its shape is read
                    values[argument] = self._zeros(argument, batch)
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            module = node.op == "call_module"
            function: Any = self.module.get_submodule(str(node.target)) if module else node.target
            values[node] = function(*args, **kwargs) if call is None else call(node, function, args, kwargs)
        return [values[target] for target in targets]

    def value(self, node: fx.Node) -> Tensor:
        """Return the tensor that a node reads from the module."""
        return operator.attrgetter(str(node.target))(self.module)

    def as_function(self, target: fx.Node, sources: Sequence[fx.Node]) -> Callable[[Tensor], Tensor]:
        """Return what takes the values of some nodes to that of another, as a function of rows.

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

    def _is_known(self, length: Any) -> bool:
        """Whether a length follows from the batch; how many samples a mask keeps, say, does not."""
        return isinstance(length, int) or length.node.expr.free_symbols <= {self._batch}

    def _has_known_shape(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return not isinstance(value, Tensor) or all(map(self._is_known, value.shape))

    def _number(self, value: Any, batch: int) -> int:
        return int(value.node.expr.subs({self._batch: batch})) if isinstance(value, torch.SymInt) else int(value)

    def _zeros(self, node: fx.Node, batch: int) -> Tensor:
        value = node.meta["val"]
        return torch.zeros([self._number(n, batch) for n in value.shape], dtype=value.dtype, device=value.device)

    # -- building -----------------------------------------------------------------------------------------------------

    def new_name(self, stem: str) -> str:
        """Return a name that the module does not use yet."""
        return next(name for name in (f"{stem}_{i}" for i in itertools.count()) if not hasattr(self.module, name))

    def _place_solves(self, layers: list[tuple[str, ReducedODELayer]]) -> list[Call]:
        """Put modules in the places of the operations that stand for solves."""
        calls, names = [], {}
        for node in list(self.nodes):
            if node.target is not torch.ops.torchmor.reduced_solve.default:
                continue
            z0, u, times, t, number, _ = cast(Any, node.args)
            name, layer = layers[number]
            kept = isinstance(layer.encode, nn.Identity)
            if number not in names:
                names[number] = self.new_name("reduced_solve")
                self.module.add_submodule(names[number], (layer if kept else _solve_of(layer)).eval())
            with self.module.graph.inserting_before(node):
                solve = self.module.graph.call_module(names[number], (z0, u, times if t is None else t))
            solve.meta = dict(node.meta)
            decode = None if kept else next(iter(node.users), None)  # None where the result is not used
            node.replace_all_uses_with(solve)
            self.module.graph.erase_node(node)
            calls.append(Call(name, solve, None if kept else z0, decode))
        return calls

    def _find_dependence(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if node.op == "placeholder":
            return isinstance(value, Tensor)
        if node.op in ("get_attr", "output") or isinstance(value, torch.SymInt) or _reads_shapes_only(node):
            return False
        return node.op == "call_module" or any(self._dependent[argument] for argument in node.all_input_nodes)

    def _measure(self, example: tuple[Any, ...]) -> dict[fx.Node, Cost]:
        costs: dict[fx.Node, Cost] = {}

        def call(node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            args = tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, args)  # hooks of gradients interfere
            operations, written, value = count(function, *args, **kwargs)
            costs[node] = Cost(operations // _TRACED_SAMPLES, written // _TRACED_SAMPLES)
            return value

        known = dict(zip(self.placeholders, tree_leaves(example), strict=True))
        self.evaluate(self.outputs, known, _TRACED_SAMPLES, call)
        return costs


def _solve_of(layer: ReducedODELayer) -> ReducedODELayer:
    """Return the solve of a reduced layer as a layer of its own, z(t_0) ↦ z, with the error norm of the whole layer."""
    settings = layer.solver_settings()
    return ReducedODELayer(settings, (layer.ode.state_size,), layer.ode, None, layer.input_use, layer.explanation)


def _reads_shapes_only(node: fx.Node) -> bool:
    return operation_name(node.target) is not None and operation(node) in SHAPE_ONLY


def operation(node: fx.Node) -> str:
    """Return the name of a node's operation, for users."""
    name = operation_name(node.target)
    if name is None:
        return getattr(node.target, "__name__", str(node.target))
    return "batch_norm" if "batch_norm" in name else name
