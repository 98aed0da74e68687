"""Which values an ODE function reads beside its arguments: found by what varies between solves, and matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers import places
from torchmor.adapters.layers.ode_layer import call_convention
from torchmor.adapters.layers.own_forward import PlacedFunction, PlacedInput
from torchmor.adapters.layers.places import Place
from torchmor.adapters.layers.solved_block import same
from torchmor.adapters.networks.solve_calls import SolveCall
from torchmor.engine.errors import UnsupportedOperationError

#: A function that is repeated gives its value to so many units of rounding.
ALLOWED = 1e3

HIDDEN = (
    "it depends on something else than the time, the state and what its module's arguments decide: a callable that is "
    "set from outside (name it: input_attribute='func.u'), random numbers (dropout that stays on in eval mode), a "
    "value of an earlier call, or one that it reads in a place where none is found; write f(t, y, u), "
    "self.ode = ODELayer(f, t, method=…) and y = self.ode(y0, u)"
)


def solve_inputs(name: str, solves: Sequence[SolveCall]) -> tuple[PlacedInput, ...]:
    """Return the inputs of an ODE function that some solves share: what it reads, and what differs between them.

    Parameters
    ----------
    name
        Name of the module that solves, for messages.
    solves
        Its solves, in which all varied that may vary.

    Raises
    ------
    UnsupportedOperationError
        The function draws random numbers, fails outside of its module, or reads a value that is no input.
    """
    common = [place for place in solves[0].values if all(place in solve.values for solve in solves)]
    varying = [place for place in common if not all(same(s.values[place], solves[0].values[place]) for s in solves)]
    asked = _few(solves)
    for solve in asked:
        _check_repeats(name, solve, varying)
    read = [place for place in varying if any(_matters(solve, place, varying) for solve in asked)]
    inputs = tuple(_input(name, place, solves) for place in read)
    _check_explained(name, solves, inputs)
    return inputs


def read_numbers(solve: SolveCall, inputs: Sequence[PlacedInput]) -> tuple[tuple[Place, Any], ...]:
    """Return the numbers that an ODE function of somebody's own reads, other than its inputs."""
    known = {one.place for one in inputs}
    numbers = [
        place
        for place, value in solve.values.items()
        if not isinstance(value, Tensor) and place not in known and not _of_torch(solve.func, place)
    ]
    return tuple((place, solve.values[place]) for place in numbers if _matters(solve, place, sorted(known, key=str)))


def value_of(solve: SolveCall) -> Tensor:
    """Return what the ODE function of a solve gives at its start, with the values that it read then."""
    return _value(solve, [place for place in solve.values if isinstance(solve.values[place], Tensor)])


def _check_explained(name: str, solves: Sequence[SolveCall], inputs: Sequence[PlacedInput]) -> None:
    """Check that the function of the first solve, with the inputs of each, gives what that of each gave."""
    function = PlacedFunction(solves[0].func, inputs, call_convention(solves[0].func)[0], solves[0].functions)
    for solve in solves:
        if solve.first is None:
            continue
        t, y, expected = solve.first
        start = y if y.ndim > 1 else y[None]
        u = [one.flat(solve.values[one.place], start) for one in inputs]
        try:
            same_function = replace(solve, func=solves[0].func)
            value = function(t, start, torch.cat(u, 1)) if u else _value(same_function, ())
            error = float((value.reshape(expected.shape) - expected).abs().max())
        except Exception as problem:  # of whatever kind, in a function that is called outside of its module
            raise UnsupportedOperationError(
                f"the ODE function of {name!r} fails when it is repeated outside of its solve "
                f"({type(problem).__name__}: {problem}): {HIDDEN}"
            ) from problem
        scale = float(expected.abs().max())
        if not error <= ALLOWED * torch.finfo(expected.dtype).eps * max(scale, 1e-30) and scale == scale:
            raise UnsupportedOperationError(
                f"the ODE function of {name!r}, repeated outside of its solve on the same time and state, differs by "
                f"up to {error:.1e}, with values up to {scale:.1e}: {HIDDEN}"
            )


