"""Something else in the place of torchdiffeq's solvers, wherever they are called."""

import functools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torchdiffeq

_one_at_a_time = threading.Lock()


@contextmanager
def intercepted(handle: Callable[..., Any]) -> Iterator[None]:
    """Call ``handle(name, original, args, kwargs)`` instead of torchdiffeq's solvers, while the context lasts.

    Their code is exchanged, not their names: a caller may hold them under any name, in a closure or a default argument.
    """
    with _one_at_a_time:
        solvers = [torchdiffeq.odeint, torchdiffeq.odeint_adjoint]
        codes = [solver.__code__ for solver in solvers]
        keys = [f"_torchmor_{solver.__name__}" for solver in solvers]
        try:
            for solver, code, key in zip(solvers, codes, keys, strict=True):
                original = types.FunctionType(code, solver.__globals__, solver.__name__, solver.__defaults__)
                original.__kwdefaults__ = solver.__kwdefaults__
                solver.__globals__[key] = functools.partial(_handled, handle, solver.__name__, original)
                solver.__code__ = _detour.__code__.replace(co_names=(key,), co_name=solver.__name__)
            yield
        finally:
            for solver, code, key in zip(solvers, codes, keys, strict=True):
                solver.__code__ = code
                solver.__globals__.pop(key, None)


def _detour(*args: Any, **kwargs: Any) -> Any:
    return _handled(*args, **kwargs)  # the name is replaced by one among torchdiffeq's own


def _handled(handle: Callable[..., Any], name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return handle(name, original, args, kwargs)
