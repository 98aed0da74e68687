"""ODELayers in the place of modules that solve an ODE themselves, with torchdiffeq or torchdyn."""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchmor.adapters import torchdyn_layers
from torchmor.adapters.calibration import Batch, call_network, evaluation
from torchmor.adapters.ode_layer import ODELayer, call_convention, find_layer
from torchmor.adapters.solve_calls import ModuleCall, SolveCall, watched
from torchmor.adapters.solved_block import AttributeFunction, CallForm, SolvedBlock, hollow, same
from torchmor.engine.errors import InputError, TorchmorError, UnknownLayerError, UnsupportedOperationError

#: A stand-in gives the module's values to so many units of rounding, or of tolerance where the solver is another.
ALLOWED = 1e3
ALLOWED_TOLERANCES = 10.0

_FIX = (
    "write self.ode = ODELayer(func, t, method=…) in the constructor and y = self.ode(y0) in the place of the solve, "
    "and reduce that layer"
)
_HIDDEN = (
    "the ODE function, or what is done with its states, depends on something else than the time, the state and the "
    "module's arguments: an input that is set from outside (name it: input_attribute='func.u'), random numbers "
    "(dropout that stays on in eval mode), or a value of an earlier call"
)


def with_ode_layer(
    network: nn.Module, name: str, batches: Any, input_attribute: str | None = None
) -> tuple[nn.Module, str]:
    """Return a network whose module of a name is an ODELayer, or has one inside, and the name of that layer.

    Law: the network returned gives what `network` gives, to rounding, on the first batch and on a part of it;
    torchdyn's adaptive solvers are reproduced to ten times their tolerances. A network that has an ODELayer there is
    returned as it is; any other one is unchanged.

    Parameters
    ----------
    network, name
        The network, and the name of one of its modules: an ODELayer, or a module that calls torchdiffeq or is
        torchdyn's NeuralODE.
    batches
        Batches of arguments of the network, of which the first is used.
    input_attribute
        Path from the module to the attribute that holds the input of its ODE function, a Tensor (batch, p) or a
        callable of t.

    Returns
    -------
    tuple
        The network, and `name`, or ``f"{name}.layer"`` where the module does more than an ODELayer.

    Raises
    ------
    UnknownLayerError
        There is no module of this name, or it solves no ODE.
    UnsupportedOperationError
        The module cannot be replaced by an ODELayer; the message says why, and what to do.
    """
    module = dict(network.named_modules(remove_duplicate=False)).get(name)
    if module is None or isinstance(module, ODELayer):
        if input_attribute is not None and module is not None:
            raise InputError(
                f"expected no input_attribute for {name!r}, which is an ODELayer, got {input_attribute!r}: write its "
                "function as f(t, y, u), and call layer(y0, u)"
            )
        find_layer(network, name)
        return network, name
    first = next(iter(batches))
    scratch = copied(network).eval()  # and stays so: an ODE function may hold its modules where `eval` does not reach
    with evaluation(scratch):
        attribute = None if input_attribute is None else (name, input_attribute)
        with watched(scratch, input_attribute=attribute) as calls:
            for part in first_parts(first):
                call_network(scratch, part)
        own = [call for call in calls if call.name == name]
        if not own:
            elsewhere = dict.fromkeys(call.name for call in calls if not isinstance(call.module, ODELayer))
            if elsewhere:
                raise UnknownLayerError(
                    f"expected the module in whose forward the ODE is solved, got {name!r}, a {type(module).__name__}: "
                    f"the modules that solve one are {', '.join(map(repr, elsewhere))}"
                )
            find_layer(network, name)  # says which ODELayers there are
        stand_in = solved_block(name, own, input_attribute)
    if isinstance(stand_in, SolvedBlock) and stand_in.source is not None:
        stand_in.__dict__["source"] = hollow(copied(module))  # that of the calibration run keeps its inputs
    replaced = copied(network, {id(module): stand_in.train(module.training)})
    _check_run(copied(replaced), first, name)
    return replaced, name if isinstance(stand_in, ODELayer) else f"{name}.layer".removeprefix(".")


def first_parts(batch: Batch) -> list[Batch]:
    """Return a batch and the first half of it: what depends on other samples than its own differs between them."""
    half = np.arange(batch.size) < batch.size // 2
    return [batch, batch.select(half)] if batch.size > 1 else [batch]


