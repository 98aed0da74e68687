"""What a reduction can be asked for: methods and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np

from torchmor.engine.errors import SizeError
from torchmor.engine.points import SELECTIONS
from torchmor.engine.stages import StageChain

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


def check_sizes(chain: StageChain, state_dim: Size, points: Size | list[Size], energy_rtol: float | None) -> list[Size]:
    """Return the points of each stage of a chain, as asked.

    Raises
    ------
    SizeError
        A size is missing, or too large for its part.
    """
    if energy_rtol is None and None in (state_dim, *(points if isinstance(points, list) else [points])):
        raise SizeError(
            "expected sizes, or a tolerance to choose them by, got neither for some part: give state_dim and "
            "points, or energy_rtol=1e-3"
        )
    if isinstance(state_dim, int) and state_dim > chain.state_size:
        raise SizeError(too_large("state_dim", state_dim, chain.state_size))
    sizes = stage_sizes(points, len(chain.stages), "points")
    largest = max((stage.size for stage in chain.stages), default=0)
    if isinstance(points, int) and chain.stages and points > largest:
        raise SizeError(too_large("points", points, largest))
    for stage, size in zip(chain.stages, sizes, strict=True):
        if isinstance(points, list) and isinstance(size, int) and size > stage.size:
            raise SizeError(too_large(f"points of stage '{stage.name}'", size, stage.size))
    return sizes


def too_large(name: str, size: int, full: int) -> str:
    """Return what to say when a size is larger than the full one."""
    return f"expected {name} of at most {full}, the full size, got {size}: ask for fewer"
