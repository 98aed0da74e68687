"""What every ODE layer shares: its solver settings, the checks of one call, and the solve itself.

Fixed-step solves of reduced layers need torch only; torchdiffeq is imported when it is called.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmor.adapters.inputs import INTERPOLATIONS, Signal, input_signal
from torchmor.adapters.solvers import Slope, integrate, is_fixed_step, solve_fixed_step
from torchmor.engine.errors import DeviceError, DtypeError, InputError, ShapeError, SolverError
from torchmor.engine.tableaux import OWN_METHODS, TABLEAUX

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_GRID_METHODS = (*TABLEAUX, "explicit_adams", "implicit_adams", "fixed_adams")
METHODS = (*ADAPTIVE_METHODS, *FIXED_GRID_METHODS, "scipy_solver")
OUTPUTS = ("final", "trajectory")

# options that solve_fixed_step understands; with any other the solve goes to torchdiffeq
_OWN_OPTIONS = {"step_size", "interp"}
_CALLBACKS = tuple(
    f"callback_{event}{suffix}" for event in ("step", "accept_step", "reject_step") for suffix in ("", "_adjoint")
)


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
    options: Mapping[str, Any] | None = None
    adjoint: bool = False
    output: str = "final"
    input_times: tuple[float, ...] | None = None
    interpolation: str = "linear"

    def __post_init__(self):
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

    def __str__(self):
        shown = {"t": self.t, "method": self.method}
        if self.method not in TABLEAUX:
            shown |= {"rtol": self.rtol, "atol": self.atol}
        if self.options:
            shown["options"] = self.options
        for name in ("adjoint", "output", "input_times", "interpolation"):
            if getattr(self, name) != getattr(SolveSettings, name):
                shown[name] = getattr(self, name)
        return ", ".join(f"{name}={_short(value)}" for name, value in shown.items())

    def request(self, y0: Tensor, u=None, t=None, *, input_use: str = "none") -> "SolveRequest":
        """Check the arguments of one call of a layer.

        Parameters
        ----------
        y0
            Initial state (batch, …).
        u
            Input: a callable of t, samples (batch, times, p), or None.
        t
            Times instead of the layer's; a Tensor that requires gradients keeps them.
        input_use
            Whether the ODE function reads u: "required", "optional" or "none".

        Raises
        ------
        ShapeError, DtypeError
            y0 is no floating-point tensor with a batch dimension.
        InputError
            u is missing, superfluous or of the wrong form.
        ValueError
            t is not finite, strictly monotone and of length 2 or more, or it requires a gradient that the method does
            not have.
        """
        if not isinstance(y0, Tensor) or not y0.is_floating_point():
            got = str(y0.dtype) if isinstance(y0, Tensor) else type(y0).__name__
            raise DtypeError(f"expected the state y0 to be a floating-point Tensor, got {got}: use y0.float()")
        if y0.ndim < 2:
            raise ShapeError(
                f"expected the state y0 to have shape (batch, …), got {tuple(y0.shape)}: "
                f"add a batch dimension, y0[None] for one sample"
            )
        times = self.t if t is None else check_times(t, "t", 2)
        if u is None:
            if input_use == "required":
                raise InputError(
                    "expected the input u of the ODE function f(t, y, u), got none: call layer(y0, u) with a "
                    "callable of t or samples (batch, times, p)"
                )
            signal = None
        elif input_use == "none":
            raise InputError(
                "expected no input u, because the ODE function does not take one, got u: write the function "
                "as f(t, y, u), or call layer(y0)"
            )
        else:
            knots = times if self.input_times is None else self.input_times
            signal = input_signal(u, knots, self.interpolation, y0)
        time_tensor = t if isinstance(t, Tensor) and t.requires_grad else None
        if time_tensor is not None and self.method in OWN_METHODS:
            raise ValueError(f"expected times t without gradients, {_not_torchdiffeq(self.method, 't.detach()')}")
        return SolveRequest(self, times, time_tensor, signal)


class SolveRequest(NamedTuple):
    """One checked call of an ODE layer."""

    settings: SolveSettings
    times: tuple[float, ...]
    time_tensor: Tensor | None  # the times, where their gradient is asked for
    signal: Signal | None

    def unchanged(self, y0: Tensor) -> Tensor:
        """Return the result for a state without entries, which cannot move: the empty result for batch 0."""
        return y0.clone() if self._final else y0.expand(len(self.times), *y0.shape).clone()

    def solve(
        self,
        f: Callable[..., Tensor],
        y0: Tensor,
        parameters: Iterable[Tensor] = (),
        slopes: Callable[..., Sequence[Slope]] | None = None,
    ) -> Tensor:
        """Solve y' = f(t, y, u(t)), y(t[0]) = y0.

        Law: equals :meth:`solve_with_torchdiffeq` to rounding. Fixed-step methods run in torch alone, unless
        their options or gradients need torchdiffeq.

        Parameters
        ----------
        slopes
            f at several times, as functions of the state, for :func:`~torchmor.adapters.solvers.integrate`: it is
            called as slopes(times, u, y0) with the inputs u (len(times), batch, p) at these times, or None.

        All other parameters, and the result, are those of :meth:`solve_with_torchdiffeq`.
        """
        if not self._solved_here:
            return self.solve_with_torchdiffeq(f, y0, parameters)
        signal, tableau, options = self.signal, TABLEAUX[self.settings.method], self.settings.options
        if slopes is None:
            rhs = f if signal is not None else lambda t, y: f(t, y, None)
            return solve_fixed_step(rhs, y0, self.times, tableau, **options, signal=signal, final=self._final)

        def along(times):
            return slopes(times, None if signal is None else signal.along(times, y0), y0)

        return integrate(along, y0, self.times, tableau, **options, final=self._final)

    def solve_with_torchdiffeq(
        self, f: Callable[..., Tensor], y0: Tensor, parameters: Iterable[Tensor] = (), callbacks: Any = None
    ) -> Tensor:
        """Solve y' = f(t, y, u(t)), y(t[0]) = y0, by torchdiffeq.

        Law: equals ``torchdiffeq.odeint`` (``odeint_adjoint``) with times of dtype float64. Adaptive methods
        are told the kinks of u as jump times. Methods that torchdiffeq lacks are solved here instead.

        Parameters
        ----------
        f
            ODE function f(t, y, u); u is None without an input.
        y0
            Initial state (batch, …).
        parameters
            Tensors that f depends on: the adjoint method differentiates in them, in y0 and in the input.
        callbacks
            Object that may have torchdiffeq's methods callback_step, callback_accept_step, ….

        Returns
        -------
        Tensor (batch, …) for the output "final", (len(t), batch, …) for "trajectory".

        Raises
        ------
        SolverError
            The step size underflowed, the solution is not finite, or too many steps were taken.
        InputError
            u is a callable whose gradients the adjoint method cannot see.
        ValueError
            There are callbacks, and the method is not of torchdiffeq.
        """
        settings, signal = self.settings, self.signal
        if settings.method in OWN_METHODS:
            asked = [name for name in _CALLBACKS if hasattr(callbacks, name)]
            if asked:
                raise ValueError(f"expected no {asked[0]}, {_not_torchdiffeq(settings.method, 'another function')}")
            return self.solve(f, y0)
        import torchdiffeq

        def rhs(t, y):
            return f(t, y, None if signal is None else signal(t))

        for name in _CALLBACKS:
            if hasattr(callbacks, name):
                setattr(rhs, name, getattr(callbacks, name))
        dtype = torch.float32 if y0.device.type == "mps" else torch.float64  # mps has no float64
        t = self.times if self.time_tensor is None else self.time_tensor
        t = torch.as_tensor(t, dtype=dtype, device=y0.device)
        options = self._options(t)
        arguments = {
            "rtol": settings.rtol,
            "atol": settings.atol,
            "method": settings.method,
            "options": options,
        }
        solver = torchdiffeq.odeint
        if settings.adjoint:
            solver = torchdiffeq.odeint_adjoint
            arguments["adjoint_options"] = self._adjoint_options(options)
            arguments["adjoint_params"] = (*parameters, *self._signal_parameters(t, y0))
        try:
            states = solver(rhs, y0, t, **arguments)
        except AssertionError as error:
            raise _solver_error(error, y0) from error
        if len(states) < len(self.times):  # SciPy's solvers stop early
            raise SolverError(
                f"expected states at {len(self.times)} times, got {len(states)}: the solver gave up, because "
                f"the solution grows without bound or the tolerances are too tight; change rtol, atol or the "
                f"method"
            )
        return states[-1] if self._final else states

    @property
    def _solved_here(self) -> bool:
        settings = self.settings
        return (
            is_fixed_step(settings.method)
            and _OWN_OPTIONS.issuperset(settings.options)
            and not settings.adjoint
            and self.time_tensor is None
        )

    @property
    def _final(self) -> bool:
        return self.settings.output == "final"

    def _options(self, t: Tensor) -> dict[str, Any]:
        """The options for torchdiffeq, with the kinks of the input among the jump times."""
        options = dict(self.settings.options)
        if self.settings.method not in ADAPTIVE_METHODS:
            return options
        # all kinks, for adaptive solvers step beyond the last time and interpolate
        jumps = [] if self.signal is None else list(self.signal.kinks)
        close = 1e-12 * abs(self.times[-1] - self.times[0])

        # torchdiffeq refuses a time that comes twice, and steps needlessly between times that differ by
        # rounding
        def others(name):
            return [s for s in options.pop(name, None) or () if all(abs(s - jump) > close for jump in jumps)]

        jumps = sorted(jumps + others("jump_t"))
        for name, times in (("jump_t", jumps), ("step_t", others("step_t"))):
            if times:
                options[name] = torch.tensor(times, dtype=t.dtype, device=t.device)
        if t.dtype == torch.float32:
            options.setdefault("dtype", t.dtype)
        return options

    def _adjoint_options(self, options: dict[str, Any]) -> dict[str, Any]:
        # torchdiffeq solves backward problems forward in −t, and forgets it for these times of the adjoint
        sign = 1 if self.times[-1] > self.times[0] else -1
        return {
            name: sign * value if name in ("jump_t", "step_t") and isinstance(value, Tensor) else value
            for name, value in options.items()
            if name != "norm"
        }

    def _signal_parameters(self, t: Tensor, y0: Tensor) -> tuple[Tensor, ...]:
        """Tensors of u that need gradients; refuses a callable that hides them."""
        if self.signal is None:
            return ()
        parameters = self.signal.parameters()
        if not parameters and self.signal(t[0].detach().to(y0.dtype)).requires_grad:
            raise InputError(
                "expected u to be an nn.Module or a Tensor of samples, because adjoint=True finds the "
                "tensors to differentiate in as their parameters, got a callable whose value requires a "
                "gradient: make it an nn.Module, detach its value, or use adjoint=False"
            )
        return parameters


def _setting(name: str) -> property:
    def set_value(layer: "SolvingLayer", value):
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


def check_times(times, name: str, least: int = 1) -> tuple[float, ...]:
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


def explain_mismatch(error: RuntimeError, module: nn.Module, tensors: Iterable[Tensor], what: str) -> Exception:
    """Return the DtypeError or DeviceError behind an error of torch, or the error itself.

    Called only after a failure: a module may well mix dtypes and devices on purpose.

    Parameters
    ----------
    error
        What was raised when `module` was called with `tensors`.
    module
        The module.
    tensors
        Its arguments.
    what
        What the arguments are, for the message.
    """
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    for tensor in tensors:
        if parameter is None or not tensor.is_floating_point():
            continue
        if tensor.device != parameter.device:
            return DeviceError(
                f"expected {what} on {parameter.device}, as the parameters, got {tensor.device}: move one to the other"
            )
        if tensor.dtype != parameter.dtype:
            return DtypeError(
                f"expected {what} of {parameter.dtype}, as the parameters, got {tensor.dtype}: convert one to the other"
            )
    return error


def _check_grid_options(options: Mapping[str, Any]):
    step_size, interp = options.get("step_size"), options.get("interp", "linear")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"expected options['step_size'] to be a number > 0, got {step_size!r}")
    if interp not in ("linear", "cubic"):
        raise ValueError(f"expected options['interp'] to be one of linear, cubic, got {interp!r}")


def _check_own(method: str, adjoint: bool, options: Mapping[str, Any]):
    if adjoint:
        raise ValueError(f"expected adjoint=False, {_not_torchdiffeq(method, 'gradients through the steps')}")
    others = sorted(options.keys() - _OWN_OPTIONS)
    if others:
        raise ValueError(f"expected no options[{others[0]!r}], {_not_torchdiffeq(method, 'step_size and interp')}")


def _not_torchdiffeq(method: str, instead: str) -> str:
    known = ", ".join(name for name in TABLEAUX if name not in OWN_METHODS)
    return f"because method={method!r} is not solved by torchdiffeq: use {instead}, or one of {known}"


def _solver_error(error: AssertionError, y0: Tensor) -> Exception:
    text = str(error)
    if not text.startswith(("underflow in dt", "non-finite values in state", "max_num_steps exceeded")):
        return error  # an assertion of the user's function
    if not bool(y0.detach().isfinite().all()):
        cause = "the initial state y0 contains NaN or infinity; clean the data"
    elif text.startswith("max_num_steps"):
        cause = "raise options['max_num_steps'], loosen rtol and atol, or use a fixed-step method"
    else:
        cause = (
            "the solution grows without bound, the ODE function returns NaN or infinity, or the tolerances "
            "are too tight for the dtype; check the ODE function, loosen rtol and atol, or use a fixed-step "
            "method"
        )
    return SolverError(f"the ODE solver failed ({text.partition(':')[0]}): {cause}")


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(repr, value[:3]))}, …, {value[-1]!r}) of length {len(value)}"
    return repr(value)
