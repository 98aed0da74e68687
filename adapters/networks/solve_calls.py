"""Watching a network solve ODEs: which of its modules call torchdiffeq, with what, and what comes out."""

import functools
import inspect
import threading
import time
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from torchmor.adapters.networks import torchdyn_layers

_one_watcher = threading.Lock()


@dataclass(eq=False)
class SolveCall:
    """One call of ``odeint`` or ``odeint_adjoint``, or what a layer of torchdyn did in its place.

    Parameters
    ----------
    func
        The ODE function f(t, y).
    y0
        Initial state; a tuple of tensors is possible.
    t
        Times.
    method, rtol, atol, options
        Solver settings, defaults filled in.
    adjoint
        Whether gradients come from the adjoint equation.
    event
        Whether the solve ends at an event.
    states
        What was returned, (len(t), *y0.shape) without an event.
    evaluations
        Evaluations of func.
    seconds
        Run time.
    input
        Value of the attribute that holds the input of func, if one was named; the AttributeError if it has none.
    exact
        Whether torchdiffeq with these settings does the same operations, rather than something near.
    """

    func: Callable
    y0: Any
    t: Tensor
    method: str
    rtol: Any
    atol: Any
    options: dict[str, Any]
    adjoint: bool = False
    event: bool = False
    states: Any = None
    evaluations: int = 0
    seconds: float = 0.0
    input: Any = None
    exact: bool = True


@dataclass(eq=False)
class ModuleCall:
    """One call of a module that solves ODEs in its own forward, not in that of a module inside it.

    Parameters
    ----------
    name
        Name of the module in the network.
    module
        The module.
    args, kwargs
        Its arguments.
    output
        What it returned.
    solves
        Its solves, in their order.
    started, evaluations
        Time of its start, and evaluations that its counter showed then.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    solves: list[SolveCall] = field(default_factory=list)
    started: float = 0.0
    evaluations: int = 0


@contextmanager
def watched(
    network: nn.Module, names: Collection[str] | None = None, input_attribute: tuple[str, str] | None = None
) -> Iterator[list[ModuleCall]]:
    """List the calls of modules that solve ODEs, while the context lasts.

    A solve belongs to the innermost module whose forward is running. Solves inside an ODE function belong to the solve
    that called it. The network is left as it was.

    Parameters
    ----------
    network
        The network; it runs in this thread.
    names
        Only look at these modules, and keep no copies of their arguments and outputs: what follows may change these in
        place, but copies take time, where it is measured.
    input_attribute
        Name of a module, and path of its attribute whose value is kept with each solve.
    """
    found: list[ModuleCall] = []
    running: list[ModuleCall] = []
    thread, solving = threading.get_ident(), False

    def kept(values):
        return tree_map_only(Tensor, lambda value: value.detach().clone(), values) if names is None else values

    def entered(name, module, args, kwargs):
        if threading.get_ident() == thread and not solving:
            running.append(ModuleCall(name, module, kept(args), kept(kwargs), started=now()))
            if torchdyn_layers.is_neural_ode(module):
                running[-1].evaluations = torchdyn_layers.evaluations(module)

    def left(module, args, kwargs, output):
        if threading.get_ident() != thread or solving or not running or running[-1].module is not module:
            return
        call = running.pop()
        if torchdyn_layers.is_neural_ode(module) and output is not None:
            done = torchdyn_layers.evaluations(module) - call.evaluations
            solved = torchdyn_layers.solve(module, call.args, call.kwargs, output)
            call.solves = [SolveCall(**solved, evaluations=done, seconds=now() - call.started)]
        if call.solves:
            call.output = kept(output)
            found.append(call)

    def solve(solver, original, args, kwargs):
        nonlocal solving
        if threading.get_ident() != thread or solving or not running:
            return original(*args, **kwargs)
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        y0 = given["y0"]
        call = SolveCall(
            func=given["func"],
            y0=y0.detach().clone() if isinstance(y0, Tensor) else y0,
            t=torch.as_tensor(given["t"]).detach().clone(),
            method=given["method"] or "dopri5",
            rtol=given["rtol"],
            atol=given["atol"],
            options=dict(given["options"] or {}),
            adjoint=solver == "odeint_adjoint",
            event=given["event_fn"] is not None,
        )
        if input_attribute is not None and input_attribute[0] == running[-1].name:
            try:
                call.input = attrgetter(input_attribute[1])(running[-1].module)
            except AttributeError as error:
                call.input = error
        running[-1].solves.append(call)
        solving = True
        try:
            with _counted(call) as given["func"]:
                started = now()
                states = original(*bound.args, **bound.kwargs)
                call.seconds = now() - started
        finally:
            solving = False
        call.states = states.detach().clone() if isinstance(states, Tensor) else states
        return states

    hooks = []
    try:
        for name, module in network.named_modules():
            if names is None or name in names:
                hooks.append(module.register_forward_pre_hook(functools.partial(entered, name), with_kwargs=True))
                hooks.append(module.register_forward_hook(left, with_kwargs=True, always_call=True))
        with _intercepted(solve):
            yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _intercepted(handle: Callable) -> Iterator[None]:
    """Call ``handle(name, original, args, kwargs)`` instead of torchdiffeq's solvers, while the context lasts.

    Their code is exchanged, not their names: a caller may hold them under any name, in a closure or a default argument.
    """
    import torchdiffeq

    with _one_watcher:
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


def _detour(*args, **kwargs):
    return _torchmor_detour(*args, **kwargs)  # noqa: F821 - replaced by a name among torchdiffeq's own


def _handled(handle, name, original, *args, **kwargs):
    return handle(name, original, args, kwargs)


@contextmanager
def _counted(call: SolveCall) -> Iterator[Callable]:
    """Count evaluations of the ODE function; yields what is to be called in its place."""
    func = call.func
    if isinstance(func, nn.Module):

        def count(module, args):
            call.evaluations += 1

        hook = func.register_forward_pre_hook(count)
        try:
            yield func
        finally:
            hook.remove()
    else:
        yield _Counted(call)


class _Counted:
    """A callable as it is, with its callbacks, that counts its calls."""

    def __init__(self, call: SolveCall):
        self._call = call

    def __call__(self, t, y):
        self._call.evaluations += 1
        return self._call.func(t, y)

    def __getattr__(self, name):
        return getattr(self._call.func, name)


def now() -> float:
    """Return the time in seconds, when a GPU has done its work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
