"""From an ODE function in torch to a flat graph of aten operations for one sample, in float64."""

from __future__ import annotations

import copy
import linecache
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx.traceback import preserve_node_meta, set_stack_trace
from torch.overrides import TorchFunctionMode

from torchmor.adapters.solving.torch_private import (
    changes_arguments,
    is_operation,
    make_fx,
    tracing_compiled,
    tree_map_only,
    without_repetitions,
    written_arguments,
)
from torchmor.adapters.tracing.moving_index import MOVING_INDEX, number_index
from torchmor.adapters.tracing.rewriting import decompositions
from torchmor.adapters.tracing.without_state import WITHOUT_STATE
from torchmor.engine.errors import TorchmorError, UnsupportedOperationError

_FOLDERS = (Path(torch.__file__).parent, Path(__file__).parents[1])  # of torch, and of torchmor.adapters
_LIBRARIES = (*(f"{folder}{os.sep}" for folder in _FOLDERS), "<string>", "<eval_with_key>")


def frozen_copy(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a module, or of a method with its module, in eval mode; functions have no copy."""
    try:
        f = copy.deepcopy(f)
    except RuntimeError as error:
        raise UnsupportedOperationError(
            f"expected an ODE function that can be copied, got one that cannot ({error}): detach tensors that it keeps "
            "from earlier calls"
        ) from error
    for part in (f, getattr(f, "func", None)):
        module = getattr(part, "__self__", part)
        if isinstance(module, torch.nn.Module):
            module.eval()
    return f


def capture(f: Callable[..., Any], t: torch.Tensor, y: torch.Tensor, u: torch.Tensor | None) -> torch.fx.GraphModule:
    """Return the float64 graph of f for one sample, without views of mutated tensors."""
    arguments: tuple[torch.Tensor, ...] = (t, y) if u is None else (t, y, u)
    functionalized = torch.func.functionalize(lambda *a: f(*a, *((None,) if u is None else ())))
    try:
        # the second pass functionalises what composite operations (circular padding) mutate inside themselves,
        # moves constants to float64 on the CPU, and rewrites
        with preserve_node_meta(), tracing_compiled():  # looks into compiled f
            with _Places():
                graph = make_fx(functionalized)(*arguments)
            _to_float64(graph)
            arguments = tuple(a.detach().to("cpu", torch.float64) for a in arguments)
            rerun = torch.func.functionalize(_Rerun(graph).run)
            graph = make_fx(rerun, decomposition_table=decompositions())(*arguments)
    except TorchmorError:
        raise
    except Exception as error:  # f itself has just run
        raise _untraceable(error) from error
    first: dict[Any, torch.fx.Node] = {}
    for node in graph.graph.find_nodes(op="get_attr"):
        node.replace_all_uses_with(first.setdefault(node.target, node))
    graph.graph.eliminate_dead_code()
    graph.graph = without_repetitions(graph.graph)  # what is written twice becomes one stage
    return graph


class _Places(TorchFunctionMode):
    """Notes for each operation where in the user's code it stands; the graph keeps it as the stack trace.

    An index that is a tensor of one number stays a tensor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and (value := number_index(*args)) is not None:
            return value
        frames = (frame for frame, _ in traceback.walk_stack(sys._getframe(1)))
        set_stack_trace([_place(takewhile(lambda frame: frame.f_code.co_filename != __file__, frames))])
        return func(*args, **(kwargs or {}))


def _place(frames: Iterable[FrameType]) -> str:
    """Return the innermost place outside of torch and torchmor, or the innermost module, or ""."""
    module = ""
    for frame in frames:  # from the inside
        path = frame.f_code.co_filename
        if not path.startswith(_LIBRARIES):
            line = linecache.getline(path, frame.f_lineno).strip()
            return f" at {path}:{frame.f_lineno}" + (f" ({line})" if line else "")
        owner = frame.f_locals.get("self")
        if not module and frame.f_code.co_name == "forward" and isinstance(owner, torch.nn.Module):
            module = f" in {type(owner).__name__}"
    return module


def _untraceable(error: Exception) -> UnsupportedOperationError:
    place = _place(frame for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))
    text = str(error) or type(error).__name__
    if any(part in text for part in ("data-dependent", "value out of a tracing tensor", "tolist()")):
        return UnsupportedOperationError(
            "the ODE function branches on, or reads as a Python number, a value that depends on the state, the "
            f"input or the time{place}; expected tensor operations only: use torch.where instead of if, and t "
            "itself instead of t.item()"
        )
    if any(part in text for part in ("requires_grad", "require grad")):
        return UnsupportedOperationError(
            f"the ODE function differentiates inside itself{place}; expected affine and componentwise operations "
            "only: write the derivative out, as a Hamiltonian's in closed form, or leave the divergence of a "
            "continuous normalising flow away and solve for the samples alone"
        )
    if "out of bounds" in text:
        return UnsupportedOperationError(
            f"the ODE function looks at other samples of the batch{place}, as graph convolutions do over the nodes of "
            f"a graph ({text.splitlines()[0]}); expected samples that do not depend on each other: make the nodes a "
            "dimension of one sample's state, (batch, nodes, features), and gather and scatter along that"
        )
    if "Expected more than 1 value per channel" in text:
        return UnsupportedOperationError(
            f"the ODE function normalises by statistics of the batch{place}; expected samples that do not depend on "
            "each other: use running statistics and eval()"
        )
    return UnsupportedOperationError(f"the ODE function cannot be traced for one sample{place}: {text.splitlines()[0]}")


