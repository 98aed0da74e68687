"""ODE layers as pyMOR models, full and reduced."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pymor.vectorarrays.interface import VectorArray
from torch import Tensor, nn

from torchmor.adapters.layers.arrays import to_array, to_batch, to_columns
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.models.conversion import module_to_chain
from torchmor.adapters.solving.solve_request import SolveRequest
from torchmor.adapters.solving.solve_settings import OWN_OPTIONS, SolveSettings, check_times
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import InputError, ShapeError
from torchmor.engine.models import OdeLayerModel, ode_layer_model
from torchmor.engine.tableaux import TABLEAUX
from torchmor.engine.time_steppers import LayerTimeStepper, RungeKuttaTimeStepper


def full_order_model(
    layer: ODELayer,
    example_state: Tensor,
    example_input: Tensor | None = None,
    t: Sequence[float] | Tensor | None = None,
) -> OdeLayerModel:
    """Return an ODE layer as a pyMOR InstationaryModel ``y' + A(y) = 0`` with A = −f.

    Law: ``fom.solve({"initial_state": y0}, input=u)`` is the layer's trajectory from y0, at the layer's times. Adaptive
    methods take the layer's steps too, as long as their error estimates are well above rounding.

    Parameters
    ----------
    layer
        The layer; it is traced, not changed.
    example_state
        States (batch, …) like those that the layer is called with.
    example_input
        Inputs (batch, p) like those at one time, for a function f(t, y, u).
    t
        Times instead of the layer's.

    Returns
    -------
    OdeLayerModel
        A pyMOR InstationaryModel with the parameter 'initial_state' (n,), the flattened state of one sample. Its
        `input` may be any pyMOR input as a function of the layer's t, a callable of t that returns (p,), or samples
        (len(input_times), p). Its solution has one vector for each time of the layer; its output is the state.

    Raises
    ------
    UnsupportedOperationError
        f contains an operation that cannot become part of a stage chain.
    ShapeError, InputError
        The example does not fit.
    """
    if not isinstance(layer, ODELayer):
        raise TypeError(f"expected an ODELayer, got a {type(layer).__name__}: pass network.get_submodule(name)")
    if example_state.ndim < 2 or example_state.shape[0] == 0:
        raise ShapeError(
            f"expected an example state of shape (batch, …) with at least one sample, got {tuple(example_state.shape)}"
        )
    if layer.input_use == "required" and example_input is None:
        raise InputError("expected an example_input (batch, p), because the ODE function is f(t, y, u), got none")
    if example_input is not None:
        if layer.input_use == "none":
            raise InputError("expected no example_input, because the ODE function does not take one: leave it out")
        if example_input.ndim != 2 or len(example_input) != len(example_state):
            raise InputError(
                f"expected an example_input of shape ({len(example_state)}, p), the input at one time for each example "
                f"state, got {tuple(example_input.shape)}"
            )
    settings = layer.settings if t is None else replace(layer.settings, t=check_times(t, "t", 2))
    chain = trace(layer.function, example_state, example_input, settings.t[0])
    return ode_layer_model(
        chain,
        time_stepper(settings),
        input_times=settings.input_times or settings.t,
        interpolation=settings.interpolation,
        name="ode_layer",
    )


def reduced_order_model(layer: ReducedODELayer) -> OdeLayerModel:
    """Return a reduced layer as a pyMOR model, from its current parameters.

    Law: ``rom.output({"initial_state": y0}, input=u)`` is the layer's trajectory from y0.

    Parameters
    ----------
    layer
        A :class:`~torchmor.adapters.ReducedODELayer`.
    """
    settings = layer.solver_settings()
    keep = isinstance(layer.encode, nn.Identity)
    return ode_layer_model(
        module_to_chain(layer.ode),
        time_stepper(settings),
        encode=None if keep else _affine_map(layer.encode),
        decode=None if keep else _affine_map(layer.decode),
        input_times=settings.input_times or settings.t,
        interpolation=settings.interpolation,
        name="reduced_ode_layer",
    )


def time_stepper(settings: SolveSettings) -> LayerTimeStepper:
    """Return the time stepper that does what a layer with these settings does."""
    if settings.method in TABLEAUX and set(settings.options) <= set(OWN_OPTIONS):
        return RungeKuttaTimeStepper(settings.method, settings.t, **settings.options)
    return TorchdiffeqTimeStepper(settings)


def _affine_map(linear: nn.Linear) -> AffineMap:
    return AffineMap(("y",), (linear.in_features,), to_array(linear.weight), to_array(linear.bias))


class TorchdiffeqTimeStepper(LayerTimeStepper):
    """Any solver of torchdiffeq on pyMOR operators: the same code as the layer's, so the same steps.

    Parameters
    ----------
    settings
        The layer's :class:`~torchmor.adapters.solving.solve_settings.SolveSettings`.
    """

    def __init__(self, settings: SolveSettings):
        settings = replace(settings, adjoint=False, output="trajectory")
        self.__auto_init(locals())
        self.times = settings.t

    def integrate(self, f: Callable[..., VectorArray], y: VectorArray, kinks: Sequence[float] = ()) -> Iterator[Any]:
        space = y.space

        def rhs(t: Tensor, state: Tensor, u: Any) -> Tensor:
            return to_batch(f(float(t), space.from_numpy(to_columns(state))).to_numpy())

        # f evaluates the input itself; its kinks must stop the solver as they do in the layer
        signal: Any = _Kinks(kinks) if kinks else None
        request = SolveRequest(self.settings, self.times, None, signal)
        with torch.no_grad():
            states = request.solve_with_torchdiffeq(rhs, to_batch(y.to_numpy()))
        for state in states:
            yield space.from_numpy(to_columns(state))


class _Kinks(NamedTuple):
    """An input signal of which only the kinks count."""

    kinks: Sequence[float]

    def __call__(self, t: Tensor) -> None:
        return None
