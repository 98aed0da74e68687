"""Input signals u(t) of pyMOR models."""

import numpy as np
from pymor.analyticalproblems.functions import Function, GenericFunction

from torchmor.engine.errors import InputError


def input_function(u, dim, times=None, interpolation="linear"):
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
        The samples do not fit the times, or the interpolation is unknown.
    """
    if isinstance(u, Function | str):
        return u
    if callable(u):
        return GenericFunction(
            lambda t: np.stack([np.reshape(u(float(s)), dim) for s in t[..., 0].ravel()]), 1, (dim,)
        )
    u = np.asarray(u, dtype=np.float64)
    if u.ndim < 2:
        return u
    if times is None or u.shape != (len(times), dim):
        raise InputError(f"expected input samples of shape {(times and len(times), dim)}, got {u.shape}")
    times = np.asarray(times, dtype=np.float64)
    if times[0] > times[-1]:
        times, u = times[::-1], u[::-1]
        if (
            interpolation == "previous"
        ):  # what was sampled last is the value at the later time of each interval
            return GenericFunction(
                lambda t: u[_clip(np.searchsorted(times, t[..., 0], "left"), u)], 1, (dim,)
            )
    if interpolation == "previous":
        return GenericFunction(
            lambda t: u[_clip(np.searchsorted(times, t[..., 0], "right") - 1, u)], 1, (dim,)
        )
    if interpolation == "linear":
        return GenericFunction(
            lambda t: np.stack([np.interp(t[..., 0], times, column) for column in u.T], axis=-1), 1, (dim,)
        )
    raise InputError(f"expected interpolation 'linear' or 'previous', got {interpolation!r}")


def _clip(index, samples):
    return np.clip(index, 0, len(samples) - 1)
