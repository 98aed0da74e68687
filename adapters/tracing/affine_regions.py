"""Affine parts of a traced function, as SciPy operators: products by running them, transposed products by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from torchmor.adapters.layers.arrays import to_batch, to_columns
from torchmor.adapters.solving.torch_private import tree_leaves, tree_map
from torchmor.engine.affine import CHUNK_BYTES


@dataclass(eq=False)
class AffineNode:
    """A value that is affine in some sources: a source itself, a constant, or an operation on such values.

    Parameters
    ----------
    function
        What computes the value from `args` and `kwargs`; None for sources and constants.
    shape
        Shape for one sample, with its batch dimension of 1; of several results, a tuple of shapes.
    sources
        Names of the sources it depends on.
    """

    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: Any
    sources: frozenset[str]
    value: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def source(cls, name: str, shape: torch.Size) -> AffineNode:
        """Return the source of a name."""
        return cls(None, (name,), {}, shape, frozenset((name,)))

    @classmethod
    def constant(cls, value: torch.Tensor) -> AffineNode:
        """Return a constant."""
        return cls(None, (), {}, value.shape, frozenset(), value.to(torch.float64))

    @classmethod
    def call(cls, function: Callable[..., Any], args: Any, kwargs: Any) -> AffineNode:
        """Return the value of an operation; its shape is found by running it on zeros."""

        def example(a: Any) -> Any:
            if not isinstance(a, AffineNode):
                return a
            return a.value if a.value is not None else a.zeros()

        result = function(*tree_map(example, args), **tree_map(example, kwargs))
        nodes = [a for a in tree_leaves((args, kwargs)) if isinstance(a, AffineNode)]
        sources = frozenset[str]().union(*(a.sources for a in nodes))
        if not isinstance(result, torch.Tensor):  # several results: getitem follows
            return cls(function, tuple(args), dict(kwargs), tuple(r.shape for r in result), sources)
        return cls(function, tuple(args), dict(kwargs), result.shape, sources)

    def zeros(self) -> Any:
        """Return zeros of the value's shape."""
        if isinstance(self.shape, torch.Size):
            return torch.zeros(self.shape, dtype=torch.float64)
        return tuple(torch.zeros(shape, dtype=torch.float64) for shape in self.shape)

    @property
    def size(self) -> int:
        """Number of entries for one sample."""
        return self.shape.numel()


class RegionOperator(LinearOperator):
    """The linear part of affine nodes as a function of their sources, all flattened.

    ``op @ x = nodes(x) − nodes(0)``; transposed products are vector–Jacobian products. Columns are evaluated
    together, in chunks. The constant part is `shift`.

    Parameters
    ----------
    sources
        Name → source node.
    nodes
        The values; their entries are stacked.
    """

    def __init__(self, sources: Mapping[str, AffineNode], nodes: Sequence[AffineNode]):
        self._sources = tuple(sources.values())
        self._nodes = tuple(nodes)
        self._order = _topological_order(nodes)
        super().__init__(np.dtype(np.float64), (sum(n.size for n in nodes), sum(s.size for s in sources.values())))
        self._zeros = tuple(source.zeros() for source in self._sources)
        with torch.no_grad():
            self._offset = self._run(*self._zeros)
        # the largest value on the way bounds the memory of one column
        entries = [n.size for n in self._order if isinstance(n.shape, torch.Size)]
        self._chunk = max(1, CHUNK_BYTES // (8 * max(entries, default=1)))

    @property
    def shift(self) -> np.ndarray:
        """Value of the nodes at zero sources."""
        return self._offset.numpy().copy()

    def _run(self, *values: torch.Tensor) -> torch.Tensor:
        known = {id(source): value for source, value in zip(self._sources, values, strict=True)}
        for node in self._order:
            if id(node) in known:
                continue
            if node.value is not None:
                known[id(node)] = node.value
                continue
            args, kwargs = tree_map(
                lambda a: known[id(a)] if isinstance(a, AffineNode) else a, (node.args, node.kwargs)
            )
            assert node.function is not None, "sources are known"
            known[id(node)] = node.function(*args, **kwargs)
        return torch.cat([known[id(node)].reshape(-1) for node in self._nodes])

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        batch = to_batch(X)
        parts = [batch.new_zeros((0, self.shape[0]))]
        with torch.no_grad():
            for rows in _chunks(batch, self._chunk):
                columns = rows.split([s.size for s in self._sources], dim=1)
                values = [c.reshape(-1, *s.shape) for c, s in zip(columns, self._sources, strict=True)]
                parts.append(torch.vmap(self._run)(*values) - self._offset)
        return to_columns(torch.cat(parts))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(np.reshape(x, (-1, 1)))[:, 0]

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        batch, pullback = to_batch(X), torch.func.vjp(self._run, *self._zeros)[1]
        parts = [batch.new_zeros((0, self.shape[1]))]
        for rows in _chunks(batch, self._chunk):
            gradients = torch.vmap(pullback)(rows)
            parts.append(torch.cat([g.reshape(len(rows), -1) for g in gradients], dim=1))
        return to_columns(torch.cat(parts))

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._rmatmat(np.reshape(x, (-1, 1)))[:, 0]


def _chunks(rows: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    return rows.split(size) if len(rows) else ()  # vmap refuses no rows


def _topological_order(nodes: Sequence[AffineNode]) -> list[AffineNode]:
    order: list[AffineNode] = []
    seen: set[int] = set()
    stack = [(node, False) for node in reversed(nodes)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((a, False) for a in tree_leaves((node.args, node.kwargs)) if isinstance(a, AffineNode))
    return order
