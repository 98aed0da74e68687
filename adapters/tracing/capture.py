"""From an ODE function in torch to a flat graph of aten operations for one sample, in float64."""

from __future__ import annotations

import copy
import linecache
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

from torchmor.adapters.solving.torch_private import make_fx, tracing_compiled, without_repetitions
from torchmor.adapters.tracing.operations import REWRITTEN
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
            rerun = torch.func.functionalize(torch.fx.Interpreter(graph).run)
            graph = make_fx(rerun, decomposition_table=REWRITTEN)(*arguments)
    except TorchmorError:
        raise
    except Exception as error:  # f itself has just run
        raise _untraceable(error) from error
    graph.graph.eliminate_dead_code()
    graph.graph = without_repetitions(graph.graph)  # what is written twice becomes one stage
    return graph


class _Places(TorchFunctionMode):
    """Notes for each operation where in the user's code it stands; the graph keeps it as the stack trace."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
    def cast(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
        return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else None)

    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if isinstance(value, torch.Tensor):
                delattr(graph, node.target)
                graph.register_buffer(node.target, cast(value))
        kwargs = dict(node.kwargs)
        if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
            kwargs["dtype"] = torch.float64
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        node.kwargs = kwargs
    graph.recompile()