def solved_block(name: str, calls: Sequence[ModuleCall], input_attribute: str | None = None) -> nn.Module:
    """Return an ODELayer that does what a module did in some calls, or a SolvedBlock around one.

    Parameters
    ----------
    name
        Name of the module, for messages.
    calls
        Its calls.
    input_attribute
        Path of the attribute that holds the input, or None.

    Raises
    ------
    UnsupportedOperationError
        The module does more than its arguments, its states and an ODELayer can explain.
    """
    for call in calls:
        _check(name, call)
    first, solve = calls[0], calls[0].solves[0]
    func = solve.func
    form = _call_form(name, calls, input_attribute)
    source = None
    if input_attribute is not None:
        func = _attribute_function(first.module, func, input_attribute, solve.input)
        source = hollow(first.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe: the function may broadcast, and say so
        batch_dims = 2 if form.input is None and input_attribute is None and _acts_on_rows(func, solve) else 1
    form = replace(form, batch_dims=batch_dims)
    layer = ODELayer(
        func,
        form.t,
        method=solve.method,
        rtol=solve.rtol,
        atol=solve.atol,
        options=solve.options,
        adjoint=solve.adjoint and isinstance(func, nn.Module),
        output="final" if form.times_kept == -1 else "trajectory",
    )
    alone = form.plain and all(len(call.args) == 1 and not call.kwargs for call in calls)
    stand_in = layer if alone else SolvedBlock(layer, form, source)
    _verify(name, stand_in, calls)
    return stand_in


def _check(name: str, call: ModuleCall) -> None:
    """Refuse what no ODELayer does."""
    if torchdyn_layers.is_neural_ode(call.module):
        torchdyn_layers.check(call.module)
    where = f"the module {name!r}" if name else "the network itself (its forward is the innermost that solves)"
    if len(call.solves) > 1:
        raise UnsupportedOperationError(
            f"expected a module that solves one ODE in each call, got {len(call.solves)} solves in one call of "
            f"{where}: {_FIX}; it may be called many times"
        )
    solve = call.solves[0]
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
    if solve.y0.ndim < 2:
        raise UnsupportedOperationError(
            f"expected a state of shape (batch, …), got {tuple(solve.y0.shape)} in {where}: torchmor reduces ODEs that "
            "treat the samples of a batch alike; give the state a batch dimension"
        )
    if solve.y0.numel() == 0 or len(solve.t) < 2:
        raise UnsupportedOperationError(
            f"expected a solve of at least one state over at least two times, got a state of shape "
            f"{tuple(solve.y0.shape)} and {len(solve.t)} times in {where}: calibrate with other data"
        )


# -- how the module is called ---------------------------------------------------------------------------------------


def _call_form(name: str, calls: Sequence[ModuleCall], input_attribute: str | None) -> CallForm:
    """Return the arguments that are the state, the times and the input, and what is done with the states."""
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
            f"are computed inside of it: make them an argument of its forward, or {_FIX}"
        )
    times = times or ()
    constants = tuple(
        (key, arguments[0][key])
        for key in others
        if key not in times and all(same(given.get(key), arguments[0][key]) for given in arguments)
    )
    form = CallForm(names, state, tuple(solves[0].t.tolist()), times, constants=constants, zeros=zeros)
    if input_attribute is not None:
        values = [solve.input for solve in solves]
        _check_input(name, input_attribute, values, solves)
        argument = next(
            (key for key in others if all(same(given[key], u) for given, u in zip(arguments, values, strict=True))),
            None,
        )
        constants = tuple(pair for pair in constants if pair[0] != argument)
        form = replace(
            form,
            constants=constants,
            input=argument,
            input_attribute=None if argument is not None else input_attribute,
        )
    return _output_form(name, form, calls[0])


def _arguments(call: ModuleCall) -> dict[str, Any]:
    """Return the arguments of a call by their names, in their order, defaults filled in."""
    signature = inspect.signature(call.module.forward)
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}[{i}]": one for i, one in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


def _state(name, tensors, arguments, solves) -> tuple[str, int]:
    """Return the argument that is the initial state, and how many zeros are appended to it."""
    for key in tensors:
        if all(same(given[key], solve.y0) for given, solve in zip(arguments, solves, strict=True)):
            return key, 0
    for key in tensors:
        zeros = {_zeros_appended(given[key], solve.y0) for given, solve in zip(arguments, solves, strict=True)}
        if len(zeros) == 1 and None not in zeros:
            return key, zeros.pop()
    shapes = ", ".join(f"{key} {tuple(arguments[0][key].shape)}" for key in tensors)
    raise UnsupportedOperationError(
        f"expected a module whose argument is the initial state, with zeros appended at most, got {name!r}, which "
        f"computes its state {tuple(solves[0].y0.shape)} from {shapes or 'no tensors'}: move that into a module before "
        f"it, or {_FIX}"
    )


def _zeros_appended(x: Tensor, y0: Tensor) -> int | None:
    if x.ndim != y0.ndim or x.ndim < 2 or x.shape[1] >= y0.shape[1]:
        return None
    if (x.shape[0], *x.shape[2:]) != (y0.shape[0], *y0.shape[2:]):
        return None
    kept, rest = y0[:, : x.shape[1]], y0[:, x.shape[1] :]
    return rest.shape[1] if torch.equal(kept, x) and not rest.any() else None


