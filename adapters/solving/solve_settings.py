"""Solver settings of ODE layers, checked, and layers that show them as attributes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.solving.signals import INTERPOLATIONS
from torchmor.engine.tableaux import OWN_METHODS, TABLEAUX

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_GRID_METHODS = (*TABLEAUX, "explicit_adams", "implicit_adams", "fixed_adams")
METHODS = (*ADAPTIVE_METHODS, *FIXED_GRID_METHODS, "scipy_solver")
OUTPUTS = ("final", "trajectory")

#: Options that `solve_fixed_step` understands; with any other the solve goes to torchdiffeq, which cannot be traced.
OWN_OPTIONS = ("step_size", "interp")


@dataclass(frozen=True)
class SolveSettings:
    """How an ODE layer is solved: the arguments of :class:`ODELayer` except func, checked.

    All fields are plain Python data if the options are.

    Parameters
    ----------
    t
        Strictly monotone times, at least two; kept as Python floats.
    method
        Name of a method of torchdiffeq, or one of ``OWN_METHODS``: fixed-step methods that torchdiffeq lacks, which
        have the options "step_size" and "interp", and no adjoint.
    rtol, atol
        Relative and absolute tolerance of adaptive methods.
    options
        Options of the method, as in torchdiffeq. Times in "jump_t" and "step_t" are kept as Python floats.
    adjoint
        Whether gradients come from the adjoint equation.
    output
        "final" or "trajectory".
    input_times
        Times of the samples of u; None for t.
    interpolation
        Interpolation of the samples of u: "linear" or "previous".

    Raises
    ------
    ValueError
        A value is impossible; the message lists the possible ones.
    """

    t: tuple[float, ...] = (0.0, 1.0)
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    options: Mapping[str, Any] = field(default_factory=dict)
    adjoint: bool = False
    output: str = "final"
    input_times: tuple[float, ...] | None = None
    interpolation: str = "linear"

    def __post_init__(self) -> None:
        choices = {"method": METHODS, "output": OUTPUTS, "interpolation": INTERPOLATIONS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and not 0 <= value < math.inf:
                raise ValueError(f"expected {name} to be a number ≥ 0, got {value!r}")
        options = dict(self.options or {})
        for name in ("jump_t", "step_t"):
            if options.get(name) is not None:
                options[name] = check_times(sorted(options[name]), f"options[{name!r}]", 0)
        if self.method in FIXED_GRID_METHODS:
            _check_grid_options(options)
        if self.method in OWN_METHODS:
            _check_own(self.method, self.adjoint, options)
        plain = {"t": check_times(self.t, "t", 2), "options": options, "adjoint": bool(self.adjoint)}
        if self.input_times is not None:
            plain["input_times"] = check_times(self.input_times, "input_times")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        shown: dict[str, Any] = {"t": self.t, "method": self.method}
        if self.method not in TABLEAUX:
            shown |= {"rtol": self.rtol, "atol": self.atol}
        if self.options:
            shown["options"] = self.options
        for name in ("adjoint", "output", "input_times", "interpolation"):
            if getattr(self, name) != getattr(SolveSettings, name):
                shown[name] = getattr(self, name)
        return ", ".join(f"{name}={_short(value)}" for name, value in shown.items())


def _setting(name: str) -> Any:
    def set_value(layer: "SolvingLayer", value: Any) -> None:
        layer.settings = replace(layer.settings, **{name: value})

    return property(lambda layer: getattr(layer.settings, name), set_value, doc=f"See SolveSettings.{name}.")


class SolvingLayer(nn.Module):
    """Base class of ODE layers: a module with solver settings, which can be read and set as attributes.

    Law: ``layer.method = "euler"`` is ``layer.settings = replace(layer.settings, method="euler")``, checks
    included.
    """

    t = _setting("t")
    method = _setting("method")
    rtol = _setting("rtol")
    atol = _setting("atol")
    options = _setting("options")
    adjoint = _setting("adjoint")
    output = _setting("output")
    input_times = _setting("input_times")
    interpolation = _setting("interpolation")

    def __init__(self, settings: SolveSettings):
        super().__init__()
        self.settings = settings

    def extra_repr(self) -> str:
        """Return the settings for ``repr(layer)``."""
        return str(self.settings)


def check_times(times: Any, name: str, least: int = 1) -> tuple[float, ...]:
    """Return times as a tuple of Python floats.

    Raises
    ------
    ValueError
        They are no sequence of at least `least` finite, strictly monotone numbers.
    """
    try:
        times = tuple(float(time) for time in (times.tolist() if isinstance(times, Tensor) else times))
    except (TypeError, ValueError):
        raise ValueError(f"expected {name} to be a one-dimensional sequence of numbers, got {times!r}") from None
    if len(times) < least:
        raise ValueError(f"expected {name} to hold at least {least} times, got {times}")
    if not all(math.isfinite(time) for time in times):
        raise ValueError(f"expected {name} to hold finite times, got {_short(times)}")
    increments = [after - before for before, after in pairwise(times)]
    if not (all(step > 0 for step in increments) or all(step < 0 for step in increments)):
        raise ValueError(
            f"expected {name} to be strictly increasing or strictly decreasing, got {_short(times)}: sort "
            f"the times and drop repeated ones"
        )
    return times


def not_torchdiffeq(method: str, instead: str) -> str:
    """Return why a method cannot do what was asked for, and what to do instead."""
    known = ", ".join(name for name in TABLEAUX if name not in OWN_METHODS)
    return f"because method={method!r} is not solved by torchdiffeq: use {instead}, or one of {known}"


def _check_grid_options(options: Mapping[str, Any]) -> None:
    step_size, interp = options.get("step_size"), options.get("interp", "linear")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"expected options['step_size'] to be a number > 0, got {step_size!r}")
    if interp not in ("linear", "cubic"):
        raise ValueError(f"expected options['interp'] to be one of linear, cubic, got {interp!r}")


def _check_own(method: str, adjoint: bool, options: Mapping[str, Any]) -> None:
    if adjoint:
        raise ValueError(f"expected adjoint=False, {not_torchdiffeq(method, 'gradients through the steps')}")
    others = sorted(options.keys() - OWN_OPTIONS)
    if others:
        raise ValueError(f"expected no options[{others[0]!r}], {not_torchdiffeq(method, 'step_size and interp')}")


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(repr, value[:3]))}, …, {value[-1]!r}) of length {len(value)}"
    return repr(value)
