"""pyMOR operators and models as torch modules."""

from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import Any

import numpy as np
import torch
from pymor.algorithms.timestepping import (
    ExplicitEulerTimeStepper,
    ImplicitEulerTimeStepper,
    ImplicitMidpointTimeStepper,
)
from pymor.models.basic import InstationaryModel
from pymor.operators.constructions import IdentityOperator
from pymor.operators.interface import Operator
from pymor.parameters.base import Mu
from pymor.vectorarrays.numpy import NumpyVectorSpace
from torch import nn

from torchmor.adapters.layers.arrays import to_tensor
from torchmor.adapters.layers.recurrences import LinearRecurrence, NonlinearRecurrence, Recurrence
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.models.conversion import MAX_ENTRIES, chain_to_module
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.engine.affine import AffineMap, dense
from torchmor.engine.chain_algebra import compose, constant_chain, left_divide, linear_chain, linear_combination, trim
from torchmor.engine.errors import ParameterError, SizeError, UnsupportedOperationError
from torchmor.engine.operator_trees import fold_operator, model_parameter_values
from torchmor.engine.operators import InitialStateOperator
from torchmor.engine.stages import StageChain
from torchmor.engine.time_steppers import LayerTimeStepper, RungeKuttaTimeStepper

#: pyMOR's steppers that are recurrences, by their implicit part θ:
#: (M + θ dt A) z_{k+1} = (M − (1 − θ) dt A) z_k + dt F.
_IMPLICIT_PART = {
    ExplicitEulerTimeStepper: 0.0,
    ImplicitEulerTimeStepper: 1.0,
    ImplicitMidpointTimeStepper: 0.5,
}