def _few(solves: Sequence[SolveCall]) -> list[SolveCall]:
    return [solves[0], solves[len(solves) // 2], solves[-1]] if len(solves) > 3 else list(solves)


def _check_repeats(name: str, solve: SolveCall, varying: Sequence[Place]) -> None:
    try:
        first, second = (_value(solve, varying) for _ in range(2))
    except Exception as error:  # the function may fail in any way where it reads what is not there
        raise UnsupportedOperationError(
            f"the ODE function of {name!r} fails when it is repeated outside of its solve ({type(error).__name__}: "
            f"{error}): {HIDDEN}"
        ) from error
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise UnsupportedOperationError(
            f"the ODE function of {name!r}, repeated outside of its solve, differs by up to "
            f"{float((first - second).abs().max()):.1e} between two calls with the same values: {HIDDEN}"
        )


def _matters(solve: SolveCall, place: Place, varying: Sequence[Place]) -> bool:
    """Whether f changes with the value at a place."""
    before, value = _value(solve, varying), solve.values[place]
    for changed in _changed(value):
        try:
            after = _value(solve, varying, place, changed)
        except Exception:  # whatever the function says to an impossible value: it reads it
            return True
        if after.shape != before.shape or not torch.equal(after.nan_to_num(), before.nan_to_num()):
            return True
    return False


def _changed(value: Any) -> list[Any]:
    if not isinstance(value, Tensor):
        return [not value] if isinstance(value, bool) else [value + 1, value * 1.375 + 0.1]
    if value.dtype == torch.bool:
        return [~value]
    if value.is_floating_point() or value.is_complex():
        return [value * 1.375 + 0.1]
    return [value.roll(1, 0) if value.ndim else value, torch.where(value == value.min(), value.max(), value.min())]


def _value(solve: SolveCall, varying: Sequence[Place], place: Place | None = None, changed: Any = None) -> Tensor:
    """Return f(t, y) at the start of a solve, with the values of that solve, and perhaps another one at a place."""
    given = {other: solve.values[other] for other in varying} | ({} if place is None else {place: changed})
    with places.holding(solve.func, solve.functions):
        before = {other: places.get(solve.func, other) for other in given}
        try:
            for other, value in given.items():
                places.put(solve.func, other, value)
            t, y = (solve.t[0].to(solve.y0), solve.y0) if solve.first is None else solve.first[:2]
            result: Tensor = solve.func(y) if call_convention(solve.func)[0] == 1 else solve.func(t, y)
            return result.clone()
        finally:
            for other, value in before.items():
                places.put(solve.func, other, value)


def _of_torch(func: Callable[..., Any], place: Place) -> bool:
    owner = places.get(func, place[:-1])
    return isinstance(owner, nn.Module) and type(owner).__module__.partition(".")[0] == "torch"


def _input(name: str, place: Place, solves: Sequence[SolveCall]) -> PlacedInput:
    found = [solve.values[place] for solve in solves]
    kind = solves[0].y0.dtype
    tensors = [torch.as_tensor(one) if isinstance(one, Tensor) else torch.as_tensor(one, dtype=kind) for one in found]
    rows = [len(solve.y0) if solve.y0.ndim > 1 else -1 for solve in solves]
    batched = all(one.ndim > 0 and len(one) == size for one, size in zip(tensors, rows, strict=True))
    shapes = {tuple(one.shape[1:] if batched else one.shape) for one in tensors}
    dtypes = {one.dtype for one in tensors}
    if len(shapes) > 1 or len(dtypes) > 1 or tensors[0].is_complex():
        raise UnsupportedOperationError(
            f"the ODE function of {name!r} reads {places.words(place)!r}, which varies on the calibration data: "
            "expected real values of shape (batch, …), or of one shape in all calls, got "
            f"{', '.join(sorted({f'{tuple(one.shape)} of {one.dtype}' for one in tensors}))}: bring it to one shape, "
            "or write ODELayer with f(t, y, u)"
        )
    return PlacedInput(place, shapes.pop(), str(dtypes.pop()), batched)
