"""What a module does when it solves that no ODE layer does."""

from __future__ import annotations

from torch import Tensor

from torchmor.adapters.networks import torchdyn_layers
from torchmor.adapters.networks.call_forms import ADVICE
from torchmor.adapters.networks.solve_calls import ModuleCall, SolveCall
from torchmor.engine.errors import NonFiniteError, UnsupportedOperationError


def where_it_is(name: str) -> str:
    """Return a module in words, by its name."""
    return f"the module {name!r}" if name else "the network itself (its forward is the innermost that solves)"


def check_call(name: str, call: ModuleCall) -> None:
    """Refuse a call with what no ODELayer does.

    Raises
    ------
    UnsupportedOperationError, NonFiniteError
        A solve in it is none; the message says why.
    """
    if torchdyn_layers.is_neural_ode(call.module):
        torchdyn_layers.check(call.module)
    for solve in call.solves:
        _check_solve(name, solve)


def check_single(name: str, call: ModuleCall) -> None:
    """Refuse what no ODELayer alone does in the place of a module.

    Raises
    ------
    UnsupportedOperationError
        It solves several times, or without a batch.
    """
    solve = call.solves[0]
    if len(call.solves) > 1:
        raise UnsupportedOperationError(
            f"expected a module that solves one ODE in each call, got {len(call.solves)} solves in one call of "
            f"{where_it_is(name)}: {ADVICE}; it may be called many times"
        )
    if solve.y0.ndim < 2:
        raise UnsupportedOperationError(
            f"expected a state of shape (batch, …), got {tuple(solve.y0.shape)} in {where_it_is(name)}: torchmor "
            "reduces ODEs that treat the samples of a batch alike; give the state a batch dimension"
        )


def _check_solve(name: str, solve: SolveCall) -> None:
    where = where_it_is(name)
    if solve.event:
        raise UnsupportedOperationError(
            f"expected a solve between given times, got one that stops at an event (event_fn) in {where}: torchmor "
            "reduces solves of fixed length; reduce the parts between events as an ODELayer each, and keep the events "
            "outside"
        )
    if not isinstance(solve.y0, Tensor):
        raise UnsupportedOperationError(
            f"expected a state that is one Tensor, got a tuple of {len(solve.y0)} in {where}, as continuous "
            "normalising flows have it, whose second part is a log-density that needs the divergence of f: torchmor "
            "reduces y' = f(t, y) alone; solve for the samples alone, or concatenate the parts to one Tensor"
        )
    if type(solve.func).__module__.partition(".")[0] == "torchcde":
        raise UnsupportedOperationError(
            f"expected an ODE function f(t, y), got that of torchcde in {where}, which reads the path X of its call: "
            "write the neural CDE as f(t, y, u) with u = dX/dt, for F(y) u return (F(y) @ u[..., None])[..., 0], and "
            "call ODELayer(f, t, …)(y0, X.derivative) instead of cdeint; reduce that layer"
        )
    if solve.y0.numel() == 0 or len(solve.t) < 2:
        raise UnsupportedOperationError(
            f"expected a solve of at least one state over at least two times, got a state of shape "
            f"{tuple(solve.y0.shape)} and {len(solve.t)} times in {where}: calibrate with other data"
        )
    if isinstance(solve.states, Tensor) and not bool(solve.states.isfinite().all()):
        bad = (~solve.states.isfinite()).movedim(min(1, solve.states.ndim - 1), 0).flatten(1).any(1)
        raise NonFiniteError(
            f"expected finite states in {where}, got NaN or infinity in sample {int(bad.nonzero()[0])}, and "
            f"{int(bad.sum()) - 1} others, of a batch of {len(bad)}: the solution diverges there; leave such samples "
            "out, or use smaller steps or an adaptive method"
        )
