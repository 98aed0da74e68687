"""pyMOR operators and models as torch modules."""

from __future__ import annotations

from itertools import accumulate, repeat

import numpy as np
import scipy.sparse as sps
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

from torchmor.adapters.arrays import to_tensor
from torchmor.adapters.conversion import MAX_ENTRIES, chain_to_module
from torchmor.adapters.linear_recurrence import LinearRecurrence, NonlinearRecurrence, Recurrence
from torchmor.engine.chain_algebra import left_divide, linear_chain, linear_combination
from torchmor.engine.errors import ParameterError, SizeError, UnsupportedOperationError
from torchmor.engine.folding import fold_operator, parameter_values
from torchmor.engine.stages import StageChain
from torchmor.engine.time_steppers import LayerTimeStepper

#: pyMOR's time steppers that fold into a recurrence, with their implicit part θ: (M + θ dt A) z_{k+1} = ….
_IMPLICIT_PART = {ExplicitEulerTimeStepper: 0.0, ImplicitEulerTimeStepper: 1.0, ImplicitMidpointTimeStepper: 0.5}


def to_module(
    rom_or_operator: Operator | InstationaryModel,
    mu=None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Return a pyMOR operator or model as a torch module whose operators are parameters.

    * An operator becomes a module (y, u, t) ↦ f(t, y, u) on rows y (batch, n). Its 't' and 'input' parameters are the
      arguments t and u, unless `mu` fixes them. Law: ``to_module(op)(y) == op.apply(Y)``, y the rows of Y's columns.
    * A model of an ODE layer becomes a layer y0, u ↦ trajectory.
    * Any other pyMOR InstationaryModel with an Euler or implicit midpoint time stepper becomes a
      :class:`~torchmor.adapters.linear_recurrence.LinearRecurrence` or, where it is nonlinear and explicit, a
      :class:`~torchmor.adapters.linear_recurrence.NonlinearRecurrence`. Law: ``to_module(model, mu)()`` is
      ``model.solve(mu)`` with shape (number of values, 1, n). Time dependence of the right-hand side is kept.

    Parameters
    ----------
    rom_or_operator
        The operator, or the model; its outputs and products are not part of the module.
    mu
        Values of its parameters, in any form that pyMOR parses.
    dtype, device
        Of the module.

    Raises
    ------
    UnsupportedOperationError
        An operator, model or time stepper is not known, or the linear operator of a model depends on time.
    ParameterError
        Values of parameters are missing.
    SizeError
        A matrix is too large to be dense: reduce the model first.
    """
    if isinstance(rom_or_operator, Operator):
        return chain_to_module(fold_operator(rom_or_operator, mu), dtype, device)
    if not isinstance(rom_or_operator, InstationaryModel):
        raise UnsupportedOperationError(
            f"expected a pyMOR Operator or InstationaryModel, got a {type(rom_or_operator).__name__}: pass one of its "
            f"operators"
        )
    if isinstance(rom_or_operator.time_stepper, LayerTimeStepper):
        return _layer_of_model(rom_or_operator, mu, dtype, device)
    return _recurrence_of_model(rom_or_operator, mu, dtype, device)


def _layer_of_model(model, mu, dtype, device):
    """Return the layer of a model that steps on the times of an ODE layer."""
    raise NotImplementedError


def _recurrence_of_model(model, mu, dtype, device) -> Recurrence:
    """Return the recurrence of a model M z' + A(z) = F(t) with one of pyMOR's steppers."""
    stepper, size = model.time_stepper, model.operator.source.dim
    if type(stepper) not in _IMPLICIT_PART:
        raise UnsupportedOperationError(
            f"expected a time stepper among {', '.join(c.__name__ for c in _IMPLICIT_PART)}, or one of torchmor, got "
            f"{type(stepper).__name__}: use model.with_(time_stepper=…)"
        )
    if size**2 > MAX_ENTRIES:
        raise SizeError(f"expected a reduced model, got one with {size} unknowns: reduce it first")
    mu = parameter_values(model, mu)
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
            f"expected a linear operator that does not depend on time, got a nonlinear or time-dependent one, for "
            f"which {type(stepper).__name__} solves other equations in each step: use "
            f"model.with_(time_stepper=ExplicitEulerTimeStepper(nt)), or torchmor's RungeKuttaTimeStepper"
        )
    # summed up as pyMOR does it; its explicit Euler method, too, evaluates at the end of a step
    times = [0.0, *accumulate(repeat(step, stepper.nt))]
    nodes = [t + step / 2 for t in times[:-1]] if theta == 0.5 else times[1:]
    shifts = step * np.linalg.solve(left, _right_hand_sides(model, mu, nodes) + shift[:, np.newaxis])
    layout = (times, size, shifts.shape[1], _returned(model), dtype, device)
    values = {"shift": shifts.T, "initial_state": model.initial_data.as_range_array(mu).to_numpy()[:, 0]}
    if linear:
        module = LinearRecurrence(*layout)
        values["step_matrix"] = np.linalg.solve(left, mass - (1 - theta) * step * matrix)
    else:
        increment = left_divide(linear_chain(mass), linear_combination([chain], [-step]))
        module = NonlinearRecurrence(chain_to_module(increment, dtype, device), *layout)
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(to_tensor(value, dtype, device))
    return module


def _operator_chain(model, mu: Mu) -> StageChain:
    """Return the chain of a model's operator; it may read the time, but nothing else that changes with time."""
    parameters = model.operator.parameters
    if mu.time_dependent_values.keys() & parameters.keys():
        raise UnsupportedOperationError(
            f"expected numbers for the parameters {parameters} of the model's operator, got functions of time for "
            f"{sorted(mu.time_dependent_values)}: only the right-hand side may depend on these"
        )
    try:
        return fold_operator(model.operator, Mu({k: mu[k] for k in parameters if k in mu}))
    except ParameterError as error:
        raise UnsupportedOperationError(
            f"expected an operator that depends on time in OdeFunctionOperators only, got '{model.operator.name}' with "
            f"time-dependent coefficients: write them as the time of a stage chain"
        ) from error


def _right_hand_sides(model, mu: Mu, times: list[float]) -> np.ndarray:
    """Return F(t) at the given times, (n, number of times), or (n, 1) where F does not depend on time."""
    rhs = model.rhs
    if "t" in rhs.parameters or mu.time_dependent_values.keys() & rhs.parameters.keys():
        return np.hstack([rhs.as_vector(mu.at_time(t)).to_numpy() for t in times])
    return rhs.as_vector(mu).to_numpy()


def _returned(model) -> list[int] | None:
    """Return the numbers of the steps after which the model returns a value; None for all."""
    if model.num_values is None:
        return None
    # the stepper itself knows, here with z' + z = 0
    space, step = NumpyVectorSpace(1), model.T / model.time_stepper.nt
    values = model.time_stepper.iterate(
        0, model.T, space.zeros(), IdentityOperator(space), num_values=model.num_values
    )
    return [round(t / step) for _, t in values]


def _matrix(chain: StageChain) -> np.ndarray:
    block = chain.output.blocks().get("y", np.zeros((chain.output.size, chain.state_size)))
    return block.toarray() if sps.issparse(block) else block
