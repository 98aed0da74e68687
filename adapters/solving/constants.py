"""Constants of a computation: what follows from them alone, and how a graph holds them."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

#: What a function returned is kept up to so many results, of so many numbers in all: some megabytes.
MOST_RESULTS, MOST_NUMBERS = 256, 100_000


def remembered(function: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function of hashable constants returned lately, for the next call with the same ones.

    Law: ``remembered(f)(*arguments) == f(*arguments)`` for f without side effects. While a compiler or exporter traces
    it is f itself: they warn of caches, and compute it once anyway. What was not asked for lately is forgotten beyond
    `MOST_RESULTS` and `MOST_NUMBERS`, and what is larger than that is never kept.
    """
    kept: OrderedDict[tuple[Any, ...], tuple[T, int]] = OrderedDict()
    lock, numbers = Lock(), 0

    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        nonlocal numbers
        if torch.compiler.is_compiling():
            return function(*arguments)
        with lock:
            if arguments in kept:
                kept.move_to_end(arguments)
                return kept[arguments][0]
        result = function(*arguments)
        size = _numbers(arguments) + _numbers(result)
        if size > MOST_NUMBERS:
            return result
        with lock:
            if arguments not in kept:
                kept[arguments] = result, size
                numbers += size
            while len(kept) > MOST_RESULTS or numbers > MOST_NUMBERS:
                numbers -= kept.popitem(last=False)[1][1]
        return result

    return call


def _numbers(value: Any) -> int:
    """Count the numbers in nested tuples."""
    return sum(map(_numbers, value)) if isinstance(value, tuple) else 1


class Constants:
    """Numbers as a graph needs them, ``constant(number)``: Python's own, but 0-dim tensors while one is exported.

    ONNX graphs hold Python's numbers in float32, also where all else is float64; tensors stay what they are.

    Parameters
    ----------
    like
        Tensor of the dtype and device of the tensors.
    """

    def __init__(self, like: Tensor):
        self._as_tensors = torch.compiler.is_exporting()
        self._kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self._tensors: dict[float, Tensor] = {}

    def __call__(self, number: float) -> float | Tensor:
        if not self._as_tensors:
            return number
        if number not in self._tensors:
            self._tensors[number] = torch.tensor(number, **self._kind)
        return self._tensors[number]
