"""ODELayers in the place of modules that solve an ODE themselves, with torchdiffeq or torchdyn."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer, call_convention
from torchmor.adapters.layers.own_forward import PlacedFunction, SolveForm, with_own_forward
from torchmor.adapters.layers.placing import copied, find_layer
from torchmor.adapters.layers.solved_block import AttributeFunction, SolvedBlock, source_of
from torchmor.adapters.networks import torchdyn_layers
from torchmor.adapters.networks.call_forms import ADVICE, call_form
from torchmor.adapters.networks.equivalence import Run, check_block, check_runs
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.networks.refusals import check_call, check_single, where_it_is
from torchmor.adapters.networks.solve_calls import ModuleCall, SolveCall, watched
from torchmor.adapters.networks.solve_inputs import read_numbers, solve_inputs, value_of
from torchmor.adapters.networks.variants import Variant, variants
from torchmor.adapters.solving.torch_private import tree_leaves, tree_map_only
from torchmor.engine.errors import (
    FrozenArgumentWarning,
    InputError,
    UnknownLayerError,
    UnsupportedOperationError,
)
from torchmor.engine.tableaux import OWN_METHODS


def with_ode_layer(
    network: nn.Module, name: str, batches: Any, input_attribute: str | None = None
) -> tuple[nn.Module, str]:
    """Return a network whose module of a name is an ODELayer, or has one inside, and the name of that layer.

    Law: the network returned gives what `network` gives, to rounding, on some batches of the data, on parts, and with
    each argument varied alone; torchdyn's adaptive solvers are reproduced to ten times their tolerances. A network that
    has an ODELayer there is returned as it is; any other one is unchanged.

    Where the module is told by its arguments and its states, an ODELayer, or a block around it, takes its place. Else
    the module goes on to run its own forward, in which the layer answers the solves.

    Parameters
    ----------
    network, name
        The network, and the name of one of its modules: an ODELayer, or a module that calls torchdiffeq or is
        torchdyn's NeuralODE.
    batches
        Batches of arguments of the network, of which a few are used.
    input_attribute
        Path from the module to the attribute that holds the input of its ODE function, a Tensor (batch, …) or a
        callable of t. Tensors are found without it, wherever the function reads them.

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
    chosen = variants(batches)
    scratch = copied(network).eval()  # and stays so: an ODE function may hold its modules where `eval` does not reach
    target = dict(scratch.named_modules(remove_duplicate=False))[name]
    first_name = next(key for key, one in scratch.named_modules() if one is target)  # a shared module has several
    with evaluation(scratch):
        attribute = None if input_attribute is None else (first_name, input_attribute)
        runs = run_variants(scratch, chosen, attribute)
        if not any(call.module is target for run in runs for call in run.calls):
            _refuse_other_module(network, name, module, runs)
        try:
            return replaced(network, name, target, runs, input_attribute)
        except UnsupportedOperationError:
            of_data = [run.variant for run in runs if run.variant.argument is None]
            if len(of_data) == len(runs):
                raise
            # an argument that varies here alone may decide something that has no place: then it is frozen, or refused
            frozen = []
            for run in runs:
                if run.variant.argument is not None:
                    again = run_variants(scratch, [*of_data, run.variant], attribute)
                    try:
                        replaced(network, name, target, again, input_attribute)
                    except UnsupportedOperationError:
                        frozen.append(run.variant.argument)
            found = replaced(network, name, target, run_variants(scratch, of_data, attribute), input_attribute)
        _warn_of_frozen(network, name, frozen)
        return found


def replaced(
    network: nn.Module, name: str, target: nn.Module, runs: Sequence[Run], input_attribute: str | None = None
) -> tuple[nn.Module, str]:
    """Return the network with what does the same as its module in some runs, and the name of its ODELayer.

    Parameters
    ----------
    network, name
        The network, and the name of the module.
    target
        The module that ran, of the network or its copy.
    runs
        What the network did.
    input_attribute
        As of :func:`with_ode_layer`.

    Raises
    ------
    UnsupportedOperationError
        Nothing does.
    """
    own = [call for run in runs for call in run.calls if call.module is target]
    for call in own:
        check_call(name, call)
    try:
        return _with_block(network, name, own, runs, input_attribute)
    except UnsupportedOperationError:
        if torchdyn_layers.is_neural_ode(target):
            raise
        return _with_own_forward(network, name, own, runs)


