"""Which operations are written in terms of others while a function is traced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from torchmor.adapters.solving.torch_private import core_decompositions
from torchmor.adapters.tracing.complex_numbers import COMPLEX
from torchmor.adapters.tracing.operations import KNOWN, REWRITTEN, operation_name


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return ours, those of complex numbers, and torch's own for what is in none of our tables."""
    of_torch = {
        operation: decomposition
        for operation, decomposition in core_decompositions().items()
        if operation_name(operation) not in KNOWN and torch.Tag.nondeterministic_seeded not in operation.tags
    }
    both = {operation: _first(COMPLEX[operation], REWRITTEN[operation]) for operation in COMPLEX.keys() & REWRITTEN}
    return of_torch | COMPLEX | REWRITTEN | both


def _first(*functions: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function whose value is that of the first which is implemented for its arguments."""

    def first(*args: Any, **kwargs: Any) -> Any:
        values = (function(*args, **kwargs) for function in functions)
        return next((value for value in values if value is not NotImplemented), NotImplemented)

    return first
