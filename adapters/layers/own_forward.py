"""A module that goes on to run its own forward, in which an ODE layer answers the solves."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers import places
from torchmor.adapters.layers.interception import handled, intercepted
from torchmor.adapters.layers.places import Place
from torchmor.engine.errors import InputError


@dataclass(frozen=True)
class PlacedInput:
    """A value that an ODE function reads, and that its module sets for each solve.

    Parameters
    ----------
    place
        Where the function reads it.
    shape
        Shape of one sample's value; of the value of all samples where there is no batch.
    dtype
        Its dtype, as text.
    batched
        Whether its first dimension is the batch.
    """

    place: Place
    shape: tuple[int, ...]
    dtype: str
    batched: bool

    @property
    def size(self) -> int:
        """Number of its entries for one sample."""
        return math.prod(self.shape)

    def flat(self, value: Any, y0: Tensor) -> Tensor:
        """Return the value as (batch, size), like the state.

        Raises
        ------
        InputError
            It has another shape than on the calibration data.
        """
        value = torch.as_tensor(value, device=y0.device)
        expected = (len(y0), *self.shape) if self.batched else self.shape
        if tuple(value.shape) != expected:
            raise InputError(
                f"expected {places.words(self.place)!r}, which the ODE function reads, of shape {expected}, as on the "
                f"calibration data, got {tuple(value.shape)}: reduce the network on data of this shape"
            )
        rows = len(y0) if self.batched else 1
        return value.to(y0.dtype).reshape(rows, self.size).expand(len(y0), -1)

    def restored(self, flat: Tensor, y: Tensor) -> Tensor:
        """Return the value from (batch, size), so that it broadcasts with a state."""
        shape = self.shape if self.batched or self.shape else (1,) * (y.ndim - 1)
        return flat.reshape(len(flat), *shape).to(getattr(torch, self.dtype.removeprefix("torch.")))


class PlacedFunction(nn.Module):
    """An ODE function f(t, y) that reads inputs at some places, as f(t, y, u).

    Parameters
    ----------
    func
        The function.
    inputs
        What is u, one after another.
    arguments
        How many of (t, y) the function takes.
    held
        Functions that f calls, and that its module may set for each solve alone, by their places.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        inputs: Sequence[PlacedInput],
        arguments: int,
        held: Mapping[Place, Callable[..., Any]] | None = None,
    ):
        super().__init__()
        self.func, self.inputs, self.arguments, self.held = func, tuple(inputs), arguments, held or {}

    def forward(self, t: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Return f(t, y) with the input u (batch, p)."""
        with places.holding(self.func, self.held):
            before = [places.get(self.func, one.place) for one in self.inputs]
            try:
                parts = u.split([one.size for one in self.inputs], 1)
                for one, part in zip(self.inputs, parts, strict=True):
                    places.put(self.func, one.place, one.restored(part, y))
                return self.func(y) if self.arguments == 1 else self.func(t, y)
            finally:
                for one, value in zip(self.inputs, before, strict=True):
                    places.put(self.func, one.place, value)


@dataclass(frozen=True)
class SolveForm:
    """Which solves of a module's forward an ODE layer answers.

    Parameters
    ----------
    layer
        Name of the layer in the module.
    function
        Identity of the ODE function, as of :func:`~torchmor.adapters.layers.places.identity`.
    settings
        The solver and its settings, as text.
    inputs
        What is the layer's input.
    numbers
        Numbers that the function reads, with the only values that they may have.
    batch_dims
        Leading dimensions of the state that are batch; 0 for a state without.
    dropped
        Parameters of the module that only the ODE function used.
    """

    layer: str
    function: str
    settings: str
    inputs: tuple[PlacedInput, ...] = ()
    numbers: tuple[tuple[Place, Any], ...] = ()
    batch_dims: int = 1
    dropped: tuple[str, ...] = ()


class OwnForward:
    """The forward of a module whose solves an ODE layer inside of it answers.

    All else in the forward goes on as it is written: what is computed from the arguments, and from the states. Solves
    of other ODE functions go on too. torchdiffeq's solvers are exchanged while the forward runs, for this thread alone.

    Parameters
    ----------
    module
        The module.
    form
        Which solves are answered, by which layer.
    """

    def __init__(self, module: nn.Module, form: SolveForm):
        self.module, self.form = module, form

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original)

    @property
    def __code__(self) -> types.CodeType:  # torch.export reads names of arguments there
        return type(self.module).forward.__code__

    @property
    def _original(self) -> Callable[..., Any]:
        return types.MethodType(type(self.module).forward, self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns.

        Raises
        ------
        InputError
            The solve differs from these that the module was seen with, in more than state, times and inputs.
        """
        with intercepted(self._answer):
            return self._original(*args, **kwargs)

    def _answer(self, solver: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        given, form = bound.arguments, self.form
        func, y0, t = given["func"], given["y0"], given["t"]
        if places.identity(func, self.module) != form.function or not isinstance(y0, Tensor):
            return handled(solver, args, kwargs)  # which a handle outside of this one may see
        if not y0.numel() or len(t) < 2:
            return y0.expand(len(t), *y0.shape)
        settings = settings_words(solver, given)
        if settings != form.settings:
            raise InputError(
                f"expected a solve by {form.settings}, as on the calibration data on which the layer was reduced, got "
                f"{settings}: reduce the network with these settings"
            )
        for place, value in form.numbers:
            if (found := places.get(func, place)) != value:
                raise InputError(
                    f"expected {places.words(place)}={value!r}, which the ODE function reads, as on the calibration "
                    f"data on which the layer was reduced, got {found!r}: reduce the network on data with this, too"
                )
        start = y0 if form.batch_dims else y0[None]
        start = start.flatten(0, 1) if form.batch_dims > 1 else start
        u = None
        if form.inputs:
            value = torch.cat([one.flat(places.get(func, one.place), start) for one in form.inputs], 1)
            u = lambda t: value  # noqa: E731 - constant in time
        return getattr(self.module, form.layer)(start, u, t).reshape(len(t), *y0.shape)


def with_own_forward(module: nn.Module, layer: nn.Module, form: SolveForm) -> nn.Module:
    """Put a layer into a module, so that it answers the solves of the module's forward; returns the module."""
    for name in form.dropped:
        owner, _, parameter = name.rpartition(".")
        module.get_submodule(owner)._parameters[parameter] = None
    module.add_module(form.layer, layer)
    module.__dict__["forward"] = OwnForward(module, form)  # its class, and the names of its parts, stay
    return module


def own_form(module: nn.Module) -> SolveForm | None:
    """Return which solves of a module's own forward are answered; None where it is as its class says."""
    forward = vars(module).get("forward")
    return forward.form if isinstance(forward, OwnForward) else None


def settings_words(solver: str, given: dict[str, Any]) -> str:
    """Return the settings of a call of torchdiffeq as text."""
    words = [solver, given["method"] or "dopri5", f"rtol={given['rtol']!r}", f"atol={given['atol']!r}"]
    words += [f"{name}={value!r}" for name, value in (given["options"] or {}).items()]
    return ", ".join(words + (["event_fn"] if given["event_fn"] is not None else []))
