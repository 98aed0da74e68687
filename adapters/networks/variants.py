"""Calls of a network that differ in every argument: what an argument decides differs between them, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.solving.torch_private import tree_map_only

#: Batches of the calibration data that are looked at, the first and the last among them.
LOOKED_AT = 4

#: Where values do not vary in the data, they are varied by so much.
VARIED = 1 / 16


@dataclass(frozen=True, eq=False)
class Variant:
    """A call of the network.

    Parameters
    ----------
    batch
        Its arguments.
    argument
        Position of the argument that alone differs from one of the data's batches; None for data as it is.
    must
        Whether the network has to take it.
    """

    batch: Batch
    argument: int | None = None
    must: bool = False


def variants(batches: Iterable[Batch]) -> list[Variant]:
    """Return some batches of the data, both halves of the first, and the first with each argument varied alone."""
    first, *others = spread(batches)
    rows = np.arange(first.size) < first.size // 2
    halves = [first.select(rows), first.select(~rows)] if first.size > 1 else []
    found = [Variant(first, must=True), *(Variant(batch, must=True) for batch in others), *map(Variant, halves)]
    for position in range(len(first.arguments)):
        found += [Variant(replace(first, arguments=one), position) for one in _varied(first, position)]
    return found


def spread(batches: Iterable[Batch]) -> list[Batch]:
    """Return a few batches: the first, the last, and some between, in one pass."""
    kept: list[Batch] = []
    step, last = 1, None
    for index, batch in enumerate(batches):
        last = batch
        if index % step == 0:
            kept.append(batch)
        if len(kept) == 2 * LOOKED_AT:
            kept, step = kept[::2], 2 * step
    positions = sorted({round(i * (len(kept) - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)})
    chosen = [kept[i] for i in positions]
    if last is not None and chosen[-1] is not last:
        chosen[LOOKED_AT - 1 :] = [last]
    return chosen


def _varied(batch: Batch, position: int) -> Iterator[tuple[Any, ...]]:
    """Yield the batch's arguments with other values in one of them, those of other samples first."""
    argument = batch.arguments[position]

    def other(value: Any) -> tuple[Any, ...]:
        return (*batch.arguments[:position], value, *batch.arguments[position + 1 :])

    for change in (_rolled, _scaled):
        value = tree_map_only((Tensor, float, int), change, argument)
        if not _equal(value, argument):
            yield other(value)


def _rolled(value: Any) -> Any:
    return value.roll(1, 0) if isinstance(value, Tensor) and value.ndim > 1 else value


def _scaled(value: Any) -> Any:
    if isinstance(value, int):
        return not value if isinstance(value, bool) else value + 1
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value.roll(1, 0) if value.ndim else value
    zero = not bool(value.any()) if isinstance(value, Tensor) else value == 0
    return value + VARIED if zero else value * (1 + VARIED)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return all(map(_equal, a, b))
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    return bool(a is b or a == b)