def _with_block(
    network: nn.Module, name: str, own: Sequence[ModuleCall], runs: Sequence[Run], input_attribute: str | None
) -> tuple[nn.Module, str]:
    """Return the network with an ODELayer, or a block around it, in the place of the module."""
    module = dict(network.named_modules(remove_duplicate=False))[name]
    block = solved_block(name, own, input_attribute)
    alone = block.form.plain and all(len(call.args) == 1 and not call.kwargs for call in own)
    for attributes_used in (False, True):
        stand_in = block.layer if alone and not attributes_used else _with_source(block, module, attributes_used)
        whole = copied(network, {id(module): stand_in.train(module.training)})
        try:
            check_runs(copied(whole), runs, name, own[0].solves[0].exact)
            break
        except AttributeError:  # the network uses more of the module than its forward: keep a copy of it
            if attributes_used:
                raise
    return whole, name if stand_in is block.layer else f"{name}.layer".removeprefix(".")


def _with_own_forward(
    network: nn.Module, name: str, own: Sequence[ModuleCall], runs: Sequence[Run]
) -> tuple[nn.Module, str]:
    """Return the network with an ODELayer inside of the module, which answers the solves of its forward."""
    layer, form = own_forward(name, own)
    found = _placed(network, name, layer, form)
    check_runs(copied(found), runs, name, True, own)
    dropped = _of_function(own[0])
    if dropped:
        smaller = _placed(network, name, layer, replace(form, dropped=dropped))
        try:
            check_runs(copied(smaller), runs, name, True, own)
            found = smaller
        except Exception:  # they are used elsewhere, too, in whatever way
            pass
    return found, f"{name}.{form.layer}".removeprefix(".")


def _placed(network: nn.Module, name: str, layer: nn.Module, form: SolveForm) -> nn.Module:
    found = copied(network)
    module = dict(found.named_modules(remove_duplicate=False))[name]
    with_own_forward(module, layer.train(module.training), form)
    return found


def _of_function(call: ModuleCall) -> tuple[str, ...]:
    """Return the parameters of a module that its ODE function computes with, or holds."""
    solve, named = call.solves[0], dict(call.module.named_parameters(remove_duplicate=False))
    flags = {key: one.requires_grad for key, one in named.items()}
    grads: tuple[Tensor | None, ...]
    try:
        for one in named.values():
            one.requires_grad_(one.is_floating_point())
        with torch.enable_grad():
            value = value_of(solve)
            grads = torch.autograd.grad(value.sum(), list(named.values()), allow_unused=True) if named else ()
    except RuntimeError:  # it is computed without gradients
        grads = (None,) * len(named)
    finally:
        for key, one in named.items():
            one.requires_grad_(flags[key])
    owner = solve.func if isinstance(solve.func, nn.Module) else getattr(solve.func, "__self__", None)
    held = {id(one) for one in owner.parameters()} if isinstance(owner, nn.Module) and owner is not call.module else ()
    pairs = zip(named.items(), grads, strict=True)
    return tuple(key for (key, one), grad in pairs if grad is not None or id(one) in held)


def run_variants(network: nn.Module, chosen: Sequence[Variant], attribute: tuple[str, str] | None = None) -> list[Run]:
    """Run a network on some calls, and watch its solves; calls that it need not take, and does not, are left out."""
    runs: list[Run] = []
    for variant in chosen:
        if variant.argument is not None and any(run.variant.argument == variant.argument for run in runs):
            continue
        with watched(network, input_attribute=attribute) as calls:
            torch.manual_seed(0)  # within this context, as in all runs
            try:
                output = call_network(network, variant.batch)
            except Exception:  # whatever the network says to values, or to a number of samples, that are ours
                if variant.must:
                    raise
                continue
        finite = all(one.isfinite().all() for one in tree_leaves(output) if isinstance(one, Tensor))
        if variant.must or finite:
            runs.append(Run(variant, tree_map_only(Tensor, torch.clone, output), list(calls)))
    return runs


def _refuse_other_module(network: nn.Module, name: str, module: nn.Module, runs: Sequence[Run]) -> NoReturn:
    calls = [call for run in runs for call in run.calls]
    elsewhere = dict.fromkeys(call.name for call in calls if not isinstance(call.module, ODELayer))
    if elsewhere:
        raise UnknownLayerError(
            f"expected the module in whose forward the ODE is solved, got {name!r}, a {type(module).__name__}: "
            f"the modules that solve one are {', '.join(map(repr, elsewhere))}"
        )
    find_layer(network, name)  # says which ODELayers there are
    raise UnknownLayerError(f"expected a module that solves an ODE on the calibration data, got {name!r}")


