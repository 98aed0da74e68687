"""Whether an operation is affine or bilinear in its arguments: found by running it, not by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchmor.adapters.solving.torch_private import tree_flatten, tree_unflatten
from torchmor.adapters.tracing.affine_regions import AffineNode
from torchmor.engine.errors import UnsupportedOperationError

#: A bilinear operation is tabulated, so that its numbers of entries may have at most this product.
TABULATED_ENTRIES = 2**24

_SCALES = (1e-6, 1.0, 1e6)
_TOLERANCE = 1e-9


class Probe:
    """An operation as a function of those of its arguments that depend on the state, the input or the time."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any):
        self._function = function
        leaves, self._spec = tree_flatten((args, kwargs))
        self._leaves: list[Any] = [a.value if isinstance(a, AffineNode) and a.value is not None else a for a in leaves]
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, AffineNode)]

    @property
    def arguments(self) -> list[AffineNode]:
        """The dependent arguments, in their order; one that occurs twice is there twice."""
        return [self._leaves[i] for i in self._places]

    def __call__(self, *values: torch.Tensor) -> Any:
        """Run the operation at values of the arguments."""
        leaves = list(self._leaves)
        for place, value in zip(self._places, values, strict=True):
            leaves[place] = value
        args, kwargs = tree_unflatten(leaves, self._spec)
        return self._function(*args, **kwargs)

    def is_affine(self, moved: Sequence[int] | None = None) -> bool:
        """Return whether the operation is jointly affine in some of the arguments, by default all of them.

        Of an affine f, ``f(a + b) - f(a) - f(b) + f(0) == 0``; it is tried at values of several scales, so that
        functions with kinks or steps do not pass.
        """
        moved = range(len(self._places)) if moved is None else moved
        generator = torch.Generator().manual_seed(0)

        def drawn(scale: float) -> list[torch.Tensor]:
            return [
                scale * torch.randn(x.shape, dtype=x.dtype, generator=generator) if i in moved else fixed[i]
                for i, x in enumerate(self.arguments)
            ]

        def sums(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
            return [x + y if i in moved else x for i, (x, y) in enumerate(zip(a, b, strict=True))]

        fixed = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in self.arguments]
        zeros = [0 * x if i in moved else x for i, x in enumerate(fixed)]
        try:
            for scale in _SCALES:
                a, b = drawn(scale), drawn(scale)
                values = [tree_flatten(self(*point))[0] for point in (sums(a, b), a, b, zeros)]
                if not all(_cancel(*parts) for parts in zip(*values, strict=True)):
                    return False
        except (RuntimeError, IndexError, NotImplementedError):  # undefined there: an affine function is so nowhere
            return False
        return True

    def is_bilinear(self) -> bool:
        """Return whether the operation is affine in each of two arguments, the other one fixed."""
        real = all(x.dtype == torch.float64 for x in self.arguments)
        return len(self._places) == 2 and real and self.is_affine([0]) and self.is_affine([1])

    def table(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return which entries of two arguments a bilinear operation multiplies: ``Σ_k weights[k] a[i[k]] b[j[k]]``.

        Returns
        -------
        i, j
            Indices of entries, of the arguments flattened.
        weights
            Tensor (products, …), each of the shape of the operation's value.

        Raises
        ------
        UnsupportedOperationError
            The table would be too large.
        """
        a, b = self.arguments
        zero = [x.zeros() for x in (a, b)]
        value = self(*zero)
        if a.size * b.size * value.numel() > TABULATED_ENTRIES:
            raise UnsupportedOperationError(
                f"it multiplies {a.size} components with {b.size}, too many to tell which with which; write it as "
                "products of matrices (torch.matmul, torch.einsum)"
            )

        def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x, y = x.reshape(a.shape), y.reshape(b.shape)
            return self(x, y) - self(x, zero[1]) - self(zero[0], y) + value

        units = [torch.eye(x.size, dtype=torch.float64) for x in (a, b)]
        weights = torch.stack([torch.stack([product(x, y) for y in units[1]]) for x in units[0]])
        i, j = (weights.reshape(a.size, b.size, -1) != 0).any(2).nonzero(as_tuple=True)
        return i, j, weights[i, j]


def _cancel(total: Any, a: Any, b: Any, zero: Any) -> bool:
    if not isinstance(total, torch.Tensor) or not (total.is_floating_point() or total.is_complex()):
        return _same(total, zero) and _same(a, zero) and _same(b, zero)
    size = max((float(x.abs().max()) for x in (total, a, b, zero) if x.numel()), default=0.0)
    error = (total - a - b + zero).abs()
    return bool((error <= _TOLERANCE * size).all())


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)
