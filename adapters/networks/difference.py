"""How far outputs of a network are from those of another, over several batches."""

from __future__ import annotations

from torch import Tensor


class Difference:
    """Norms of a difference of outputs, and of the exact ones, where these are finite: outputs may be masked."""

    def __init__(self) -> None:
        self._missed = self._size = 0.0

    def add(self, exact: Tensor, value: Tensor) -> None:
        """Take floating-point outputs of the same shape into account."""
        known = exact.isfinite()
        wanted = exact[known].double()
        self._missed += float((value[known].double() - wanted).square().sum())
        self._size += float(wanted.square().sum())

    @property
    def norm(self) -> float:
        """``‖value − exact‖``."""
        return self._missed**0.5

    @property
    def size(self) -> float:
        """``‖exact‖``."""
        return self._size**0.5

    @property
    def relative(self) -> float:
        """``‖value − exact‖ / ‖exact‖``."""
        return float((self._missed / max(self._size, 1e-300)) ** 0.5)
