"""pyMOR models on the time grid of an ODE layer, as layers again."""

import torch
from pymor.models.basic import InstationaryModel
from pymor.operators.constructions import IdentityOperator, ZeroOperator
from torch import nn

from torchmor.adapters.arrays import to_tensor
from torchmor.adapters.conversion import chain_to_module
from torchmor.adapters.reduced_layer import ReducedODELayer
from torchmor.adapters.solve_request import SolveSettings
from torchmor.engine.affine import AffineMap
from torchmor.engine.chain_algebra import constant_chain, left_divide, linear_combination
from torchmor.engine.errors import UnsupportedOperationError
from torchmor.engine.folding import fold_operator
from torchmor.engine.operators import InitialStateOperator
from torchmor.engine.stages import StageChain
from torchmor.engine.time_steppers import RungeKuttaTimeStepper


def layer_of_model(model: InstationaryModel, mu=None, dtype=torch.float64, device="cpu") -> ReducedODELayer:
    """Return the layer y0, u ↦ trajectory of a model ``M z' + A(z) = F`` with a time stepper of torchmor.

    Law: ``layer(y0)`` is ``model.output({"initial_state": y0})`` for models with the parameter 'initial_state' (full,
    and reduced by torchmor or pyMOR), and ``model.solve()`` from the initial state y0 for all others.

    Parameters
    ----------
    model
        The model.
    mu
        Values of its parameters, without 'initial_state' and 'input'.
    dtype, device
        Of the layer.

    Raises
    ------
    UnsupportedOperationError
        An operator of the model cannot be folded, or the right-hand side depends on time.
    """
    chain = linear_combination([fold_operator(model.operator, mu)], [-1.0])
    if not isinstance(model.rhs, ZeroOperator):
        if "t" in model.rhs.parameters or "input" in model.rhs.parameters:
            raise UnsupportedOperationError(
                "expected a right-hand side that does not depend on time or input, got one that does: make it a part "
                "of the operator, as the time or the input of a stage chain"
            )
        force = model.rhs.as_vector(model.rhs.parameters.parse(mu) if mu else None).to_numpy()[:, 0]
        chain = linear_combination([chain, constant_chain(force, chain.state_size)], [1.0, 1.0])
    if not isinstance(model.mass, IdentityOperator):
        chain = left_divide(fold_operator(model.mass, mu), chain)
    encode = decode = None
    if "initial_state" in model.initial_data.parameters:
        encode, decode = _encoding(model.initial_data), _decoding(model)
    module = chain_to_module(chain, dtype, device)
    size = chain.state_size if encode is None else encode.sizes[0]
    layer = ReducedODELayer(
        _settings(model),
        (size,),
        module,
        None if encode is None else chain.state_size,
        "required" if module.reads_input else "none",
    )
    for linear, affine in ((layer.encode, encode), (layer.decode, decode)):
        if isinstance(linear, nn.Linear):
            with torch.no_grad():
                linear.weight.copy_(to_tensor(affine.linear, dtype, device))
                linear.bias.copy_(to_tensor(affine.shift, dtype, device))
    return layer


def _settings(model) -> SolveSettings:
    stepper = model.time_stepper
    times = {"input_times": getattr(model, "input_times", None)}
    times["interpolation"] = getattr(model, "interpolation", "linear")
    if isinstance(stepper, RungeKuttaTimeStepper):
        options = {} if stepper.step_size is None else {"step_size": stepper.step_size}
        options |= {} if stepper.interp == "linear" else {"interp": stepper.interp}
        return SolveSettings(stepper.times, stepper.method, options=options, output="trajectory", **times)
    return stepper.settings


def _encoding(initial_data) -> AffineMap | None:
    """Return the map from 'initial_state' to the model's state; None for the identity."""
    if not isinstance(initial_data, InitialStateOperator):
        raise UnsupportedOperationError(
            f"expected initial data that are a projection of 'initial_state', got a {type(initial_data).__name__}: "
            "reduce without initial_data_product, or use to_module(model.operator)"
        )
    return initial_data.encode


def _decoding(model) -> AffineMap | None:
    chain: StageChain = fold_operator(model.output_functional)
    if chain.stages or chain.reads("u") or chain.reads("t"):
        raise UnsupportedOperationError(
            f"expected the lifted state as output of the model, got {model.output_functional}: use "
            "model.with_(output_functional=…), or to_module(model.operator)"
        )
    return chain.output
