"""The ODE layer: y' = f(t, y, u) as an nn.Module, solved by torchdiffeq."""

from __future__ import annotations  # compilers would evaluate those of inner functions

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.mismatch import explain_mismatch
from torchmor.adapters.solving.solve_request import SolveRequest
from torchmor.adapters.solving.solve_settings import SolveSettings, SolvingLayer
from torchmor.engine.errors import SignatureError

_TIME_NAMES = {"t", "time"}
_STATE_NAMES = {"y", "x", "z", "h", "state"}

Observer = Callable[[Tensor, Tensor, Tensor | None], None]


class ODELayer(SolvingLayer):
    """An ODE layer, solved by torchdiffeq: y' = f(t, y, u(t)), y(t[0]) = y0.

    Law: ``layer(y0)`` equals ``torchdiffeq.odeint(func, y0, t, ...)[-1]`` with the same settings and t in
    float64, or ``odeint_adjoint`` with ``adjoint=True``. The state has any shape (batch, …).

    Parameters
    ----------
    func
        The ODE function: an nn.Module or callable f(t, y), f(t, y, u) or f(y), which returns dy/dt in the
        shape and dtype of y. t is a 0-dim tensor and u the input at t, (batch, p). How it is called is
        decided by its signature; with ``*args`` it is called as f(t, y).
    t
        Strictly increasing or decreasing times, at least two; the first is that of y0.
    method
        A method of torchdiffeq. "scipy_solver" runs outside autograd: it has gradients with ``adjoint=True``
        only. Also "rk4_classic", "bosh3_fixed" and "dopri5_fixed", with fixed steps, which torchmor solves itself.
    rtol, atol
        Tolerances of adaptive methods.
    options
        Options of the method, as in torchdiffeq.
    adjoint
        Whether gradients come from the adjoint equation. func must be an nn.Module if it has parameters, and
        so must a callable u.
    output
        "final" for y(t[-1]), (batch, …), or "trajectory" for the states at t, (len(t), batch, …).
    input_times
        Times of the samples of u; the default is t.
    interpolation
        "linear" or "previous": how samples of u are interpolated. The signal is constant outside
        `input_times`.

    Raises
    ------
    SignatureError
        func cannot be called as above.
    ValueError
        A setting is impossible.

    References
    ----------
    Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, NeurIPS 2018.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        method: str = "dopri5",
        rtol: float = 1e-3,
        atol: float = 1e-3,
        options: dict[str, Any] | None = None,
        adjoint: bool = False,
        output: str = "final",
        input_times: Sequence[float] | Tensor | None = None,
        interpolation: str = "linear",
    ):
        given: tuple[Any, ...] = (t, method, rtol, atol, options, adjoint, output, input_times, interpolation)
        super().__init__(SolveSettings(*given))
        self._arguments, self.input_use = call_convention(func)
        self._observers: list[Observer] = []
        self.func = func

    def forward(self, y0: Tensor, u: Any = None, t: Sequence[float] | Tensor | None = None) -> Tensor:
        """Solve the ODE from the state y0.

        Parameters
        ----------
        y0
            Initial state (batch, …). Batch 0 returns the empty result without calling func.
        u
            Input of f(t, y, u): a callable of t that returns (batch, p), or samples (batch, len(input_times),
            p).
        t
            Times instead of the layer's; a Tensor that requires gradients gets them.

        Returns
        -------
        Tensor (batch, …), or (len(t), batch, …) for the output "trajectory", like y0.

        Raises
        ------
        ShapeError, DtypeError, DeviceError, InputError, ValueError
            An argument does not fit.
        SignatureError
            func returned another shape or dtype than y0's.
        SolverError
            The solver failed.
        """
        request = SolveRequest.of(self.settings, y0, u, t, input_use=self.input_use)
        if not torch.compiler.is_exporting() and y0.numel() == 0:  # a graph may not ask for a length
            return request.unchanged(y0)
        function = self.function

        def observed(t: Tensor, y: Tensor, u: Tensor | None) -> Tensor:
            for observer in self._observers:
                observer(t.detach(), y.detach(), None if u is None else u.detach())
            return function(t, y, u)

        parameters = function.adjoint_parameters(request, y0) if self.adjoint else ()
        try:
            if torch.compiler.is_compiling():  # torchdiffeq can neither be compiled nor exported
                return request.solve(observed, y0, parameters)
            return request.solve_with_torchdiffeq(observed, y0, parameters, callbacks=self.func)
        except RuntimeError as error:
            explained = explain_mismatch(error, function, (y0,), "the state y0")
            if explained is error:
                raise
            raise explained from error

    @property
    def function(self) -> OdeFunction:
        """The ODE function as a module f(t, y, u), whatever arguments func takes."""
        return OdeFunction(self.func, self._arguments)

    @contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Call ``observer(t, y, u)`` at every evaluation of func by the solver, while the context lasts.

        t is a 0-dim tensor, y the state (batch, …), u the input (batch, p) or None; all are detached and must
        not be modified. A backward pass with ``adjoint=True`` evaluates func too.
        """
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def extra_repr(self) -> str:
        """Return the settings, and func where it is no module, for ``repr(layer)``."""
        settings = super().extra_repr()
        return settings if isinstance(self.func, nn.Module) else f"func={_name(self.func)}, {settings}"