def _to_float64(graph: torch.fx.GraphModule) -> None:
    """Make a graph one of double precision, on the CPU.

    Weights are converted as they are. What is made inside the function is first evaluated in its own precision, as the
    function does.
    """
    constants = _constants(graph)
    names = {id(value): f"_constant{number}" for number, value in enumerate(constants.values())}
    for node, value in constants.items():
        name = names[id(value)]
        if not hasattr(graph, name):
            value = value if value.layout == torch.strided else value.to_dense()
            graph.register_buffer(name, value.detach().to("cpu", in_float64(value.dtype)))
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        kwargs = {key: in_float64(value) for key, value in node.kwargs.items()}
        node.kwargs = kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {})
    graph.recompile()


def in_float64(value: Any) -> Any:
    """Return the double-precision dtype for a floating or complex one; anything else as it is."""
    if not isinstance(value, torch.dtype):
        return value
    return torch.complex128 if value.is_complex else torch.float64 if value.is_floating_point else value


def _constants(graph: torch.fx.GraphModule) -> dict[torch.fx.Node, torch.Tensor]:
    """Return the values of the largest parts of a graph that depend on no argument."""
    changed: set[torch.fx.Node] = set()  # in place, or views of what is
    for node in reversed(graph.graph.nodes):
        changed.update(written_arguments(node))
        if node in changed and (node.target is operator.getitem or getattr(node.target, "is_view", False)):
            changed.update(node.all_input_nodes)
    values: dict[torch.fx.Node, Any] = {}
    first: dict[str, torch.fx.Node] = {}
    same: dict[torch.fx.Node, torch.fx.Node] = {}  # what is written twice is one constant
    for node in graph.graph.nodes:
        said = f"{node.target} {torch.fx.node.map_arg((node.args, node.kwargs), lambda x: same.get(x, x))}"
        same[node] = first.setdefault(said, node) if node.op == "get_attr" or node not in changed else node
        if same[node] is not node and same[node] in values:
            values[node] = values[same[node]]
        elif node.op == "get_attr":
            values[node] = _widened(getattr(graph, node.target))
        elif (
            node.op == "call_function"
            and _is_pure(node)
            and node not in changed
            and all(x in values for x in node.all_input_nodes)
        ):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            try:
                value = node.target(*args, **kwargs)
            except RuntimeError:  # of one precision only, where weights meet what is made in a lower one
                value = node.target(*tree_map_only(torch.Tensor, _widened, args), **kwargs)
            values[node] = torch.zeros_like(value) if "empty" in str(node.target) else value
    return {
        node: value
        for node, value in values.items()
        if isinstance(value, torch.Tensor) and any(user not in values for user in node.users)
    }


def _widened(value: Any) -> Any:
    """Return a floating or complex tensor in double precision; anything else as it is."""
    return value.to(in_float64(value.dtype)) if isinstance(value, torch.Tensor) else value


def _is_pure(node: torch.fx.Node) -> bool:
    if is_operation(node.target):
        operation: Any = node.target
        return not changes_arguments(operation) and torch.Tag.nondeterministic_seeded not in operation.tags
    return node.target is operator.getitem


class _Rerun(torch.fx.Interpreter):
    """Runs a graph of (t, y, …); operations on what does not depend on y are written in such of few components."""

    def __init__(self, graph: torch.fx.GraphModule):
        super().__init__(graph)
        arguments = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self._varying, self._of_state = set(arguments), {arguments[1]}
        for node in graph.graph.nodes:
            for kind in (self._varying, self._of_state):
                if kind.intersection(node.all_input_nodes):
                    kind.add(node)

    def run_node(self, n: torch.fx.Node) -> Any:
        self._node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        written: Callable[..., Any] | None = None if self._node in self._of_state else WITHOUT_STATE.get(target)
        if target in MOVING_INDEX:
            place, moved = MOVING_INDEX[target]
            index = self._node.args[place]
            moves = not self._varying.isdisjoint(index if isinstance(index, list | tuple) else (index,))
            written = moved if moves else None
        value = NotImplemented if written is None else written(*args, **kwargs)
        if value is NotImplemented:
            value = super().call_function(target, args, kwargs)
        return tree_map_only(torch.Tensor, lambda x: x.to(in_float64(x.dtype)), value)  # truth values times a number
