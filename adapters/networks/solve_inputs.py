"""Which values an ODE function reads beside its arguments: found by what varies between solves, and matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers import places
from torchmor.adapters.layers.ode_layer import call_convention
from torchmor.adapters.layers.own_forward import PlacedInput
from torchmor.adapters.layers.places import Place
from torchmor.adapters.layers.solved_block import same
from torchmor.adapters.networks.solve_calls import SolveCall
from torchmor.engine.errors import UnsupportedOperationError


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
    return tuple(_input(name, place, solves) for place in read)


def read_numbers(solve: SolveCall, inputs: Sequence[PlacedInput]) -> tuple[tuple[Place, Any], ...]:
    """Return the numbers that an ODE function of somebody's own reads, other than its inputs."""
    known = {one.place for one in inputs}
    numbers = [
        place
        for place, value in solve.values.items()
        if not isinstance(value, Tensor) and place not in known and not _of_torch(solve.func, place)
    ]
    return tuple((place, solve.values[place]) for place in numbers if _matters(solve, place, sorted(known, key=str)))


def _few(solves: Sequence[SolveCall]) -> list[SolveCall]:
    return [solves[0], solves[len(solves) // 2], solves[-1]] if len(solves) > 3 else list(solves)


def _check_repeats(name: str, solve: SolveCall, varying: Sequence[Place]) -> None:
    try:
        first, second = (_value(solve, varying) for _ in range(2))
    except Exception as error:  # the function may fail in any way where it reads what is not there
        raise UnsupportedOperationError(
            f"the ODE function of {name!r} fails when it is called outside of its solve ({type(error).__name__}: "
            f"{error}): it reads something that is there in the solve alone; make it an argument of the function, and "
            "write ODELayer with f(t, y, u)"
        ) from error
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise UnsupportedOperationError(
            f"the ODE function of {name!r} differs by up to {float((first - second).abs().max()):.1e} between two "
            "calls with the same values: it draws random numbers (dropout that stays on in eval mode), or counts its "
            "calls; torchmor reduces functions of the time, the state and inputs"
        )


def _matters(solve: SolveCall, place: Place, varying: Sequence[Place]) -> bool:
    """Whether f changes with the value at a place."""
    before, value = _value(solve, varying), solve.values[place]
    for changed in _changed(value):
        try:
            after = _value(solve, varying, place, changed)
        except Exception:  # whatever the function says to an impossible value: it reads it
            return True
        finally:
            places.put(solve.func, place, value)
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
    for other in varying:
        places.put(solve.func, other, solve.values[other])
    if place is not None:
        places.put(solve.func, place, changed)
    arguments = call_convention(solve.func)[0]
    value: Tensor = solve.func(solve.y0) if arguments == 1 else solve.func(solve.t[0].to(solve.y0), solve.y0)
    return value.clone()


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