class OdeFunction(nn.Module):
    """An ODE function, called as f(t, y, u) whatever arguments it takes, whose value is checked.

    Parameters
    ----------
    func
        The module or callable.
    arguments
        How many of (t, y, u) it takes; 1 is f(y). None looks at its signature.
    """

    def __init__(self, func: Callable[..., Tensor], arguments: int | None = None):
        super().__init__()
        self.func = func
        self.arguments = call_convention(func)[0] if arguments is None else arguments

    def forward(self, t: Tensor, y: Tensor, u: Tensor | None = None) -> Tensor:
        """Return f(t, y, u), in the shape and dtype of y.

        Raises
        ------
        SignatureError
            The function returned something else.
        """
        value = self._call(t, y, u)
        if not isinstance(value, Tensor):
            raise SignatureError(
                f"the ODE function {_name(self.func)} returned a {type(value).__name__} for a state of shape "
                f"{tuple(y.shape)}: torchmor needs dy/dt as one Tensor of that shape"
            )
        if value.shape != y.shape:
            raise SignatureError(
                f"the ODE function {_name(self.func)} returned shape {tuple(value.shape)} for a state of "
                f"shape {tuple(y.shape)}: torchmor needs dy/dt in the shape of the state"
            )
        if value.dtype != y.dtype:
            if torch.is_autocast_enabled(y.device.type):
                return value.to(y.dtype)
            raise SignatureError(
                f"the ODE function {_name(self.func)} returned {value.dtype} for a state of {y.dtype}: "
                f"torchmor needs dy/dt in the dtype of the state; convert y0 or the parameters"
            )
        return value

    def adjoint_parameters(self, request: SolveRequest, y0: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that the adjoint method differentiates in.

        Raises
        ------
        ValueError
            The function is no module and hides such tensors.
        """
        method_of = getattr(self.func, "__self__", None)
        owner = method_of if isinstance(method_of, nn.Module) else self
        parameters = tuple(parameter for parameter in owner.parameters() if parameter.requires_grad)
        if parameters or isinstance(self.func, nn.Module):
            return parameters
        t = torch.tensor(request.times[0], dtype=y0.dtype, device=y0.device)
        u = None if request.signal is None else request.signal(t).detach()
        if self._call(t, y0.detach(), u).requires_grad:
            raise ValueError(
                f"expected func to be an nn.Module, because adjoint=True finds the tensors to differentiate "
                f"in as its parameters, got {_name(self.func)}, whose value requires a gradient: make it an "
                f"nn.Module, or use adjoint=False"
            )
        return ()

    def _call(self, t: Tensor, y: Tensor, u: Tensor | None) -> Any:
        if self.arguments == 1:
            return self.func(y)
        return self.func(t, y) if u is None else self.func(t, y, u)


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", type(func).__name__)


def call_convention(func: Callable[..., Tensor]) -> tuple[int, str]:
    """Return how an ODE function is called: the number of its arguments, and whether it reads the input u.

    (1, "none") is f(y), (2, "none") is f(t, y), (3, "required") is f(t, y, u), (3, "optional") is f(t, y,
    u=None).

    Raises
    ------
    SignatureError
        It is none of these.
    """
    fix = "write f(t, y), f(t, y, u) or f(y)"
    if not callable(func):
        raise SignatureError(f"expected an ODE function, got {type(func).__name__}: {fix}")
    try:
        signature = _signature(func)
    except ValueError:
        raise SignatureError(
            f"expected an ODE function with a signature, got {func!r}: wrap it, lambda t, y: …"
        ) from None
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise SignatureError(f"expected an ODE function without required keywords, got f{signature}: {fix}")
    if len(required) < 2 and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2, "none"
    count = len(required)
    if not 1 <= count <= 3:
        raise SignatureError(f"expected an ODE function of 1 to 3 required arguments, got f{signature}: {fix}")
    if _misordered(required):
        raise SignatureError(f"expected the arguments of an ODE function in the order t, y, u, got f{signature}: {fix}")
    if count == 2 and len(positional) > 2 and positional[2].name == "u":
        return 3, "optional"
    return count, "required" if count == 3 else "none"


def _signature(func: Callable[..., Tensor]) -> inspect.Signature:
    if not isinstance(func, torch.jit.ScriptModule):
        return inspect.signature(func.forward if isinstance(func, nn.Module) else func)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward: Any = func.forward
    _, *arguments = forward.schema.arguments
    defaults = [one.default_value if one.has_default_value() else inspect.Parameter.empty for one in arguments]
    parameters = zip((one.name for one in arguments), defaults, strict=True)
    return inspect.Signature([inspect.Parameter(name, kind, default=default) for name, default in parameters])


def _misordered(names: list[str]) -> bool:
    # only names that clearly say another role: f(s, v) is f(t, y), and u may be the state, f(t, u)
    late_time = any(name in _TIME_NAMES for name in names[1:]) or (len(names) == 1 and names[0] in _TIME_NAMES)
    no_time = len(names) > 1 and names[0] in _STATE_NAMES and names[1] == "u"
    early_input = len(names) == 3 and names[1] == "u" and names[2] in _STATE_NAMES
    return late_time or no_time or early_input
