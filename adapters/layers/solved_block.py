"""A module around an ODE layer, in the place of a module that solved an ODE itself."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.engine.errors import InputError
from torchmor.engine.explanation import Explanation


@dataclass(frozen=True)
class CallForm:
    """How a module that solves an ODE takes its arguments and arranges its states.

    Parameters
    ----------
    parameters
        Names of its arguments, in their order.
    state
        The argument that is the initial state.
    t
        Times that it takes where they are no arguments.
    times
        Arguments that are the times: none, all in one, or one for each.
    input
        The argument that is the input of the ODE function, or None.
    input_attribute
        Path of the attribute that is the input, or None.
    constants
        Other arguments, with the only values that they may have.
    attributes_used
        Whether the network uses more of the module than its forward and the attribute of the input.
    batch_dims
        Leading dimensions of the state that are batch.
    zeros
        Zeros that are appended to the state along dimension 1.
    entries
        Which entries of the state along dimension 1 it returns: the first, and how many; None for all.
    times_kept
        Which of the states at the times it returns: an index, a tuple of indices, or None for all.
    times_skipped
        How many of the first times it leaves out, where it returns all others.
    axes
        Order in which it returns the axes of the states, or None.
    method
        Name of the method that solves, if it is not its forward.
    times_returned
        1 if it returns (times, states), −1 if the times have the other sign there, 0 if it returns the states alone.
    """

    parameters: tuple[str, ...]
    state: str
    t: tuple[float, ...]
    times: tuple[str, ...] = ()
    input: str | None = None
    input_attribute: str | None = None
    attributes_used: bool = False
    constants: tuple[tuple[str, Any], ...] = ()
    batch_dims: int = 1
    zeros: int = 0
    entries: tuple[int, int] | None = None
    times_kept: int | tuple[int, ...] | None = None
    times_skipped: int = 0
    axes: tuple[int, ...] | None = None
    times_returned: int = 0
    method: str = "forward"

    @property
    def plain(self) -> bool:
        """Whether an ODE layer alone, called with the state, does all of it."""
        given: dict[str, Any] = {"constants": self.constants, "times_kept": self.times_kept}
        alone = self == CallForm(self.parameters, self.state, self.t, **given)
        return alone and self.state == self.parameters[0] and self.times_kept in (-1, None)


class SolvedBlock(nn.Module):
    """Stands where a module stood that solved an ODE; its ODE layer can be exchanged.

    It takes the arguments of that module, and returns what it returned.

    Parameters
    ----------
    layer
        The ODE layer, full or reduced: of output "final" if the form keeps the last time only, else "trajectory".
    form
        How the module took its arguments and arranged its states.
    source
        A copy of the module, as of :func:`source_of`, where the form needs it: other attributes of this block are
        looked up there, so that the surrounding code can go on to use them, and to set the input.
    """

    layer: Any  # an ODE layer, full or reduced

    def __init__(self, layer: nn.Module, form: CallForm, source: nn.Module | None = None):
        super().__init__()
        self.form = form
        self.layer = layer
        self.source = source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returned.

        Raises
        ------
        InputError
            An argument has a value that the module was not seen with, or is missing.
        """
        form = self.form
        given = dict(zip(form.parameters, args, strict=False)) | kwargs
        self._check(given, len(args))
        y0 = given[form.state]
        if form.zeros:
            y0 = torch.cat([y0, y0.new_zeros(y0.shape[0], form.zeros, *y0.shape[2:])], 1)
        t = _joined([given[name] for name in form.times])
        several = form.batch_dims > 1
        states = self.layer(y0.flatten(0, 1) if several else y0, self._input(given, y0), t)
        if several:
            times = () if form.times_kept == -1 else (states.shape[0],)
            states = states.reshape(*times, *y0.shape)
        if form.times_kept is None:
            states = states[form.times_skipped :]
        elif form.times_kept != -1:
            states = states[list(form.times_kept) if isinstance(form.times_kept, tuple) else form.times_kept]
        if form.entries is not None:
            states = states.narrow(1 + states.ndim - y0.ndim, *form.entries)  # a time axis may come first
        states = states if form.axes is None else states.permute(form.axes)
        if not form.times_returned:
            return states
        returned = form.t if t is None else t
        return form.times_returned * torch.as_tensor(returned, dtype=y0.dtype, device=y0.device), states

    def _check(self, given: dict[str, Any], count: int) -> None:
        form = self.form
        needed = [name for name in (form.state, *form.times, form.input) if name is not None]
        unknown = [name for name in given if name not in form.parameters]
        missing = [name for name in needed if given.get(name) is None]
        if unknown or missing or count > len(form.parameters):
            raise InputError(
                f"expected the arguments {', '.join(needed)} of the module that was replaced, got "
                f"{', '.join(given) or 'none'}: call it as on the calibration data"
            )
        for name, value in form.constants:
            if name in given and not same(given[name], value):
                raise InputError(
                    f"expected {name}={value!r}, as on the calibration data on which the module was replaced, got "
                    f"{name}={given[name]!r}: reduce the network on data that is called with this, too"
                )

    def _input(self, given: dict[str, Any], y0: Tensor) -> Any:
        if self.form.input is not None:
            u = given[self.form.input]
        elif self.form.input_attribute is not None:
            try:
                u = attrgetter(self.form.input_attribute)(self.source)
            except AttributeError as error:
                raise InputError(
                    f"expected the input as the attribute {self.form.input_attribute!r}, got none ({error}): set it "
                    "before the call"
                ) from error
        else:
            return None
        if not isinstance(u, Tensor):
            return u
        value = u.reshape(len(u), -1).to(u.dtype if u.is_floating_point() else y0.dtype)
        return lambda t: value

    def explain(self) -> Explanation:
        """Return what was reduced in the layer."""
        return self.layer.explain()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "trajectory" and self.form.method == name:
                return self
            source = self._modules.get("source") if "_modules" in self.__dict__ else None
            if source is None or name.startswith("_"):
                raise
            return getattr(source, name)

    def __setattr__(self, name: str, value: Any) -> None:
        source = self._modules.get("source") if "_modules" in self.__dict__ else None
        own = name.startswith("_") or name in ("form", "layer", "source", "training")
        if source is not None and not own and hasattr(source, name):
            setattr(source, name, value)
        else:
            super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Return the form for ``repr(block)``."""
        form = self.form
        shown = {name: value for name, value in vars(form).items() if value != getattr(CallForm, name, None)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class AttributeFunction(nn.Module):
    """An ODE function f(t, y) that reads its input from an attribute, as f(t, y, u).

    Parameters
    ----------
    func
        The function.
    owner
        The object that has the attribute: the function, or something that it uses.
    attribute
        Name of the attribute.
    constant
        Whether the attribute is the value of u; otherwise it is a callable of t.
    arguments
        How many of (t, y) the function takes.
    """

    def __init__(self, func: Callable[..., Tensor], owner: Any, attribute: str, constant: bool, arguments: int):
        super().__init__()
        self.func = func
        self.__dict__["owner"] = owner  # it may hold this function in turn
        self.attribute, self.constant, self.arguments = attribute, constant, arguments

    def forward(self, t: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """Return f(t, y) with the input u."""
        setattr(self.owner, self.attribute, u if self.constant else lambda t: u)
        return self.func(y) if self.arguments == 1 else self.func(t, y)


def source_of(module: nn.Module, form: CallForm) -> nn.Module | None:
    """Return a copy of a module, whose attributes and setters work, where a form needs them.

    It has no parameters unless the network uses more than the input.
    """
    if form.attributes_used:
        return copy.deepcopy(module)
    if form.input_attribute is not None:
        return copy.deepcopy(module, {id(parameter): None for parameter in module.parameters()})
    return None


def same(a: Any, b: Any) -> bool:
    """Whether two arguments of a module are the same value."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b.to(a))
    return a is b or (type(a) is type(b) and bool(a == b))


def _joined(times: list[Any]) -> Any:
    if not times:
        return None
    if len(times) == 1:
        return times[0]  # numbers stay numbers, which an exported graph can hold
    return torch.stack([torch.as_tensor(time).reshape(()) for time in times])