def _times(others, arguments, solves) -> tuple[str, ...] | None:
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
        for arrangement in _arrangements(output, solve.states):
            return replace(form, **arrangement)
    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise UnsupportedOperationError(
        f"expected a module that returns the states at some of its times, with its axes in any order, got {name!r}, "
        f"which returns {got} computed from the states {tuple(solve.states.shape)}: move what it does with the states "
        f"into a module after it, or {_FIX}"
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


# -- the ODE function -----------------------------------------------------------------------------------------------


def _acts_on_rows(func: Callable, solve: SolveCall) -> bool:
    """Whether f acts on the last dimension of a state (samples, trajectories, size) alone."""
    y0 = solve.y0
    if y0.ndim != 3:
        return False
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, *y0.shape[1:], generator=generator, dtype=torch.float64).to(y0)
    arguments = call_convention(func)[0]
    t = solve.t[0].to(y0)
    try:
        values = [func(part) if arguments == 1 else func(t, part) for part in (y, y.flatten(0, 1))]
    except Exception:  # whatever the function says to a shape that it was not made for
        return False
    if values[0].shape != y.shape or values[1].shape != (y.shape[0] * y.shape[1], y.shape[2]):
        return False
    tolerance = 100 * torch.finfo(y.dtype).eps
    return bool(torch.allclose(values[0].flatten(0, 1), values[1], rtol=tolerance, atol=tolerance))


def _attribute_function(module: nn.Module, func: Callable, path: str, value: Any) -> AttributeFunction:
    parent, _, attribute = path.rpartition(".")
    owner = attrgetter(parent)(module) if parent else module
    return AttributeFunction(func, owner, attribute, isinstance(value, Tensor), call_convention(func)[0])


def _check_input(name: str, path: str, values: Sequence[Any], solves: Sequence[SolveCall]) -> None:
    for u, solve in zip(values, solves, strict=True):
        if isinstance(u, AttributeError):
            raise InputError(
                f"expected input_attribute to be the path from {name!r} to an attribute, such as 'func.u', got "
                f"{path!r}: {u}"
            )
        if isinstance(u, Tensor):
            if u.ndim != 2 or len(u) != len(solve.y0):
                raise InputError(
                    f"expected the input {path!r} to be a Tensor (batch, p) with batch = {len(solve.y0)}, or a "
                    f"callable of t, got shape {tuple(u.shape)}"
                )
        elif not callable(u):
            raise InputError(
                f"expected the input {path!r} to be a Tensor (batch, p) or a callable of t, got {type(u).__name__}"
            )


# -- what must be the same ------------------------------------------------------------------------------------------


def _verify(name: str, stand_in: nn.Module, calls: Sequence[ModuleCall]) -> None:
    """Check that the stand-in gives what the module gave."""
    with evaluation(stand_in):
        for call in calls:
            if isinstance(stand_in, SolvedBlock) and stand_in.form.input_attribute is not None:
                parent, _, attribute = stand_in.form.input_attribute.rpartition(".")
                owner = attrgetter(parent)(stand_in.source) if parent else stand_in.source
                setattr(owner, attribute, call.solves[0].input)
            try:
                output = stand_in(*call.args, **call.kwargs)
            except TorchmorError:
                raise
            except Exception as error:  # the function may fail in any way where it reads what is not there
                raise UnsupportedOperationError(
                    f"the solve of {name!r} fails when it is repeated outside of it ({type(error).__name__}: {error}): "
                    f"{_HIDDEN}"
                ) from error
            expected, solve = call.output, call.solves[0]
            if isinstance(expected, tuple):
                expected, output = expected[-1], output[-1]
            _equal(name, output, expected, solve)


def _equal(name: str, output: Tensor, expected: Tensor, solve: SolveCall) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    allowed = ALLOWED * torch.finfo(expected.dtype).eps * max(scale, 1e-30)
    if not solve.exact:  # its coefficients are float32, and its steps its own
        allowed = max(allowed, ALLOWED * torch.finfo(torch.float32).eps * scale)
        if solve.method == "dopri5":
            allowed = max(allowed, ALLOWED_TOLERANCES * (solve.atol + solve.rtol * scale))
    same_shape = isinstance(output, Tensor) and output.shape == expected.shape
    error = float((output - expected).abs().max()) if same_shape and expected.numel() else 0.0
    if not same_shape or not error <= allowed:
        how = (
            f"by up to {error:.1e}, with values up to {scale:.1e} (allowed: {allowed:.1e})"
            if same_shape
            else "in shape"
        )
        raise UnsupportedOperationError(
            f"the solve of {name!r}, repeated outside of it on the same arguments, differs {how}: {_HIDDEN}"
        )


def _check_run(replaced: nn.Module, batch: Batch, name: str) -> None:
    """Check that the network runs with a stand-in."""
    try:
        with evaluation(replaced):
            call_network(replaced, batch)
    except AttributeError as error:
        raise UnsupportedOperationError(
            f"the network uses an attribute of {name!r} that an ODELayer in its place does not have ({error}): pass "
            "what it needs as an argument, or name the input of the ODE function with input_attribute"
        ) from error


def copied(network: nn.Module, placed: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of a network, with other modules in some places; tensors that keep a graph lose it."""
    kept = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(network, kept | (placed or {}))
