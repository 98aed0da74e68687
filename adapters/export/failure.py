"""Why a module cannot be traced, in a sentence: the part, the place and the cause instead of the tracer's report."""

import linecache
import os
from collections.abc import Iterator
from itertools import takewhile
from types import TracebackType

from torch import fx, nn

#: Packages that solve ODEs in ways that a graph cannot follow.
_SOLVERS = ("torchdiffeq", "torchdyn", "torchode", "torchsde", "diffrax", "scipy")


def explain_failure(error: BaseException, module: nn.Module) -> str:
    """Say which part of a module torch.export failed on, why, where, and how to mend it.

    Parameters
    ----------
    error
        What it raised.
    module
        The module that it traced.
    """
    calls = [call for part in chain(error) for call in _calls(part)]
    solver = next((root for call in calls if (root := _package(call)) in _SOLVERS), None)
    if solver is not None:
        calls = list(takewhile(lambda call: _package(call) != solver, calls))
    names = {id(part): name for name, part in module.named_modules()}
    parts = [part for call in calls if id(part := call.tb_frame.f_locals.get("self")) in names]
    name = names[id(parts[-1])] if parts else ""
    who = f"its part {name!r}, a {type(parts[-1]).__name__}," if name else "its forward"
    if solver is not None:
        reduced = f"reduce_network(…, {name!r}, …)" if name else "reduce_network"
        cause = f"still calls a solver of {solver}, whose steps no graph holds"
        fix = f"reduce it too, with {reduced}, or write it as an ODELayer with a fixed-step method"
    else:
        cause, fix = _cause(error)
    return f"{who} {cause}{_place(calls)}: {fix}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with its class."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[0] if len(lines[0]) <= 200 else f"{lines[0][:200]} …"
    return f"{type(error).__name__}: {line}".rstrip(": ")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what led to it, in order."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _cause(error: BaseException) -> tuple[str, str]:
    text = "\n".join(f"{type(part).__name__}: {part}" for part in chain(error))
    if "data-dependent" in text or "DataDependent" in text:
        return (
            "branches on the values of tensors, or makes a number of one (if, bool(), .item(), .tolist())",
            "write it with tensors, torch.where(condition, a, b)",
        )
    if "Constraints violated" in text or ("must match" in text and "(s" in text):
        return (
            "works for the batch of the example only",
            "take the batch from the arguments, y.shape[0], not from len(y), a number or a tensor of that batch",
        )
    return f"cannot be traced ({first_line(error)})", "write it with tensor operations"


def _calls(error: BaseException) -> Iterator[TracebackType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _package(call: TracebackType) -> str:
    return str(call.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def _place(calls: list[TracebackType]) -> str:
    """Line of somebody's module where it happened, if it is not in a package."""
    for call in reversed(calls):
        file = call.tb_frame.f_code.co_filename
        code = linecache.getline(file, call.tb_lineno).strip()
        owner = call.tb_frame.f_locals.get("self")
        inside = isinstance(owner, nn.Module) and not isinstance(owner, fx.GraphModule)
        if inside and code and "site-packages" not in file and _package(call) not in ("torch", "torchmor"):
            return f" ({os.path.basename(file)}, line {call.tb_lineno}: {code})"
    return ""
