"""A deterministic cost of running a layer: operations and bytes, not seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.solving.torch_private import DispatchMode

#: A byte that is written costs as much as so many multiply–adds: about what processors do in the time.
OPERATIONS_PER_BYTE = 4


def run_cost(layer: nn.Module, y0: Tensor, *others: Any) -> float:
    """Return multiply–adds plus four times the bytes written, in one call, for each sample.

    Law: it depends on the layer and the arguments alone, not on the machine.
    """
    with evaluation(layer):
        operations, written, _ = count(layer, y0, *others)
    return (operations + OPERATIONS_PER_BYTE * written) / len(y0)


def count(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[int, int, Any]:
    """Call a function; return multiply–adds, bytes written, and its value."""
    with torch.no_grad(), _BytesWritten() as written, FlopCounterMode(display=False) as counter:
        value = function(*arguments, **keywords)
    return counter.get_total_flops() // 2, written.bytes, value


class _BytesWritten(DispatchMode):
    """Counts the bytes of all results that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor):
                    self.bytes += value.numel() * value.element_size()
        return result


@dataclass(frozen=True)
class Cost:
    """Multiply–adds and bytes written for each sample."""

    operations: int
    written: int

    @property
    def total(self) -> int:
        """Both as multiply–adds."""
        return self.operations + OPERATIONS_PER_BYTE * self.written

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.operations + other.operations, self.written + other.written)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.operations - other.operations, self.written - other.written)
