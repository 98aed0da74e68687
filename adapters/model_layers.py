"""pyMOR models on the time grid of an ODE layer, as layers again."""

import numpy as np
import scipy.sparse as sps
import torch
from pymor.models.basic import InstationaryModel
from pymor.operators.constructions import IdentityOperator

from torchmor.adapters.arrays import to_tensor
from torchmor.adapters.conversion import chain_to_module
from torchmor.adapters.reduced_layer import ReducedODELayer
from torchmor.adapters.solve_settings import SolveSettings
from torchmor.engine.affine import AffineMap
from torchmor.engine.chain_algebra import compose, constant_chain, left_divide, linear_combination, trim
from torchmor.engine.errors import UnsupportedOperationError
from torchmor.engine.folding import fold_operator, model_parameter_values
from torchmor.engine.operators import InitialStateOperator
from torchmor.engine.stages import StageChain
from torchmor.engine.time_steppers import RungeKuttaTimeStepper


def layer_of_model(model: InstationaryModel, mu=None, dtype=torch.float64, device="cpu") -> ReducedODELayer:
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
    layer = ReducedODELayer(
        _settings(model),
        (chain.state_size if encode is None else encode.sizes[0],),
        chain_to_module(chain, dtype, device),
        None if encode is None else encode.size,
        "required" if chain.reads("u") else "none",
    )
    if encode is not None:
        with torch.no_grad():
            for linear, affine in ((layer.encode, encode), (layer.decode, decode)):
                block = affine.blocks()["y"]
                matrix = block.toarray() if sps.issparse(block) else block
                linear.weight.copy_(to_tensor(matrix, dtype, device))
                linear.bias.copy_(to_tensor(affine.shift, dtype, device))
    return layer


def _right_hand_side(model, mu) -> StageChain:
    """Return M⁻¹ (F − A)."""
    one = constant_chain(np.ones(1), model.operator.source.dim)
    force = compose(fold_operator(model.rhs, mu), one)
    chain = linear_combination([fold_operator(model.operator, mu), force], [-1.0, 1.0])
    if not isinstance(model.mass, IdentityOperator):
        chain = left_divide(fold_operator(model.mass, mu), chain)
    return trim(chain)


def _settings(model) -> SolveSettings:
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


def _encode_and_decode(model, mu) -> tuple[AffineMap, AffineMap] | tuple[None, None]:
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
