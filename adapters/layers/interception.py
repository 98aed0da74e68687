"""Something else in the place of torchdiffeq's solvers, wherever they are called."""

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: handle(name of the solver, the solver itself, args, kwargs) → what the solver would return.
Handle = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_lock = threading.Lock()
_running = 0  # contexts, of all threads, in which the solvers' code is exchanged
_originals: dict[str, Callable[..., Any]] = {}
_of_thread = threading.local()


@contextmanager
def intercepted(handle: Handle) -> Iterator[None]:
    """Call ``handle(name, original, args, kwargs)`` instead of torchdiffeq's solvers, while the context lasts.

    Their code is exchanged, not their names: a caller may hold them under any name, in a closure or a default argument.
    Other threads solve as ever. Contexts may be nested: what a handle solves in turn goes to the one outside of it.
    """
    _exchange(1)
    handles = _handles()
    handles.append(handle)
    try:
        yield
    finally:
        handles.remove(handle)
        _exchange(-1)


def handled(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer a call of a solver, by this thread's innermost handle."""
    handles = _handles()
    if not handles:
        return _originals[name](*args, **kwargs)
    handle = handles.pop()  # what it solves in turn is for the one outside of it
    try:
        return handle(name, _originals[name], args, kwargs)
    finally:
        handles.append(handle)


def _handles() -> list[Handle]:
    try:
        return _of_thread.handles
    except AttributeError:
        _of_thread.handles = []
        return _of_thread.handles


def _exchange(change: int) -> None:
    global _running
    import torchdiffeq  # the network has imported it, or never calls it

    solvers: tuple[Any, ...] = (torchdiffeq.odeint, torchdiffeq.odeint_adjoint)
    with _lock:
        if _running == 0:
            for solver in solvers:
                original = types.FunctionType(
                    solver.__code__, solver.__globals__, solver.__name__, solver.__defaults__, solver.__closure__
                )
                original.__kwdefaults__ = solver.__kwdefaults__
                _originals[solver.__name__] = original
        _running += change
        if _running == (1 if change > 0 else 0):
            for solver, detour in zip(solvers, (_odeint, _odeint_adjoint), strict=True):
                solver.__code__ = detour.__code__ if change > 0 else _originals[solver.__name__].__code__


def _odeint(*args: Any, **kwargs: Any) -> Any:
    from torchmor.adapters.layers.interception import handled  # it runs among torchdiffeq's names

    return handled("odeint", args, kwargs)


def _odeint_adjoint(*args: Any, **kwargs: Any) -> Any:
    from torchmor.adapters.layers.interception import handled

    return handled("odeint_adjoint", args, kwargs)
