"""Constants of a computation: what follows from them alone, and how a graph holds them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def remembered(function: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function of hashable constants returned, for the next call with the same ones.

    Law: ``remembered(f)(*arguments) == f(*arguments)`` for f without side effects. While a compiler or exporter traces
    it is f itself: they warn of caches, and compute it once anyway.
    """
    cached = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        return function(*arguments) if torch.compiler.is_compiling() else cached(*arguments)

    return call


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