def solved_block(name: str, calls: Sequence[ModuleCall], input_attribute: str | None = None) -> SolvedBlock:
    """Return a block around an ODELayer that does what a module did in some calls.

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
        check_call(name, call)
        check_single(name, call)
    first, solve = calls[0], calls[0].solves[0]
    func = solve.func
    inputs = () if input_attribute is not None else solve_inputs(name, [call.solves[0] for call in calls])
    if len(inputs) > 1 or not all(one.batched for one in inputs):
        raise UnsupportedOperationError(f"the ODE function of {name!r} has several inputs, or one without a batch")
    form = call_form(
        name, calls, input_attribute, [call.solves[0].values[one.place] for call in calls for one in inputs]
    )
    if input_attribute is not None:
        func = _attribute_function(first.module, func, input_attribute, solve.input)
    elif inputs:
        func = PlacedFunction(func, inputs, call_convention(func)[0], calls[0].solves[0].functions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe: the function may broadcast, and say so
        batch_dims = 2 if form.input is None and input_attribute is None and _acts_on_rows(func, solve) else 1
    form = replace(form, batch_dims=batch_dims)
    layer = _layer(func, solve, form.t, "final" if form.times_kept == -1 else "trajectory")
    block = SolvedBlock(layer, form, source_of(first.module, form))
    check_block(name, block, calls)
    return block


def _with_source(block: SolvedBlock, module: nn.Module, attributes_used: bool) -> SolvedBlock:
    """Return a block with what its form needs of the module, as it was before the calibration run."""
    form = replace(block.form, attributes_used=attributes_used)
    return SolvedBlock(block.layer, form, source_of(copied(module), form))


def own_forward(name: str, calls: Sequence[ModuleCall]) -> tuple[ODELayer, SolveForm]:
    """Return an ODELayer that can answer the solves of a module's own forward, and which these are.

    Parameters
    ----------
    name
        Name of the module, for messages.
    calls
        Its calls.

    Raises
    ------
    UnsupportedOperationError
        They are solves of several ODEs, or of one that is no f(t, y, u).
    """
    module, solves = calls[0].module, [solve for call in calls for solve in call.solves]
    where, solve = where_it_is(name), solves[0]
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedOperationError(
            f"expected a module of Python in whose forward the ODE is solved, got a scripted one as {name!r}: reduce "
            "the network before torch.jit.script"
        )
    for what, found in (
        ("one ODE function", {one.identity: None for one in solves}),
        ("one solver with the same settings", {one.settings: None for one in solves}),
        ("a state of one number of dimensions", {f"{one.y0.ndim}": None for one in solves}),
    ):
        if len(found) > 1:
            raise UnsupportedOperationError(
                f"expected solves of {what} in {where}, got {' and '.join(found)}: {ADVICE}"
            )
    if solve.y0.ndim == 0 or solve.func is module:
        raise UnsupportedOperationError(
            f"expected a state of at least one dimension, and an ODE function other than the module that solves, got "
            f"{tuple(solve.y0.shape)} and {type(solve.func).__name__} in {where}: {ADVICE}"
        )
    inputs = solve_inputs(name, solves)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe: the function may broadcast, and say so
        batch_dims = 2 if not inputs and _acts_on_rows(solve.func, solve) else min(solve.y0.ndim - 1, 1)
        numbers = read_numbers(solve, inputs)
    func: Any = solve.func
    if inputs:
        func = PlacedFunction(func, inputs, call_convention(func)[0], solve.functions)
    layer = _layer(func, solve, tuple(solve.t.tolist()), "trajectory")
    free = (one for one in ("layer", "ode_layer", "reduced_ode_layer") if not hasattr(module, one))
    form = SolveForm(next(free, "torchmor_layer"), solve.identity, solve.settings, inputs, numbers, batch_dims)
    return layer, form


def _layer(func: Callable[..., Any], solve: SolveCall, t: tuple[float, ...], output: str) -> ODELayer:
    """Return the ODE layer that solves as was seen."""
    adjoint = solve.adjoint and isinstance(func, nn.Module) and solve.method not in OWN_METHODS
    return ODELayer(func, t, solve.method, solve.rtol, solve.atol, solve.options, adjoint, output)


# -- the ODE function -----------------------------------------------------------------------------------------------


def _acts_on_rows(func: Callable[..., Any], solve: SolveCall) -> bool:
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


def _attribute_function(module: nn.Module, func: Callable[..., Any], path: str, value: Any) -> AttributeFunction:
    parent, _, attribute = path.rpartition(".")
    owner = attrgetter(parent)(module) if parent else module
    return AttributeFunction(func, owner, attribute, isinstance(value, Tensor), call_convention(func)[0])


def _warn_of_frozen(network: nn.Module, name: str, positions: Sequence[int]) -> None:
    names = list(inspect.signature(network.forward).parameters)
    shown = ", ".join(repr(names[i]) if i < len(names) else f"number {i}" for i in positions)
    warnings.warn(
        f"the network's argument {shown} decides about the ODE that {name!r} solves, in a way that cannot be passed "
        "on, but does not vary on the calibration data: it is frozen at its value there, and others give wrong "
        f"outputs. If it is to vary: {ADVICE}",
        FrozenArgumentWarning,
        stacklevel=4,
    )