def to_module(
    rom_or_operator: Operator | InstationaryModel,
    mu: Any = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Return a pyMOR operator or model as a torch module, whose matrices are parameters.

    An operator becomes a :class:`~torchmor.adapters.layers.chain_module.ChainModule` (y, u, t) ↦ f(t, y, u) on rows
    y (batch, n). Its parameters 't' and 'input' are the arguments t and u, unless `mu` has them.
    Law: ``to_module(op, mu)(y) == op.apply(Y, mu)``, where the rows of y are the vectors of Y.

    A model with a time stepper of torchmor becomes a :class:`~torchmor.adapters.ReducedODELayer`
    y0, u ↦ trajectory. Law: ``to_module(model)(y0, u) == model.output({"initial_state": y0}, input=u)``, or the
    solution from y0 where the model has no parameter 'initial_state'.

    A model with an Euler or the implicit midpoint stepper of pyMOR becomes a recurrence, a module of
    :mod:`torchmor.adapters.layers.recurrences`: linear, or nonlinear with the explicit stepper. Its right-hand side may
    depend on time. Law: ``to_module(model, mu)() == model.solve(mu)``, as (number of values, 1, n); outputs are
    not part of it.

    Parameters
    ----------
    rom_or_operator
        The operator or model.
    mu
        Values of its parameters, in any form that pyMOR parses.
    dtype, device
        Of the module.

    Raises
    ------
    UnsupportedOperationError
        An operator, model or time stepper is not known, or an operator depends on time in a way that is not.
    ParameterError
        Values of parameters are missing, or do not fit.
    SizeError
        A matrix is too large to be dense: reduce the model first.
    """
    if isinstance(rom_or_operator, Operator):
        return chain_to_module(fold_operator(rom_or_operator, mu), dtype, device)
    if not isinstance(rom_or_operator, InstationaryModel):
        raise UnsupportedOperationError(
            f"expected a pyMOR Operator or InstationaryModel, got a {type(rom_or_operator).__name__}: pass one of "
            f"its operators"
        )
    if isinstance(rom_or_operator.time_stepper, LayerTimeStepper):
        return layer_of_model(rom_or_operator, mu, dtype, device)
    return _recurrence_of_model(rom_or_operator, mu, dtype, device)


def layer_of_model(
    model: InstationaryModel,
    mu: Any = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> ReducedODELayer:
    """Return the layer y0, u ↦ trajectory of a model ``M z' + A(z) = F`` with a time stepper of torchmor.

    Law: ``layer(y0, u)`` is ``model.output({"initial_state": y0}, input=u)`` for models with the parameter
    'initial_state' (full, and reduced by torchmor or pyMOR), and ``model.solve(input=u)`` from the initial state y0
    for all others.

    Parameters
    ----------
    model
        The model.
    mu
        Values of its parameters; 'initial_state', 'input' and 't' may be left out.
    dtype, device
        Of the layer.

    Raises
    ------
    UnsupportedOperationError
        An operator of the model is not known, or the output is not an affine map to the initial state's size.
    ParameterError
        Values of parameters are missing, or do not fit.
    """
    mu = model_parameter_values(model, mu, free=("initial_state", "input", "t"))
    chain = _right_hand_side(model, mu)
    encode, decode = _encode_and_decode(model, mu)
    shape = (chain.state_size if encode is None else encode.sizes[0],)
    input_use = "required" if chain.reads("u") else "none"
    return reduced_layer(_settings(model), shape, chain, encode, decode, input_use, dtype, device)


def reduced_layer(
    settings: SolveSettings,
    state_shape: Sequence[int],
    chain: StageChain,
    encode: AffineMap | None,
    decode: AffineMap | None,
    input_use: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> ReducedODELayer:
    """Return the layer of a reduced chain, between projection and lifting; these are None where the state is kept."""
    state_dim = None if encode is None else encode.size
    layer = ReducedODELayer(settings, state_shape, chain_to_module(chain, dtype, device), state_dim, input_use)
    with torch.no_grad():
        for linear, affine in ((layer.encode, encode), (layer.decode, decode)):
            if affine is not None and isinstance(linear, nn.Linear):
                linear.weight.copy_(to_tensor(dense(affine.blocks()["y"]), dtype, device))
                linear.bias.copy_(to_tensor(affine.shift, dtype, device))
    return layer


def _right_hand_side(model: InstationaryModel, mu: Mu) -> StageChain:
    """Return M⁻¹ (F − A)."""
    one = constant_chain(np.ones(1), model.operator.source.dim)
    force = compose(fold_operator(model.rhs, mu), one)
    chain = linear_combination([fold_operator(model.operator, mu), force], [-1.0, 1.0])
    if not isinstance(model.mass, IdentityOperator):
        chain = left_divide(fold_operator(model.mass, mu), chain)
    return trim(chain)


def _settings(model: InstationaryModel) -> SolveSettings:
    stepper = model.time_stepper
    if not isinstance(stepper, RungeKuttaTimeStepper):
        return stepper.settings
    options = {} if stepper.step_size is None else {"step_size": stepper.step_size}
    options |= {} if stepper.interp == "linear" else {"interp": stepper.interp}
    return SolveSettings(
        stepper.times,
        stepper.method,
        options=options,
        output="trajectory",
        input_times=getattr(model, "input_times", None),
        interpolation=getattr(model, "interpolation", "linear"),
    )


def _encode_and_decode(model: InstationaryModel, mu: Mu) -> tuple[AffineMap, AffineMap] | tuple[None, None]:
    """Return the maps from the initial state and to the output; (None, None) where its state is the layer's."""
    data, output = model.initial_data, model.output_functional
    if "initial_state" not in data.parameters:
        return None, None
    if not isinstance(data, InitialStateOperator):
        raise UnsupportedOperationError(
            f"expected initial data that are a projection of 'initial_state', got a {type(data).__name__}: "
            "reduce without initial_data_product, or use to_module(model.operator)"
        )
    if data.encode is None and isinstance(output, IdentityOperator):
        return None, None
    decode = fold_operator(output, mu)
    if decode.stages or decode.output.sources != ("y",) or decode.output.size != data.dim:
        raise UnsupportedOperationError(
            f"expected the lifted state, of size {data.dim}, as output of the model, got {output.name} of size "
            f"{output.range.dim}: use model.with_(output_functional=…), or to_module(model.operator)"
        )
    return data.encoding, decode.output


def _recurrence_of_model(
    model: InstationaryModel, mu: Any, dtype: torch.dtype, device: torch.device | str
) -> Recurrence:
    """Return the recurrence of a model M z' + A(z) = F(t) with one of pyMOR's steppers."""
    stepper, size = model.time_stepper, model.operator.source.dim
    if type(stepper) not in _IMPLICIT_PART:
        raise UnsupportedOperationError(
            f"expected a time stepper among {', '.join(c.__name__ for c in _IMPLICIT_PART)}, or one of "
            f"torchmor, got {type(stepper).__name__}: use model.with_(time_stepper=…)"
        )
    if size**2 > MAX_ENTRIES:
        raise SizeError(f"expected a reduced model, got one with {size} unknowns: reduce it first")
    mu = model_parameter_values(model, mu)
    chain = _operator_chain(model, mu)
    mass = np.eye(size) if isinstance(model.mass, IdentityOperator) else _matrix(fold_operator(model.mass))
    linear = not (chain.stages or chain.reads("t"))
    theta, step = _IMPLICIT_PART[type(stepper)], model.T / stepper.nt
    if linear:
        matrix, shift = _matrix(chain), -chain.output.shift
        left = mass + theta * step * matrix
    elif theta == 0:
        left, shift = mass, np.zeros(size)
    else:
        raise UnsupportedOperationError(
            f"expected a linear operator that does not depend on time, got a nonlinear or time-dependent one, "
            f"for which {type(stepper).__name__} solves other equations in each step: use "
            f"model.with_(time_stepper=ExplicitEulerTimeStepper(nt)), or torchmor's RungeKuttaTimeStepper"
        )
    # summed up as pyMOR does it; its explicit Euler method, too, evaluates at the end of a step
    times = [0.0, *accumulate(repeat(step, stepper.nt))]
    nodes = [t + step / 2 for t in times[:-1]] if theta == 0.5 else times[1:]
    shifts = step * np.linalg.solve(left, _right_hand_sides(model, mu, nodes) + shift[:, np.newaxis])
    layout = (times, size, shifts.shape[1], _returned(model), dtype, device)
    initial_state = model.initial_data.as_range_array(mu).to_numpy()[:, 0]
    values = {"shift": shifts.T, "initial_state": initial_state}
    if linear:
        module: Recurrence = LinearRecurrence(*layout)
        values["step_matrix"] = np.linalg.solve(left, mass - (1 - theta) * step * matrix)
    else:
        increment = left_divide(linear_chain(mass), linear_combination([chain], [-step]))
        module = NonlinearRecurrence(chain_to_module(increment, dtype, device), *layout)
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(to_tensor(value, dtype, device))
    return module


def _operator_chain(model: InstationaryModel, mu: Mu) -> StageChain:
    """Return the chain of a model's operator; it may read the time, but nothing else that changes in time."""
    parameters = model.operator.parameters
    if mu.time_dependent_values.keys() & parameters.keys():
        raise UnsupportedOperationError(
            f"expected numbers for the parameters {parameters} of the model's operator, got functions of "
            f"time for {sorted(mu.time_dependent_values)}: only the right-hand side may depend on these"
        )
    try:
        return fold_operator(model.operator, mu)
    except ParameterError as error:
        raise UnsupportedOperationError(
            f"expected an operator that depends on time in OdeFunctionOperators only, got "
            f"'{model.operator.name}' with time-dependent coefficients: write them into a stage chain"
        ) from error


def _right_hand_sides(model: InstationaryModel, mu: Mu, times: list[float]) -> np.ndarray:
    """Return F(t) at the given times, (n, number of times), or (n, 1) where F does not depend on time."""
    rhs = model.rhs
    if "t" in rhs.parameters or mu.time_dependent_values.keys() & rhs.parameters.keys():
        return np.hstack([rhs.as_vector(mu.at_time(t)).to_numpy() for t in times])
    return rhs.as_vector(mu).to_numpy()


def _returned(model: InstationaryModel) -> list[int] | None:
    """Return the numbers of the steps after which the model returns a value; None for all."""
    if model.num_values is None:
        return None
    # the stepper itself knows, here with z' + z = 0
    space, step = NumpyVectorSpace(1), model.T / model.time_stepper.nt
    values = model.time_stepper.iterate(0, model.T, space.zeros(), IdentityOperator(space), num_values=model.num_values)
    return [round(t / step) for _, t in values]


def _matrix(chain: StageChain) -> np.ndarray:
    return dense(chain.output.blocks().get("y", np.zeros((chain.output.size, chain.state_size))))
