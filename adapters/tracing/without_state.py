"""Operations that couple components, written in componentwise ones: for values of the time and the input alone.

Of the state they are refused, as their stages would need all components; inputs and embeddings of the time are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_aten = torch.ops.aten
_Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _over(x: torch.Tensor, dim: Any, keepdim: bool, combine: _Combine) -> torch.Tensor:
    """Combine all components along dimensions, in pairs."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim or range(x.dim()))
    dims = tuple(d % max(1, x.dim()) for d in dims)
    for d in dims if x.dim() else ():
        while (size := x.shape[d]) > 1:
            half = size // 2
            pairs = combine(x.narrow(d, 0, half), x.narrow(d, half, half))
            if size % 2:
                last = combine(pairs.narrow(d, half - 1, 1), x.narrow(d, size - 1, 1))
                pairs = last if half == 1 else torch.cat([pairs.narrow(d, 0, half - 1), last], d)
            x = pairs
    return x if keepdim or not x.dim() else x.squeeze(dims)


def _running(x: torch.Tensor, dim: int, combine: _Combine) -> torch.Tensor:
    """Combine each component along a dimension with all before it."""
    size, step = x.shape[dim], 1
    while step < size:
        later = combine(x.narrow(dim, step, size - step), x.narrow(dim, 0, size - step))
        x, step = torch.cat([x.narrow(dim, 0, step), later], dim), 2 * step
    return x


def _sorted(x: torch.Tensor, dim: int, descending: bool) -> torch.Tensor:
    """Sort by layers of comparisons of pairs: ``s min(s a, s b)`` is their minimum for s = 1, their maximum for -1."""
    if not x.dim():
        return x
    size = x.shape[dim]
    shape = [size if d == dim % x.dim() else 1 for d in range(x.dim())]
    for pairs in _layers(size):
        partner, sign = torch.arange(size), torch.ones(size, dtype=x.dtype)
        for low, high in pairs:
            partner[[low, high]] = torch.tensor([high, low])
            sign[high] = -1
        sign = (-sign if descending else sign).view(shape)
        alone = (partner == torch.arange(size)).view(shape)
        compared = torch.minimum(x * sign, x.index_select(dim, partner) * sign) * sign
        x = torch.where(alone, x, compared)
    return x


def _layers(size: int) -> list[list[tuple[int, int]]]:
    """Return Batcher's odd-even merge sort: layers of disjoint pairs (low, high) to compare."""
    layers = []
    p = 1
    while p < size:
        k = p
        while k >= 1:
            layers.append(
                [
                    (i + j, i + j + k)
                    for j in range(k % p, size - k, 2 * k)
                    for i in range(min(k, size - j - k))
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p)
                ]
            )
            k //= 2
        p *= 2
    return [pairs for pairs in layers if pairs]


def _maximum_along(combine: _Combine, original: Any) -> Callable[..., Any]:
    def along(x: torch.Tensor, dim: int, keepdim: bool = False) -> Any:
        return _over(x, dim, keepdim, combine), original(x, dim, keepdim)[1]

    return along


def _exponentials(x: torch.Tensor, dim: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shifted = x - _over(x, dim, True, torch.maximum)
    return shifted, torch.exp(shifted).sum(dim, keepdim=True)


def _softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    shifted, total = _exponentials(x, dim)
    return torch.exp(shifted) / total


def _log_softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    shifted, total = _exponentials(x, dim)
    return shifted - torch.log(total)


def _logsumexp(x: torch.Tensor, dim: Sequence[int], keepdim: bool = False) -> torch.Tensor:
    value = torch.log(_exponentials(x, dim)[1]) + _over(x, dim, True, torch.maximum)
    return value if keepdim else value.squeeze(tuple(dim))


def _norm(x: torch.Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    size = torch.abs(x)
    if abs(ord) == float("inf"):
        return _over(size, dim, keepdim, torch.maximum if ord > 0 else torch.minimum)
    if ord == 2:
        return NotImplemented  # of the state, too
    dims = tuple(range(x.dim())) if dim is None else dim
    if ord == 0:
        return (x != 0).sum(dims, keepdim).to(x.dtype)
    return (size**ord).sum(dims, keepdim) ** (1 / ord)


def _sort(x: torch.Tensor, dim: int = -1, descending: bool = False) -> Any:
    return _sorted(x, dim, descending), _aten.sort.default(x, dim, descending)[1]


def _topk(x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return _sorted(x, dim, largest).narrow(dim, 0, k), _aten.topk.default(x, k, dim, largest, sorted)[1]


def _kth(x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    value = _sorted(x, dim, False).narrow(dim, k - 1, 1)
    return value if keepdim else value.squeeze(dim), _aten.kthvalue.default(x, k, dim, keepdim)[1]


def _median(x: torch.Tensor, dim: int, keepdim: bool = False) -> Any:
    return _kth(x, (x.shape[dim] + 1) // 2, dim, keepdim)


#: What such operations are written as. Their results that are indices stay as they are, and are refused where read.
WITHOUT_STATE: dict[Any, Callable[..., Any]] = {
    _aten._softmax.default: _softmax,
    _aten._log_softmax.default: _log_softmax,
    _aten.logsumexp.default: _logsumexp,
    _aten.linalg_vector_norm.default: _norm,
    _aten.norm.ScalarOpt_dim: lambda x, p, dim, keepdim=False: _norm(x, 2 if p is None else p, dim, keepdim),
    _aten.norm.Scalar: _norm,
    _aten.amax.default: lambda x, dim=(), keepdim=False: _over(x, dim, keepdim, torch.maximum),
    _aten.amin.default: lambda x, dim=(), keepdim=False: _over(x, dim, keepdim, torch.minimum),
    _aten.max.default: lambda x: _over(x, None, False, torch.maximum),
    _aten.min.default: lambda x: _over(x, None, False, torch.minimum),
    _aten.max.dim: _maximum_along(torch.maximum, _aten.max.dim),
    _aten.min.dim: _maximum_along(torch.minimum, _aten.min.dim),
    _aten.prod.default: lambda x, *, dtype=None: _over(x, None, False, torch.mul),
    _aten.prod.dim_int: lambda x, dim, keepdim=False, *, dtype=None: _over(x, dim, keepdim, torch.mul),
    _aten.cumprod.default: lambda x, dim, *, dtype=None: _running(x, dim, torch.mul),
    _aten.cummax.default: lambda x, dim: (_running(x, dim, torch.maximum), _aten.cummax.default(x, dim)[1]),
    _aten.cummin.default: lambda x, dim: (_running(x, dim, torch.minimum), _aten.cummin.default(x, dim)[1]),
    _aten.sort.default: _sort,
    _aten.sort.stable: lambda x, *, stable, dim=-1, descending=False: _sort(x, dim, descending),
    _aten.topk.default: _topk,
    _aten.kthvalue.default: _kth,
    _aten.median.dim: _median,
    _aten.median.default: lambda x: _median(x.reshape(-1), 0)[0],
}
