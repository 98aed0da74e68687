"""Input signals u(t) of pyMOR models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymor.analyticalproblems.functions import Function, GenericFunction

from torchmor.engine.errors import InputError


def input_function(u: Any, dim: int, times: Sequence[float] | None = None, interpolation: str = "linear") -> Any:
    """Return the input of a model as a pyMOR Function of time.

    Parameters
    ----------
    u
        A pyMOR Function, an expression in t, a constant array (p,) (these are returned as they are), a callable of t
        that returns (p,), or samples (len(times), p).
    dim
        Size p of the input.
    times
        Monotone times of the samples.
    interpolation
        'linear' or 'previous'; the signal is held constant outside the times.

    Raises
    ------
    InputError
        It does not have p components, the samples do not fit the times, or the interpolation is unknown.
    """
    if isinstance(u, Function | str) or (isinstance(u, list | tuple) and any(isinstance(v, Function | str) for v in u)):
        return u
    if callable(u):
        return GenericFunction(lambda t: np.stack([_value(u(float(s)), dim) for s in t[..., 0].ravel()]), 1, (dim,))
    u = np.asarray(u, dtype=np.float64)
    if u.ndim < 2:
        return _value(u, dim)
    if times is None or u.shape != (len(times), dim):
        count = "times" if times is None else len(times)
        raise InputError(
            f"expected input samples of shape ({count}, {dim}), one row for each input time of the model, got {u.shape}"
        )
    return SampledInput(u, times, interpolation)


def _value(u: Any, dim: int) -> np.ndarray:
    u = np.asarray(u, dtype=np.float64)
    if u.size != dim:
        raise InputError(f"expected an input of {dim} channels, got shape {u.shape}")
    return u.reshape(dim)


class SampledInput(GenericFunction):
    """An input signal given as samples, as a pyMOR Function of time; constant outside the times.

    "linear" joins the samples by straight lines, "previous" holds each sample until the next one in the order of
    the times.

    Parameters
    ----------
    samples
        Array (len(times), p).
    times
        Strictly monotone times.
    interpolation
        'linear' or 'previous'.
    """

    def __init__(self, samples: np.ndarray, times: Sequence[float], interpolation: str = "linear"):
        if interpolation not in ("linear", "previous"):
            raise InputError(f"expected interpolation 'linear' or 'previous', got {interpolation!r}")
        samples, times = np.asarray(samples, dtype=np.float64), tuple(float(t) for t in times)
        sign = 1.0 if times[-1] >= times[0] else -1.0
        knots = sign * np.asarray(times)

        def value(t: np.ndarray) -> np.ndarray:
            s = sign * t[..., 0]
            if interpolation == "linear":
                return np.stack([np.interp(s, knots, column) for column in samples.T], axis=-1)
            return samples[np.maximum(np.searchsorted(knots, s, "right") - 1, 0)]

        super().__init__(value, 1, samples.shape[1:])
        self.__auto_init(locals())

    @property
    def kinks(self) -> tuple[float, ...]:
        """Times at which the signal or its derivative jumps; adaptive solvers must not step across them."""
        # "previous" does not jump at the first time, and a single sample nowhere
        return self.times[1:] if self.interpolation == "previous" or len(self.times) == 1 else self.times
