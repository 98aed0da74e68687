"""One call of an ODE layer: the checks of its arguments, and the solve itself.

Fixed-step solves of reduced layers need torch only; torchdiffeq is imported when it is called.
"""

from __future__ import annotations  # compilers would evaluate those of inner functions

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmor.adapters.solving.runge_kutta import Slope, integrate, is_fixed_step, solve_fixed_step
from torchmor.adapters.solving.signals import Signal, input_signal
from torchmor.adapters.solving.solve_settings import (
    ADAPTIVE_METHODS,
    OWN_OPTIONS,
    SolveSettings,
    check_times,
    not_torchdiffeq,
)
from torchmor.engine.errors import DtypeError, InputError, ShapeError, SolverError
from torchmor.engine.tableaux import OWN_METHODS, TABLEAUX

_CALLBACKS = tuple(
    f"callback_{event}{suffix}" for event in ("step", "accept_step", "reject_step") for suffix in ("", "_adjoint")
)


class SolveRequest(NamedTuple):
    """One checked call of an ODE layer."""

    settings: SolveSettings
    times: tuple[float, ...]
    time_tensor: Tensor | None  # the times, where their gradient is asked for
    signal: Signal | None

    @classmethod
    def of(
        cls, settings: SolveSettings, y0: Tensor, u: Any = None, t: Any = None, *, input_use: str = "none"
    ) -> SolveRequest:
        """Check the arguments of one call of a layer.

        Parameters
        ----------
        settings
            Of the layer.
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
                f"expected the state y0 to have shape (batch, …), got {tuple(y0.shape)}: add a batch dimension, "
                "y0[None] for one sample, or a state dimension, y0[:, None] for a batch of numbers"
            )
        times = settings.t if t is None else check_times(t, "t", 2)
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
            knots = times if settings.input_times is None else settings.input_times
            signal = input_signal(u, knots, settings.interpolation, y0)
        time_tensor = t if isinstance(t, Tensor) and t.requires_grad else None
        if time_tensor is not None and settings.method in OWN_METHODS:
            raise ValueError(f"expected times t without gradients, {not_torchdiffeq(settings.method, 't.detach()')}")
        return cls(settings, times, time_tensor, signal)

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
            f at several times, as functions of the state, for
            :func:`~torchmor.adapters.solving.runge_kutta.integrate`: it is called as slopes(times, u, y0) with the
            inputs u (len(times), batch, p) at these times, or None.

        All other parameters, and the result, are those of :meth:`solve_with_torchdiffeq`.
        """
        if not self._solved_here:
            return self.solve_with_torchdiffeq(f, y0, parameters)
        signal, tableau, options = self.signal, TABLEAUX[self.settings.method], self.settings.options
        if slopes is None:
            rhs = f if signal is not None else lambda t, y: f(t, y, None)
            return solve_fixed_step(rhs, y0, self.times, tableau, **options, signal=signal, final=self._final)

        def along(times: Sequence[float]) -> Sequence[Slope]:
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
                raise ValueError(f"expected no {asked[0]}, {not_torchdiffeq(settings.method, 'another function')}")
            return self.solve(f, y0)
        import torchdiffeq

        def rhs(t: Tensor, y: Tensor) -> Tensor:
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
            and all(option in OWN_OPTIONS for option in settings.options)
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
        def others(name: str) -> list[float]:
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


def _solver_error(error: AssertionError, y0: Tensor) -> Exception:
    text = str(error)
    if not text.startswith(("underflow in dt", "non-finite values in state", "max_num_steps exceeded")):
        return error  # an assertion of the user's function
    if not bool(y0.detach().isfinite().all()):
        cause = "the initial state y0 contains NaN or infinity; clean the data"
    elif text.startswith("max_num_steps"):
        cause = "raise options['max_num_steps'], loosen rtol and atol, or use a fixed-step method"
    elif y0.dtype == torch.float16:
        cause = "float16 is too coarse for adaptive steps; use a fixed-step method, or network.float()"
    else:
        cause = (
            "the solution grows without bound, the ODE function returns NaN or infinity, or the tolerances "
            "are too tight for the dtype; check the ODE function, loosen rtol and atol, or use a fixed-step "
            "method"
        )
    return SolverError(f"the ODE solver failed ({text.partition(':')[0]}): {cause}")
