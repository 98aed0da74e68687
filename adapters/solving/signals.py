"""The input signal u(t) of an ODE layer, in torch alone."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchmor.adapters.solving.constants import remembered
from torchmor.engine.errors import DeviceError, DtypeError, InputError

INTERPOLATIONS = ("linear", "previous")


def round_to(x: float, dtype: torch.dtype) -> float:
    """Return the number of type `dtype` nearest to x, as a Python float.

    Equals ``torch.tensor(x, dtype=dtype).item()`` for x in the normal range of `dtype`. It is pure Python, so
    that compilers and exporters see a constant.
    """
    if dtype == torch.float64 or x == 0.0:
        return x
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(fraction, digits)), exponent - digits)


def instants(times: Sequence[float], like: Tensor) -> Tensor:
    """Return times as a tensor (len(times),) of the dtype and device of `like`."""
    return torch.tensor(times, dtype=torch.float64).to(like.dtype).to(like.device)


class CallableSignal:
    """An input signal given as a callable of t.

    ``signal(t)`` is ``u(t)``, checked.

    Parameters
    ----------
    u
        Callable of t, a 0-dim tensor, that returns (batch, p) with the dtype and device of t.
    batch
        Number of samples of the state.
    """

    kinks: tuple[float, ...] = ()

    def __init__(self, u: Callable[[Tensor], Tensor], batch: int):
        self.u, self.batch = u, batch

    def along(self, times: Sequence[float], like: Tensor) -> Tensor:
        """Return u at several times, (len(times), batch, p); u is called with each, of the kind of `like`."""
        return torch.stack([self(t) for t in instants(times, like).unbind()])

    def __call__(self, t: Tensor) -> Tensor:
        """Return u(t) of shape (batch, p)."""
        value = self.u(t)
        if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[0] != self.batch:
            got = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f"expected u(t) to be a Tensor of shape (batch, p) with batch = {self.batch}, got {got}: "
                f"return one row per sample, for example value.expand({self.batch}, -1)"
            )
        _check_kind(value, t, "u(t)")
        return value

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the tensors that the adjoint method has to differentiate in."""
        return tuple(self.u.parameters()) if isinstance(self.u, torch.nn.Module) else ()


class SampledSignal:
    """An input signal given as samples, interpolated between its times and held constant outside them.

    Law: ``signal(times[i]) == samples[:, i]`` in the dtype of t. "linear" joins the samples by straight
    lines. "previous" holds each sample until the next one in the order of `times`: for increasing times the
    value changes at and after a time, for decreasing times (backward integration) at and before it. Times are
    compared in the dtype in which t arrives, because adaptive solvers look at both sides of a jump by nudging
    t by one unit in the last place. The signal is differentiable in the samples and in t, and never
    synchronises with a device.

    Parameters
    ----------
    samples
        Tensor (batch, len(times), p).
    times
        Strictly monotone times of the samples.
    interpolation
        "linear" or "previous".
    """

    def __init__(self, samples: Tensor, times: Sequence[float], interpolation: str = "linear"):
        self.samples, self.interpolation = samples, interpolation
        # decreasing times become increasing ones by a change of sign
        self._sign = 1.0 if times[-1] >= times[0] else -1.0
        self._knots = _knots(tuple(times), samples.dtype)
        if len(set(self._knots)) < len(self._knots):
            raise InputError(
                f"expected input times that differ in the state's dtype, got {len(self._knots)} times of "
                f"which some are the same {samples.dtype}: use fewer samples or a wider dtype"
            )
        #: Times at which the signal (or its derivative, for "linear") jumps.
        self.kinks = tuple(times[1:] if interpolation == "previous" or len(times) == 1 else times)

    def along(self, times: Sequence[float], like: Tensor | None = None) -> Tensor:
        """Return u at several times, (len(times), batch, p), by one operation for all.

        Law: equals ``torch.stack([signal(t) for t in times])`` with the times in the dtype of the samples.
        """
        rows, weights = _places(tuple(times), self._sign, self._knots, self.interpolation, self.samples.dtype)
        samples = self.samples.transpose(0, 1)  # (times of the samples, batch, p)
        first, last = rows[0], rows[-1]
        if rows == tuple(range(first, last + 1)):
            left = samples[first : last + 1]
        else:
            left = samples.index_select(0, torch.tensor(rows, device=samples.device))
        if not any(weights):
            return left
        # where the weight is 0, the next sample does not matter, and may not exist
        following = [row + 1 if weight else row for row, weight in zip(rows, weights, strict=True)]
        right = samples.index_select(0, torch.tensor(following, device=samples.device))
        return torch.lerp(left, right, instants(weights, samples)[:, None, None])

    def __call__(self, t: Tensor) -> Tensor:
        """Return u(t) of shape (batch, p)."""
        if len(self._knots) == 1:
            return self.samples[:, 0]
        if t.device.type != "cpu" or t.requires_grad or torch.compiler.is_compiling():
            return self._at_tensor(t)
        # on the CPU a look at t is cheaper than the operations it saves
        left, weight = _place(self._sign * t.item(), self._knots, self.interpolation)
        return torch.lerp(self.samples[:, left], self.samples[:, left + 1], weight) if weight else self.samples[:, left]

    @cached_property
    def _knot_tensor(self) -> Tensor:
        return instants(self._knots, self.samples)

    def _at_tensor(self, t: Tensor) -> Tensor:
        s, knots = self._sign * t, self._knot_tensor.to(t.dtype)
        if self.interpolation == "previous":
            return self._sample((knots[1:] <= s).sum())
        left = (knots[1:-1] <= s).sum()
        ends = knots.index_select(0, torch.stack((left, left + 1)))
        weight = ((s - ends[0]) / (ends[1] - ends[0])).clamp(0, 1).to(self.samples.dtype)
        return torch.lerp(self._sample(left), self._sample(left + 1), weight)

    def _sample(self, index: Tensor) -> Tensor:
        # samples[:, index] would synchronise
        return self.samples.index_select(1, index.reshape(1)).squeeze(1)

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the tensors that the adjoint method has to differentiate in."""
        return (self.samples,)


@remembered
def _knots(times: tuple[float, ...], dtype: torch.dtype) -> tuple[float, ...]:
    """The times of samples, increasing and rounded to `dtype`."""
    sign = 1.0 if times[-1] >= times[0] else -1.0
    return tuple([round_to(sign * time, dtype) for time in times])


@remembered
def _places(
    times: tuple[float, ...], sign: float, knots: tuple[float, ...], interpolation: str, dtype: torch.dtype
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Rows and weights of :func:`_place` at several times."""
    places = [_place(round_to(sign * time, dtype), knots, interpolation) for time in times]
    return tuple([row for row, _ in places]), tuple([weight for _, weight in places])


