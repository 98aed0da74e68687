"""What torchmor uses of torch that torch may change in any version: the only file that knows these modules.

What is heavy is imported when it is called: running a reduced layer needs none of it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_structure, tree_unflatten

__all__ = [
    "DispatchMode",
    "aoti_compile_and_package",
    "aoti_load_package",
    "argument_schemas",
    "changes_arguments",
    "core_decompositions",
    "decompositions",
    "forget_compiled",
    "is_operation",
    "make_fx",
    "mark_dynamic",
    "operation_name",
    "recompiling",
    "tracing_compiled",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_structure",
    "tree_unflatten",
    "version",
    "without_repetitions",
    "written_arguments",
]


def _loaded(name: str) -> Any:
    """Return a module; sympy, which comes along with some, would leave a filter of warnings in the process."""
    with warnings.catch_warnings():
        return importlib.import_module(name)


class DispatchMode(TorchDispatchMode):
    """A context that sees each operation, in `__torch_dispatch__`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no type for it

    def __enter__(self) -> Any:
        _loaded("torch._dynamo")  # which torch would load at the first operation
        return super().__enter__()  # type: ignore[no-untyped-call] # as above


def operation_name(target: Any) -> str | None:
    """Return the name of an operation of a graph, without "aten::" and overload; None for what is no operation."""
    return target._schema.name.removeprefix("aten::") if is_operation(target) else None


def is_operation(target: Any) -> bool:
    """Whether the target of a graph's node is one of torch's operations."""
    return isinstance(target, torch._ops.OpOverload)


def changes_arguments(target: Any) -> bool:
    """Whether an operation works in place."""
    return is_operation(target) and target._schema.is_mutable


def written_arguments(node: fx.Node) -> list[Any]:
    """Return the arguments that the operation of a node changes."""
    target: Any = node.target
    arguments = target._schema.arguments if is_operation(target) else []
    written = [i for i, one in enumerate(arguments) if one.alias_info is not None and one.alias_info.is_write]
    return [node.args[i] if i < len(node.args) else node.kwargs[arguments[i].name] for i in written]


def argument_schemas(target: Any) -> Sequence[Any]:
    """Return the schemas of an operation's arguments, which have names and default values."""
    return target._schema.arguments


def version(tensor: Tensor) -> int:
    """Return a number that grows whenever a tensor is changed in place."""
    return tensor._version


def make_fx(function: Callable[..., Any], **options: Any) -> Callable[..., fx.GraphModule]:
    """Return what traces a function of tensors to a graph of its operations."""
    return _loaded("torch.fx.experimental.proxy_tensor").make_fx(function, **options)


def without_repetitions(graph: fx.Graph) -> fx.Graph:
    """Return a graph in which nothing is computed twice."""
    from torch._functorch.compile_utils import fx_graph_cse

    return fx_graph_cse(graph)


def tracing_compiled() -> AbstractContextManager[Any]:
    """Return a context in which graphs are traced through what is compiled."""
    return _loaded("torch._dynamo").config.patch(error_on_nested_fx_trace=False)


def recompiling(times: int) -> AbstractContextManager[Any]:
    """Return a context in which a function is compiled up to so many times."""
    return _loaded("torch._dynamo").config.patch(recompile_limit=times)


def mark_dynamic(tensor: Tensor, dimension: int) -> None:
    """Let code be compiled for any length of a tensor along a dimension."""
    torch._dynamo.mark_dynamic(tensor, dimension)


def forget_compiled() -> None:
    """Forget all that was compiled."""
    torch._dynamo.reset()


def decompositions(operations: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """Return how operations are made of simpler ones."""
    from torch import _decomp

    return dict(_decomp.get_decompositions(operations))


def core_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return how operations are made of the core ones."""
    from torch import _decomp

    table = _decomp.core_aten_decompositions()
    return {operation: decomposition for operation, decomposition in table.items() if is_operation(operation)}


def aoti_compile_and_package(program: Any, **options: Any) -> Any:
    """Compile an exported program to an AOTInductor package."""
    return torch._inductor.aoti_compile_and_package(program, **options)


def aoti_load_package(path: str) -> Callable[..., Any]:
    """Load an AOTInductor package as a function."""
    return torch._inductor.aoti_load_package(path)
