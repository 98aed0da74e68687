"""What a reduction can be asked for: methods and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np

from torchmor.engine.errors import SizeError
from torchmor.engine.points import SELECTIONS

Size = int | str | None

BASES = ("pod", "balanced")
FITS = ("interpolation", "least_squares")


def check_request(
    state_dim, points, modes, basis, selection, fit, energy_rtol
) -> tuple[Size, Size | list, Size | list]:
    """Return state_dim, points and modes as plain ints and lists.

    Raises
    ------
    SizeError, ValueError
        What is asked for is impossible whatever the data.
    """
    for name, value, allowed in (("basis", basis, BASES), ("selection", selection, SELECTIONS), ("fit", fit, FITS)):
        if value not in allowed:
            raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
    if energy_rtol is not None and not (isinstance(energy_rtol, Real) and 0 <= energy_rtol < 1):
        raise SizeError(f"expected 0 ≤ energy_rtol < 1, got {energy_rtol!r}")
    state_dim, points, modes = _plain_size(state_dim), _plain(points), _plain(modes)
    return state_dim, points, modes


def _plain(sizes):
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return [_plain_size(size) for size in sizes]
    return _plain_size(sizes)


def _plain_size(size) -> Size:
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 1:
        return int(size)
    if size is None or (isinstance(size, str) and size == "full"):
        return size
    raise SizeError(f'expected sizes to be positive ints, "full" or None, got {size!r}')


def stage_sizes(sizes: Size | Sequence[Size], count: int, name: str) -> list[Size]:
    """Return one size for each stage."""
    if not isinstance(sizes, list):
        return [sizes] * count
    if len(sizes) != count:
        raise SizeError(f"expected one entry of {name} for each of the {count} stages, got {len(sizes)}: {sizes}")
    return sizes


def too_large(name: str, size: int, full: int) -> str:
    """Return what to say when a size is larger than the full one."""
    return f"expected {name} of at most {full}, the full size, got {size}: ask for fewer"
