"""What follows from constants alone is computed once."""

import functools
from collections.abc import Callable

import torch


def remembered(function: Callable) -> Callable:
    """Keep what a function of hashable constants returned, for the next call with the same ones.

    Law: ``remembered(f)(*arguments) == f(*arguments)`` for f without side effects. While a compiler or exporter traces
    it is f itself: they warn of caches, and compute it once anyway.
    """
    cached = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments) if torch.compiler.is_compiling() else cached(*arguments)

    return call
