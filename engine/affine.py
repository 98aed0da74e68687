"""Affine maps of named sources, opaque or as matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sps
from scipy.sparse.linalg import LinearOperator

from torchmor.engine.errors import ShapeError

Matrix: TypeAlias = np.ndarray | sps.sparray | LinearOperator

#: Rows of an opaque map are transposed products of unit vectors, in chunks of about this many bytes.
CHUNK_BYTES = 64 * 2**20

#: Rows with more than this share of nonzero entries are faster as a dense matrix: a normalised convolution's are.
DENSE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Lift:
    """A source written in new coordinates: ``source = offset + matrix @ new``.

    Parameters
    ----------
    matrix
        Array (size, new size).
    offset
        Array (size,), or None for zero.
    """

    matrix: np.ndarray
    offset: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The affine map ``linear @ [s_1; s_2; …] + shift`` of the named sources s_1, s_2, ….

    The linear part is a matrix (dense or sparse), or opaque: a SciPy LinearOperator that is known by its
    products only, so that a convolution on a large state never becomes a matrix.

    Parameters
    ----------
    sources
        Names of the sources, in the order of their columns.
    sizes
        Size of each source.
    linear
        Array, sparse array or LinearOperator (size, Σ sizes), float64.
    shift
        Array (size,), float64.

    Raises
    ------
    ShapeError
        The linear part or the shift does not fit the sizes.
    """

    sources: tuple[str, ...]
    sizes: tuple[int, ...]
    linear: Matrix
    shift: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.shift), sum(self.sizes))
        if len(self.sources) != len(self.sizes) or tuple(self.linear.shape) != expected:
            raise ShapeError(
                f"an affine map of {dict(zip(self.sources, self.sizes, strict=False))} with {expected[0]} rows "
                f"needs a linear part of shape {expected}, got {tuple(self.linear.shape)}"
            )

    @classmethod
    def from_blocks(cls, blocks: Mapping[str, np.ndarray | sps.sparray], shift: np.ndarray | None = None) -> AffineMap:
        """Build the map ``Σ blocks[s] @ s + shift`` from one matrix per source."""
        blocks = dict(blocks)
        rows = len(shift) if shift is not None else next(iter(blocks.values())).shape[0]
        shift = np.zeros(rows) if shift is None else np.asarray(shift, dtype=np.float64)
        sizes = tuple(block.shape[1] for block in blocks.values())
        return cls(tuple(blocks), sizes, _hstack(list(blocks.values()), rows), shift)

    @classmethod
    def stacked(cls, maps: Sequence[AffineMap]) -> AffineMap:
        """Stack the rows of maps of few rows: the values of the first, then those of the second, …."""
        blocks = [affine.blocks() for affine in maps]
        widths = {s: n for affine in maps for s, n in zip(affine.sources, affine.sizes, strict=True)}
        rows = {
            s: np.concatenate([dense(own.get(s, np.zeros((m.size, n)))) for m, own in zip(maps, blocks, strict=True)])
            for s, n in widths.items()
        }
        return cls.from_blocks(rows, np.concatenate([affine.shift for affine in maps]))

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.shift)

    @property
    def is_opaque(self) -> bool:
        """Whether the linear part is known by its products only."""
        return isinstance(self.linear, LinearOperator)

    def apply(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Evaluate the map at columns: values[s] is (size of s, k) or (size of s, 1); returns (size, k)."""
        if not self.sources:
            return self.shift[:, np.newaxis]
        return self.linear @ self._stack(values) + self.shift[:, np.newaxis]

    def derivative(self, tangents: Mapping[str, np.ndarray]) -> np.ndarray:
        """Apply the linear part to the tangents of some sources (absent: zero); returns (size, k)."""
        present = [s for s in self.sources if s in tangents]
        k = tangents[present[0]].shape[1] if present else 1
        if not present:
            return np.zeros((self.size, k))
        zeros = {s: np.zeros((n, 1)) for s, n in zip(self.sources, self.sizes, strict=True)}
        return self.linear @ self._stack({**zeros, **{s: tangents[s] for s in present}})

    def adjoint(self, cotangent: np.ndarray) -> dict[str, np.ndarray]:
        """Apply the transposed linear part to columns (size, k); returns (size of s, k) per source s."""
        if not self.sources:
            return {}
        return dict(zip(self.sources, self._split(_transposed_product(self.linear, cotangent)), strict=True))

    def restrict(self, dofs: np.ndarray) -> AffineMap:
        """Keep the rows ``dofs`` (any order, repeats allowed), as a matrix where the map was opaque, mostly sparse."""
        dofs = np.asarray(dofs, dtype=np.int64)
        if self.is_opaque:
            unique, inverse = np.unique(dofs, return_inverse=True)
            linear = _rows(self.linear, unique)[inverse]
        else:
            linear = self.linear[dofs]
        return replace(self, linear=linear, shift=self.shift[dofs])

    def blocks(self) -> dict[str, np.ndarray | sps.sparray]:
        """Matrix (size, size of s) of each source s; an opaque map is evaluated row by row."""
        linear = self.restrict(np.arange(self.size)).linear if self.is_opaque else self.linear
        bounds = np.cumsum((0, *self.sizes))
        return {s: linear[:, a:b] for s, a, b in zip(self.sources, bounds, bounds[1:], strict=False)}

    def used(self, source: str) -> np.ndarray:
        """Sorted entries of ``source`` that the map reads: the nonzero columns of its matrix."""
        if source not in self.sources:
            return np.zeros(0, dtype=np.int64)
        block = self.blocks()[source]
        if isinstance(block, np.ndarray):
            return np.flatnonzero(np.any(block != 0, axis=0))
        return np.unique(block.tocoo().coords[1][block.tocoo().data != 0]).astype(np.int64)

    def select(self, columns: Mapping[str, np.ndarray]) -> AffineMap:
        """Keep some entries of some sources; a source of which none is left is dropped."""
        blocks = {s: block[:, columns[s]] if s in columns else block for s, block in self.blocks().items()}
        return AffineMap.from_blocks({s: b for s, b in blocks.items() if b.shape[1]}, self.shift)

    def project(self, test: np.ndarray) -> AffineMap:
        """Return ``testᵀ (linear · + shift)`` for a test basis (size, r), with a dense linear part."""
        if not self.sources:
            return replace(self, linear=np.zeros((test.shape[1], 0)), shift=test.T @ self.shift)
        return replace(self, linear=_transposed_product(self.linear, test).T, shift=test.T @ self.shift)

    def substitute(self, lifts: Mapping[str, Lift]) -> AffineMap:
        """Write the sources named in ``lifts`` in their new coordinates, and fold them into one matrix.

        Law: ``map.substitute(lifts).apply(new) == map.apply({s: offset + matrix @ new[s]})``.
        """
        if not any(s in lifts for s in self.sources):
            return self
        bounds = np.cumsum((0, *self.sizes))
        columns = None if self.is_opaque else self.blocks()
        blocks, shift = {}, self.shift
        for s, a, b in zip(self.sources, bounds, bounds[1:], strict=False):
            lift = lifts.get(s)
            if columns is not None:
                blocks[s] = columns[s] if lift is None else columns[s] @ lift.matrix
                if lift is not None and lift.offset is not None:
                    shift = shift + columns[s] @ lift.offset
                continue
            matrix = np.eye(b - a) if lift is None else lift.matrix
            offset = np.zeros(b - a) if lift is None or lift.offset is None else lift.offset
            padded = np.zeros((bounds[-1], matrix.shape[1] + 1))
            padded[a:b] = np.column_stack((matrix, offset))
            product = self.linear @ padded
            blocks[s], shift = product[:, :-1], shift + product[:, -1]
        return AffineMap.from_blocks(blocks, shift)

    def __neg__(self) -> AffineMap:
        return replace(self, linear=-self.linear, shift=-self.shift)

    def _stack(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        (k,) = np.broadcast_shapes(*(values[s].shape[1:] for s in self.sources))  # 0 beats 1
        return np.concatenate(
            [np.broadcast_to(values[s], (n, k)) for s, n in zip(self.sources, self.sizes, strict=True)]
        )

    def _split(self, stacked: np.ndarray) -> list[np.ndarray]:
        return np.split(stacked, np.cumsum(self.sizes)[:-1])


def dense(matrix: np.ndarray | sps.sparray) -> np.ndarray:
    """Return a matrix as an array."""
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def accumulate(totals: dict[str, Any], terms: Mapping[str, Any]) -> None:
    """Add what each source has to its total."""
    for source, term in terms.items():
        totals[source] = totals[source] + term if source in totals else term


def by_products(
    shape: tuple[int, int], product: Callable[[np.ndarray], np.ndarray], transposed: Callable[[np.ndarray], np.ndarray]
) -> LinearOperator:
    """Return the opaque matrix of given products with a column, or with several."""
    return LinearOperator(
        shape, matvec=product, rmatvec=transposed, matmat=product, rmatmat=transposed, dtype=np.float64
    )


def _transposed_product(linear: Matrix, columns: np.ndarray) -> np.ndarray:
    return linear.rmatmat(columns) if isinstance(linear, LinearOperator) else linear.T @ columns


def _rows(linear: LinearOperator, dofs: np.ndarray) -> np.ndarray | sps.csr_array:
    chunk = max(1, CHUNK_BYTES // (8 * sum(linear.shape)))
    parts = [sps.csr_array((0, linear.shape[1]))]
    for start in range(0, len(dofs), chunk):
        chosen = dofs[start : start + chunk]
        units = np.zeros((linear.shape[0], len(chosen)))
        units[chosen, np.arange(len(chosen))] = 1.0
        parts.append(sps.csr_array(linear.rmatmat(units).T))
    rows = sps.csr_array(sps.vstack(parts))
    return rows.toarray() if rows.nnz > DENSE_SHARE * np.prod(rows.shape) else rows


def _hstack(blocks: list[np.ndarray | sps.sparray], rows: int) -> np.ndarray | sps.csr_array:
    if not blocks:
        return np.zeros((rows, 0))
    if all(sps.issparse(block) for block in blocks):
        return sps.csr_array(sps.hstack(blocks))
    return np.hstack([dense(block) for block in blocks])
