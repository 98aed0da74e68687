"""Watching a network solve ODEs: which of its modules call torchdiffeq, with what, and what comes out."""

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers import places
from torchmor.adapters.layers.interception import intercepted
from torchmor.adapters.layers.own_forward import settings_words
from torchmor.adapters.layers.places import Place
from torchmor.adapters.networks import torchdyn_layers
from torchmor.adapters.networks.timing import now
from torchmor.adapters.solving.torch_private import tree_map_only


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
    settings
        The solver and its settings, as text.
    identity
        What tells func from others.
    values
        What func could read, by its places.
    functions
        Functions that func could call, and that its module may set for each solve, by their places.
    first
        t, y and f(t, y) of the first evaluation.
    """

    func: Callable[..., Any]
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
    settings: str = ""
    identity: str = ""
    values: dict[Place, Any] = field(default_factory=dict)
    functions: dict[Place, Any] = field(default_factory=dict)
    first: tuple[Tensor, Tensor, Tensor] | None = None

    def evaluated(self, arguments: tuple[Any, ...], value: Any) -> None:
        """Count an evaluation of func, and keep the first one."""
        self.evaluations += 1
        if self.evaluations == 1 and self.settings and len(arguments) == 2 and isinstance(arguments[1], Tensor):
            t, y = arguments
            self.first = torch.as_tensor(t).clone(), y.detach().clone(), value.detach().clone()


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
    method
        Name of the method that was called.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    solves: list[SolveCall] = field(default_factory=list)
    started: float = 0.0
    evaluations: int = 0
    method: str = "forward"


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
    watcher, hooks = _Watcher(names is None, input_attribute), []
    try:
        for name, module in network.named_modules():
            if names is None or name in names:
                entered = functools.partial(watcher.entered, name)
                hooks.append(module.register_forward_pre_hook(entered, with_kwargs=True))
                hooks.append(module.register_forward_hook(watcher.left, with_kwargs=True, always_call=True))
                if torchdyn_layers.is_neural_ode(module):
                    module.__dict__["trajectory"] = functools.partial(watcher.trajectory, name, module)
        with intercepted(watcher.solve):
            yield watcher.found
    finally:
        for hook in hooks:
            hook.remove()
        for module in network.modules():
            if torchdyn_layers.is_neural_ode(module):
                module.__dict__.pop("trajectory", None)


class _Watcher:
    """What hooks of modules and solvers in one thread report to; `found` lists the calls with solves that returned."""

    def __init__(self, copies: bool, input_attribute: tuple[str, str] | None):
        self.found: list[ModuleCall] = []
        self._running: list[ModuleCall] = []
        self._solving = False
        self._thread = threading.get_ident()
        self._copies, self._input_attribute = copies, input_attribute

    @property
    def _looks(self) -> bool:
        """Whether what happens is in the network's thread, and not inside an ODE function."""
        return threading.get_ident() == self._thread and not self._solving

    def _kept(self, values: Any) -> Any:
        return tree_map_only(Tensor, lambda value: value.detach().clone(), values) if self._copies else values

    def entered(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a call of a module begins."""
        if self._looks:
            self._running.append(ModuleCall(name, module, self._kept(args), self._kept(kwargs), started=now()))
            if torchdyn_layers.is_neural_ode(module):
                self._running[-1].evaluations = torchdyn_layers.evaluations(module)

    def left(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note that a call of a module ends."""
        if not self._looks or not self._running or self._running[-1].module is not module:
            return
        call = self._running.pop()
        if torchdyn_layers.is_neural_ode(module) and output is not None:
            done = torchdyn_layers.evaluations(module) - call.evaluations
            solved = torchdyn_layers.solve(module, call.method, call.args, call.kwargs, output)
            call.solves = [SolveCall(**solved, evaluations=done, seconds=now() - call.started)]
        if call.solves:
            call.output = self._kept(output)
            self.found.append(call)

    def trajectory(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the method of this name of torchdyn's NeuralODE, which is no forward, and solves too."""
        self.entered(name, module, args, kwargs)
        if self._looks:
            self._running[-1].method = "trajectory"
        output = None
        try:
            output = type(module).trajectory(module, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            self.left(module, args, kwargs, output)
        return output

    def solve(self, solver: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Solve, and note it with the innermost call that is running."""
        if not self._looks or not self._running:
            return original(*args, **kwargs)
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        given, caller = bound.arguments, self._running[-1]
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
        if self._input_attribute is not None and self._input_attribute[0] == caller.name:
            try:
                call.input = attrgetter(self._input_attribute[1])(caller.module)
            except AttributeError as error:
                call.input = error
        if self._copies:
            call.settings, call.identity = settings_words(solver, given), places.identity(call.func, caller.module)
            call.values = self._kept(places.values(call.func))
            call.functions = places.functions(call.func)
        caller.solves.append(call)
        self._solving = True
        try:
            with _counted(call) as given["func"]:
                started = now()
                states = original(*bound.args, **bound.kwargs)
                call.seconds = now() - started
        finally:
            self._solving = False
        call.states = states.detach().clone() if isinstance(states, Tensor) else states
        return states


@contextmanager
def _counted(call: SolveCall) -> Iterator[Callable[..., Any]]:
    """Count evaluations of the ODE function, and keep the first; yields what is to be called in its place."""
    func = call.func
    if isinstance(func, nn.Module):

        def count(module: nn.Module, args: Any, value: Any) -> None:
            call.evaluated(args, value)

        hook = func.register_forward_hook(count)
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

    def __call__(self, t: Tensor, y: Any) -> Any:
        value = self._call.func(t, y)
        self._call.evaluated((t, y), value)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call.func, name)
