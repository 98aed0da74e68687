"""Indices that depend on the time or the input: entries are weighed by comparisons, as reads of samples do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_aten = torch.ops.aten


def number_index(x: torch.Tensor, key: Any) -> torch.Tensor | None:
    """Return ``x[key]`` where a key holds tensors of a single number, which Python would read; None for other keys."""
    keys = list(key) if isinstance(key, tuple) else [key]
    numbers = [isinstance(k, torch.Tensor) and k.ndim == 0 and k.dtype in _INTEGERS for k in keys]
    if not any(numbers) or any(isinstance(k, torch.Tensor | list) for k, n in zip(keys, numbers, strict=True) if not n):
        return None
    value = x[tuple(slice(None) if number else k for k, number in zip(keys, numbers, strict=True))]
    more = x.ndim - sum(k is not None and k is not ... for k in keys)  # dimensions that an ellipsis stands for
    dim, found = 0, []
    for k, number in zip(keys, numbers, strict=True):
        found += [(dim, k)] if number else []
        dim += more if k is ... else int(not isinstance(k, int) or isinstance(k, bool))
    for dim, k in reversed(found):
        value = value[(slice(None),) * dim + (k.reshape(1),)].squeeze(dim)
    return value


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _weights(index: torch.Tensor, size: int) -> torch.Tensor:
    """Return (…, size), 1 at the index and else 0; negative indices count from the end."""
    places = torch.arange(size)
    return (places == torch.where(index < 0, index + size, index).unsqueeze(-1)).to(torch.float64)


def _index_select(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    weights = _weights(index.reshape(-1), x.shape[dim])
    picked: torch.Tensor = (x.movedim(dim, -1).unsqueeze(-2) * weights).sum(-1)
    return picked.movedim(-1, dim)


def _index(x: torch.Tensor, indices: list[torch.Tensor | None]) -> Any:
    places = [dim for dim, index in enumerate(indices) if index is not None]
    index = indices[places[0]]
    if len(places) > 1 or index is None or index.dtype == torch.bool:
        return NotImplemented
    dim = places[0]
    return _index_select(x, dim, index).unflatten(dim, index.shape) if index.ndim else NotImplemented


def _gather(x: torch.Tensor, dim: int, index: torch.Tensor, *, sparse_grad: bool = False) -> torch.Tensor:
    dim %= x.ndim
    for other in (d for d in range(x.ndim) if d != dim):
        x = x.narrow(other, 0, index.shape[other])
    picked: torch.Tensor = (x.movedim(dim, -1).unsqueeze(dim) * _weights(index, x.shape[dim])).sum(-1)
    return picked


def _embedding(weight: torch.Tensor, indices: torch.Tensor, *options: Any, **more: Any) -> torch.Tensor:
    return _index_select(weight, 0, indices).reshape(*indices.shape, -1)


#: Operations whose index (at the given place of the arguments) may vary, and what they are then written as.
MOVING_INDEX: dict[Any, tuple[int, Callable[..., Any]]] = {
    _aten.index_select.default: (2, _index_select),
    _aten.index.Tensor: (1, _index),
    _aten.gather.default: (2, _gather),
    _aten.embedding.default: (1, _embedding),
}
