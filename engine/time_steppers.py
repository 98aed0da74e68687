"""Explicit Runge–Kutta time stepping of pyMOR models on the time grid of an ODE layer."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from pymor.algorithms.timestepping import TimeStepper
from pymor.operators.interface import Operator
from pymor.parameters.base import Mu
from pymor.vectorarrays.interface import VectorArray

from torchmor.engine.errors import SolverError
from torchmor.engine.grids import plan_steps
from torchmor.engine.tableaux import TABLEAUX

RightHandSide: TypeAlias = Callable[[float, VectorArray], VectorArray]  # f(t, y)


class LayerTimeStepper(TimeStepper):
    """Base class of time steppers that return the solution at the times of an ODE layer.

    pyMOR models run from 0 to T. The layer's times may start elsewhere, be non-uniform and run backward:
    the stepper integrates over them, with T = abs(times[-1] - times[0]), and evaluates operators and inputs
    at the layer's own time t.
    """

    times: tuple[float, ...]

    def iterate(
        self,
        initial_time: float,
        end_time: float,
        initial_data: VectorArray,
        operator: Operator,
        rhs: Operator | None = None,
        mass: Operator | None = None,
        mu: Mu | None = None,
        num_values: int | None = None,
    ) -> Iterator[tuple[VectorArray, float]]:
        assert initial_time == 0 and np.isclose(end_time, abs(self.times[-1] - self.times[0]))
        assert isinstance(operator, Operator) and operator.source == operator.range
        if num_values not in (None, len(self.times)):
            raise NotImplementedError(
                f"expected num_values to be None, for one value at each of the {len(self.times)} times of the layer, "
                f"got {num_values}: choose the times of the time stepper instead"
            )
        mu = mu or Mu()

        def f(t: float, y: VectorArray) -> VectorArray:
            mu_t = mu.at_time(t)
            value = -operator.apply(y, mu=mu_t)
            if rhs is not None:
                value += rhs.as_vector(mu_t)
            return value if mass is None else mass.apply_inverse(value, mu=mu_t)

        kinks = getattr(mu.time_dependent_values.get("input"), "kinks", ())
        for y, t in zip(self.integrate(f, initial_data, kinks), self.times, strict=True):
            if not np.all(np.isfinite(y.to_numpy())):
                raise SolverError(
                    f"expected a finite solution at t = {t:g}, got NaN or infinity: use smaller steps, a larger "
                    f"reduced state, or check the initial state"
                )
            yield y, t

    def integrate(self, f: RightHandSide, y: VectorArray, kinks: Sequence[float] = ()) -> Iterator[VectorArray]:
        """Yield the solution of y' = f(t, y) at self.times, as VectorArrays of length 1.

        Adaptive solvers do not step across `kinks`, times at which f is not smooth.
        """
        raise NotImplementedError


class RungeKuttaTimeStepper(LayerTimeStepper):
    """The fixed-step Runge–Kutta methods of the layers, on pyMOR operators.

    Parameters
    ----------
    method
        Key of :data:`~torchmor.engine.tableaux.TABLEAUX`.
    times
        Strictly monotone times of the returned states.
    step_size
        Step size; None steps from time to time.
    interp
        Interpolation of states between steps: 'linear' or 'cubic' (Hermite).
    """

    def __init__(self, method: str, times: Sequence[float], step_size: float | None = None, interp: str = "linear"):
        assert interp in ("linear", "cubic")
        times = tuple(float(t) for t in times)
        self.__auto_init(locals())

    def estimate_time_step_count(self, initial_time: float, end_time: float) -> int:
        return len(self.times) - 1

    def integrate(self, f: RightHandSide, y: VectorArray, kinks: Sequence[float] = ()) -> Iterator[VectorArray]:
        tableau = TABLEAUX[self.method]
        yield y.copy()
        for step in plan_steps(self.times, tableau, self.step_size):
            h = step.size
            slopes: list[VectorArray] = []
            for a, t in zip(tableau.a, step.times, strict=True):
                stage = y.copy()
                for weight, slope in zip(a, slopes, strict=True):
                    if weight:
                        stage.axpy(h * weight, slope)
                slopes.append(f(t, stage))
            y_next = y.copy()
            for weight, slope in zip(tableau.b, slopes, strict=True):
                if weight:
                    y_next.axpy(h * weight, slope)
            for x in step.outputs:
                if self.interp == "linear":
                    yield y * (1 - x) + y_next * x if x < 1 else y_next.copy()
                else:
                    end_slope = f(step.end, y_next)
                    yield (
                        y * ((1 + 2 * x) * (1 - x) ** 2)
                        + slopes[0] * (h * x * (1 - x) ** 2)
                        + y_next * (x**2 * (3 - 2 * x))
                        + end_slope * (h * x**2 * (x - 1))
                    )
            y = y_next
