"""How a module that solves an ODE is called: what is the state, the times and the input, and what it returns."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchmor.adapters.layers.solved_block import CallForm, same
from torchmor.adapters.networks.solve_calls import ModuleCall, SolveCall
from torchmor.engine.errors import InputError, UnsupportedOperationError

#: What to do with a module that no stand-in can replace.
ADVICE = (
    "write self.ode = ODELayer(func, t, method=…) in the constructor and y = self.ode(y0) in the place of the solve, "
    "and reduce that layer"
)


def call_form(
    name: str, calls: Sequence[ModuleCall], input_attribute: str | None = None, inputs: Sequence[Any] = ()
) -> CallForm:
    """Return how a module takes its arguments and arranges its states, by what they were in some calls.

    Parameters
    ----------
    name
        Name of the module, for messages.
    calls
        Its calls, with one solve each.
    input_attribute
        Path of the attribute whose values were kept as the inputs of the solves, or None.
    inputs
        Without it: the values that the ODE function read in these calls.

    Raises
    ------
    UnsupportedOperationError
        The state, the times or the output are computed in another way.
    InputError
        The input has a wrong form.
    """
    arguments = [_arguments(call) for call in calls]
    solves = [call.solves[0] for call in calls]
    names = tuple(arguments[0])
    tensors = [key for key in names if all(isinstance(given.get(key), Tensor) for given in arguments)]
    state, zeros = _state(name, tensors, arguments, solves)
    others = [key for key in names if key != state]
    constant_times = all(_equal_times(solve.t, solves[0].t) for solve in solves)
    times = _times(others, arguments, solves)
    if times is None and not constant_times:
        raise UnsupportedOperationError(
            f"expected times that are the same in all calls of {name!r}, or among its arguments, got other ones, which "
            f"are computed inside of it: make them an argument of its forward, or {ADVICE}"
        )
    times = times or ()
    constants = tuple(
        (key, arguments[0][key])
        for key in others
        if key not in times and all(same(given.get(key), arguments[0][key]) for given in arguments)
    )
    form = CallForm(
        names, state, tuple(solves[0].t.tolist()), times, constants=constants, zeros=zeros, method=calls[0].method
    )
    if input_attribute is not None or inputs:
        values = list(inputs)
        if input_attribute is not None:
            values = [solve.input for solve in solves]
            _check_input(name, input_attribute, values, solves)
        argument = next(
            (key for key in others if all(same(given[key], u) for given, u in zip(arguments, values, strict=True))),
            None,
        )
        if argument is None and input_attribute is None:
            raise UnsupportedOperationError(f"the input of the ODE function of {name!r} is none of its arguments")
        constants = tuple(pair for pair in constants if pair[0] != argument)
        form = replace(
            form,
            constants=constants,
            input=argument,
            input_attribute=None if argument is not None else input_attribute,
        )
    known = {state, *times, form.input, *(key for key, _ in constants)}
    if left := [key for key in names if key not in known]:
        raise UnsupportedOperationError(
            f"expected arguments of {name!r} that are the initial state, the times, the input of the ODE function or "
            f"constant, got {', '.join(left)}, which vary and decide something else: {ADVICE}"
        )
    return _output_form(name, form, calls[0])


def _arguments(call: ModuleCall) -> dict[str, Any]:
    """Return the arguments of a call by their names, in their order, defaults filled in."""
    signature = inspect.signature(getattr(type(call.module), call.method))
    bound = signature.bind(call.module, *call.args, **call.kwargs)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}[{i}]": one for i, one in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


def _state(
    name: str, tensors: Sequence[str], arguments: Sequence[dict[str, Any]], solves: Sequence[SolveCall]
) -> tuple[str, int]:
    """Return the argument that is the initial state, and how many zeros are appended to it."""
    for key in tensors:
        if all(same(given[key], solve.y0) for given, solve in zip(arguments, solves, strict=True)):
            return key, 0
    for key in tensors:
        zeros = {_zeros_appended(given[key], solve.y0) for given, solve in zip(arguments, solves, strict=True)}
        if len(zeros) == 1 and (appended := zeros.pop()) is not None:
            return key, appended
    shapes = ", ".join(f"{key} {tuple(arguments[0][key].shape)}" for key in tensors)
    raise UnsupportedOperationError(
        f"expected a module whose argument is the initial state, with zeros appended at most, got {name!r}, which "
        f"computes its state {tuple(solves[0].y0.shape)} from {shapes or 'no tensors'}: move that into a module before "
        f"it, or {ADVICE}"
    )


def _zeros_appended(x: Tensor, y0: Tensor) -> int | None:
    if x.ndim != y0.ndim or x.ndim < 2 or x.shape[1] >= y0.shape[1]:
        return None
    if (x.shape[0], *x.shape[2:]) != (y0.shape[0], *y0.shape[2:]):
        return None
    kept, rest = y0[:, : x.shape[1]], y0[:, x.shape[1] :]
    return rest.shape[1] if torch.equal(kept, x) and not rest.any() else None


def _times(
    others: Sequence[str], arguments: Sequence[dict[str, Any]], solves: Sequence[SolveCall]
) -> tuple[str, ...] | None:
    """Return the arguments that are the times: one, or two that are its ends."""
    for count in (1, 2):
        for keys in itertools.permutations(others, count):
            if all(
                _equal_times(_numbers([given[key] for key in keys]), solve.t)
                for given, solve in zip(arguments, solves, strict=True)
            ):
                return keys
    return None


def _numbers(values: list[Any]) -> Tensor | None:
    try:
        parts = [torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in values]
    except (TypeError, ValueError, RuntimeError):
        return None
    if len(parts) == 1:
        return parts[0] if parts[0].ndim == 1 else None
    return torch.stack(parts) if all(part.ndim == 0 for part in parts) else None


def _equal_times(times: Tensor | None, t: Tensor) -> bool:
    # an argument may have been rounded to the dtype of the state
    if times is None or times.shape != t.shape:
        return False
    return torch.equal(times.to(t), t) or torch.equal(times.float().cpu(), t.float().cpu())


def _output_form(name: str, form: CallForm, call: ModuleCall) -> CallForm:
    """Return the form with what the module does with its states."""
    output, solve = call.output, call.solves[0]
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        for sign in (1, -1):
            if _equal_times(output[0].detach(), sign * solve.t):
                form, output = replace(form, times_returned=sign), output[1]
                break
    if isinstance(output, Tensor):
        size = solve.states.shape[2] if solve.states.ndim > 2 else 0
        lengths = sorted({length for length in output.shape if length < size}, reverse=True)
        entries = [None, *((0, length) for length in lengths), *((size - length, length) for length in lengths)]
        for chosen in entries:
            states = solve.states if chosen is None else solve.states.narrow(2, *chosen)
            for arrangement in _arrangements(output, states):
                return replace(form, entries=chosen, **arrangement)
    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise UnsupportedOperationError(
        "expected a module that returns its states, or their first or last entries, at some of its times, with the "
        f"axes in any order, got {name!r}, "
        f"which returns {got} computed from the states {tuple(solve.states.shape)}: move what it does with the states "
        f"into a module after it, or {ADVICE}"
    )


def _arrangements(output: Tensor, states: Tensor) -> Iterator[dict[str, Any]]:
    """Yield orders of axes, and kept times, that turn the states into the output."""
    if output.shape == states.shape[1:]:
        for kept in (-1, *range(len(states) - 1)):
            if torch.equal(output, states[kept]):
                yield {"times_kept": kept}
    if output.ndim != states.ndim:
        return
    for axes in itertools.permutations(range(output.ndim)):
        back = sorted(range(output.ndim), key=axes.__getitem__)
        arranged = output.permute(back)
        if arranged.shape[1:] != states.shape[1:] or len(arranged) > len(states):
            continue
        moved = None if axes == tuple(range(output.ndim)) else axes
        skipped = len(states) - len(arranged)
        if torch.equal(arranged, states[skipped:]):
            yield {"axes": moved, "times_skipped": skipped}
            continue
        kept = [next((i for i, state in enumerate(states) if torch.equal(state, one)), None) for one in arranged]
        if None not in kept:
            yield {"axes": moved, "times_kept": tuple(kept)}


def _check_input(name: str, path: str, values: Sequence[Any], solves: Sequence[SolveCall]) -> None:
    for u, solve in zip(values, solves, strict=True):
        if isinstance(u, AttributeError):
            raise InputError(
                f"expected input_attribute to be the path from {name!r} to an attribute, such as 'func.u', got "
                f"{path!r}: {u}"
            )
        if isinstance(u, Tensor):
            if u.ndim and len(u) != len(solve.y0):
                raise InputError(
                    f"expected the input {path!r} to be a Tensor (batch, …) with batch = {len(solve.y0)}, or a "
                    f"callable of t, got shape {tuple(u.shape)}"
                )
            if u.ndim != 2 or not u.is_floating_point():
                raise UnsupportedOperationError(f"the input {path!r} of {name!r} is no Tensor (batch, p) of numbers")
        elif not callable(u):
            raise InputError(
                f"expected the input {path!r} to be a Tensor (batch, p) or a callable of t, got {type(u).__name__}"
            )
