"""What a reduction can be asked for: methods and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np

from torchmor.engine.bases import Spectrum
from torchmor.engine.errors import SizeError
from torchmor.engine.points import SELECTIONS
from torchmor.engine.stages import StageChain

Size = int | Literal["full"] | None

BASES = ("pod", "balanced")
FITS = ("interpolation", "least_squares")


@dataclass(frozen=True)
class ReductionRequest:
    """What a reduction is asked for; the parameters are those of :meth:`SnapshotReductor.reduce`.

    Sizes are kept as plain ints and lists.

    Parameters
    ----------
    asked
        The request whose missing sizes a search chose, as :meth:`filled` says; None where nobody searched.

    Raises
    ------
    SizeError, ValueError
        What is asked for is impossible whatever the data.
    """

    state_dim: Size = None
    points: Size | Sequence[Size] = None
    modes: Size | Sequence[Size] = None
    basis: str = "pod"
    selection: str = "deim"
    fit: str = "interpolation"
    energy_rtol: float | None = None
    asked: ReductionRequest | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("basis", BASES), ("selection", SELECTIONS), ("fit", FITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        rtol = self.energy_rtol
        if rtol is not None and not (isinstance(rtol, Real) and 0 <= rtol < 1):
            raise SizeError(f"expected 0 ≤ energy_rtol < 1, got {rtol!r}")
        object.__setattr__(self, "state_dim", _plain_size(self.state_dim))
        for name in ("points", "modes"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    @property
    def method(self) -> dict[str, str]:
        """Names of basis, selection and fit."""
        return {"basis": self.basis, "selection": self.selection, "fit": self.fit}

    @property
    def one_size(self) -> bool:
        """Whether the points are one size for all stages."""
        return not isinstance(self.points, list)

    @property
    def is_complete(self) -> bool:
        """Whether there is a size for every part, or a tolerance to choose those that are missing by."""
        points = self.points if isinstance(self.points, list) else [self.points]
        return self.energy_rtol is not None or None not in (self.state_dim, *points)

    def filled(self, state_dim: Size, points: Size | Sequence[Size]) -> ReductionRequest:
        """Return the request with sizes of a search, which keeps those that were asked for."""
        return replace(self, state_dim=state_dim, points=points, asked=self)

    def how(self, size: Size, stage: int | None = None) -> str:
        """Return how a size of the state, or of the stage of this number, came about, in words."""
        if size is None:
            return f"energy_rtol={self.energy_rtol:g}"
        asked = self if self.asked is None else self.asked
        points = asked.points
        given = asked.state_dim if stage is None else points[stage] if isinstance(points, list) else points
        return "as asked" if given is not None else "chosen by the search"

    def energy_rank(self, spectrum: Spectrum) -> int:
        """Return the size of a part for which none was given."""
        assert self.energy_rtol is not None  # by check_sizes
        return spectrum.energy_rank(self.energy_rtol)


def _plain(sizes: Any) -> Size | list[Size]:
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return [_plain_size(size) for size in sizes]
    return _plain_size(sizes)


def _plain_size(size: Any) -> Size:
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 1:
        return int(size)
    if size is None or (isinstance(size, str) and size == "full"):
        return None if size is None else "full"
    raise SizeError(f'expected sizes to be positive ints, "full" or None, got {size!r}')


def stage_sizes(sizes: Size | Sequence[Size], count: int, name: str) -> list[Size]:
    """Return one size for each stage."""
    if sizes is None or isinstance(sizes, int | str):
        return [sizes] * count
    if len(sizes) != count:
        raise SizeError(f"expected one entry of {name} for each of the {count} stages, got {len(sizes)}: {sizes}")
    return list(sizes)


def check_sizes(chain: StageChain, request: ReductionRequest) -> list[tuple[Size, Size]]:
    """Return the points and the modes of each stage of a chain, as asked.

    Raises
    ------
    SizeError
        A size is missing, or too large for its part, or there is not one for each stage.
    """
    state_dim, points = request.state_dim, request.points
    if not request.is_complete:
        raise SizeError(
            "expected sizes, or a tolerance to choose them by, got neither for some part: give state_dim and "
            "points, or energy_rtol=1e-3"
        )
    sizes = check_not_too_large(chain, state_dim, points)
    return list(zip(sizes, stage_sizes(request.modes, len(chain.stages), "modes"), strict=True))


def check_not_too_large(chain: StageChain, state_dim: Size, points: Size | Sequence[Size]) -> list[Size]:
    """Return the points of each stage of a chain, as asked, which may be incomplete.

    Raises
    ------
    SizeError
        A size is too large for its part, or there is not one for each stage.
    """
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