def _place(s: float, knots: tuple[float, ...], interpolation: str) -> tuple[int, float]:
    """Return the sample before s, and the weight of the next one."""
    right = _bisect_right(knots, s)
    left = max(right - 1, 0)
    if right == 0 or right == len(knots) or interpolation == "previous":
        return left, 0.0
    return left, (s - knots[left]) / (knots[right] - knots[left])


def _bisect_right(knots: tuple[float, ...], s: float) -> int:
    """Return i with knots[i - 1] <= s < knots[i]; the bisect module cannot be compiled."""
    low, high = 0, len(knots)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if s < knots[middle] else (middle + 1, high)
    return low


Signal = CallableSignal | SampledSignal


def input_signal(u: Any, times: Sequence[float], interpolation: str, y0: Tensor) -> Signal:
    """Turn the argument u of an ODE layer into a function of t.

    Parameters
    ----------
    u
        A callable of t that returns (batch, p), or samples (batch, len(times), p).
    times
        Strictly monotone times of the samples.
    interpolation
        "linear" or "previous".
    y0
        Initial state (batch, …), whose dtype and device u must share.

    Raises
    ------
    InputError
        u has the wrong type or shape; two times are the same number in the dtype of u; samples contain NaN or
        infinity (looked for on the CPU only, as the look would stall another device).
    DtypeError, DeviceError
        u has another dtype or device than y0.
    """
    if not isinstance(u, Tensor):
        if callable(u):
            return CallableSignal(u, y0.shape[0])
        raise InputError(
            f"expected u to be a callable of t or a Tensor of samples, got {type(u).__name__}: convert "
            f"arrays with torch.as_tensor"
        )
    if u.ndim != 3:
        raise InputError(
            f"expected input samples of shape (batch, times, p), got shape {tuple(u.shape)}: for one input "
            f"use u.unsqueeze(-1), for an input that is constant in time a callable, lambda t: value"
        )
    if u.shape[0] != y0.shape[0]:
        raise InputError(
            f"expected input samples for a batch of {y0.shape[0]}, got {u.shape[0]} in shape "
            f"{tuple(u.shape)}: give one signal per sample of y0, in the same order"
        )
    if u.shape[1] != len(times):
        raise InputError(
            f"expected {len(times)} input samples, one for each of the input times, got {u.shape[1]} in "
            f"shape {tuple(u.shape)}: set input_times to the {u.shape[1]} times of the samples (the default "
            f"is t)"
        )
    _check_kind(u, y0, "u")
    on_cpu = u.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and not bool(u.detach().isfinite().all()):
        raise InputError("expected finite input samples, got NaN or infinity in u: clean the data")
    return SampledSignal(u, times, interpolation)


def _check_kind(value: Tensor, like: Tensor, name: str) -> None:
    if value.dtype != like.dtype:
        raise DtypeError(
            f"expected {name} of the state's dtype {like.dtype}, got {value.dtype}: use {name}.to(y0.dtype)"
        )
    if value.device != like.device:
        raise DeviceError(
            f"expected {name} on the state's device {like.device}, got {value.device}: use {name}.to(y0.device)"
        )
