"""The pyMOR model of an ODE layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymor.models.basic import InstationaryModel
from pymor.operators.constructions import IdentityOperator
from pymor.operators.interface import Operator
from pymor.parameters.base import Mu
from pymor.vectorarrays.interface import VectorArray

from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import InputError
from torchmor.engine.inputs import input_function
from torchmor.engine.operators import InitialStateOperator, OdeFunctionOperator
from torchmor.engine.stages import StageChain
from torchmor.engine.time_steppers import LayerTimeStepper


class OdeLayerModel(InstationaryModel):
    """A pyMOR InstationaryModel whose input may also be a plain callable of t, or samples at `input_times`.

    Parameters
    ----------
    input_times
        Times of input samples.
    interpolation
        'linear' or 'previous'.

    All other parameters are those of InstationaryModel.
    """

    def __init__(
        self,
        T: float,
        initial_data: VectorArray | Operator,
        operator: Operator,
        rhs: VectorArray | Operator | None = None,
        mass: Operator | None = None,
        time_stepper: LayerTimeStepper | None = None,
        num_values: int | None = None,
        output_functional: Operator | None = None,
        products: Mapping[str, Operator] | None = None,
        error_estimator: Any = None,
        visualizer: Any = None,
        input_times: Sequence[float] | None = None,
        interpolation: str = "linear",
        name: str | None = None,
    ):
        super().__init__(
            T,
            initial_data,
            operator,
            rhs,
            mass=mass,
            time_stepper=time_stepper,
            num_values=num_values,
            output_functional=output_functional,
            products=products,
            error_estimator=error_estimator,
            visualizer=visualizer,
            name=name,
        )
        self.__auto_init(locals())

    def compute(self, *args: Any, mu: Any = None, input: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Compute quantities of the model; see pyMOR's Model.compute.

        Raises
        ------
        InputError
            The input is missing, superfluous or of the wrong form.
        """
        if input is not None:
            if self.dim_input == 0:
                raise InputError("expected no input, because the ODE function does not read one, got one: leave it out")
            input = input_function(input, self.dim_input, self.input_times, self.interpolation)
        elif self.dim_input and not (isinstance(mu, Mu) and {"input"} & {*mu, *mu.time_dependent_values}):
            raise InputError(f"expected an input of {self.dim_input} channels, got none: solve(mu, input=u)")
        return super().compute(*args, mu=mu, input=input, **kwargs)


def ode_layer_model(
    chain: StageChain,
    time_stepper: LayerTimeStepper,
    *,
    encode: AffineMap | None = None,
    decode: AffineMap | None = None,
    input_times: Sequence[float] | None = None,
    interpolation: str = "linear",
    name: str | None = None,
) -> OdeLayerModel:
    """Build the model ``y' + A(y) = 0``, A = −f, of an ODE function f on the time grid of its layer.

    Solving needs the parameter 'initial_state' and, if f reads it, the input. The model's output is the (decoded)
    state.

    Parameters
    ----------
    chain
        The ODE function f.
    time_stepper
        A :class:`~torchmor.engine.time_steppers.LayerTimeStepper`.
    encode
        Affine map from the initial state (n) to the model's state (r); None for the identity.
    decode
        Affine map from the model's state (r) to the layer's state (n); None for the identity.
    input_times, interpolation
        How input samples are read.
    name
        Name of the model.
    """
    operator = OdeFunctionOperator(-chain, name="minus_f")
    initial_size = chain.state_size if encode is None else encode.sizes[0]
    if decode is None:
        output = IdentityOperator(operator.source)
    else:
        output = OdeFunctionOperator(StageChain(chain.state_size, 0, (), decode), name="decode")
    return OdeLayerModel(
        T=float(np.abs(time_stepper.times[-1] - time_stepper.times[0])),
        initial_data=InitialStateOperator(initial_size, encode, name="initial_state"),
        operator=operator,
        time_stepper=time_stepper,
        output_functional=output,
        input_times=input_times,
        interpolation=interpolation,
        name=name,
    )
