"""An explanation as a picture: the curve of the search, the singular values, and where the stages are evaluated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from torchmor.engine.explanation import Explanation, Trial

#: Singular values below this share of the largest are rounding errors, or nearly.
_SMALLEST = 1e-8

_CHOICE, _FULL, _REDUCED = "#d95f02", "#222222", "#1b6ca8"


def drawn(explanation: Explanation) -> Figure:
    """Return the picture of an explanation, with three panels."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    curve, spectra, places = figure.subplots(1, 3)
    _draw_curve(curve, explanation)
    _draw_singular_values(spectra, explanation)
    _draw_points(places, explanation)
    return figure


def _draw_curve(axes: Axes, explanation: Explanation) -> None:
    axes.set_title("search: cost and loss")
    if not explanation.curve:
        _say(axes, "sizes were given:\nnothing was searched")
        return
    finite = [trial for trial in explanation.curve if math.isfinite(trial.cost + trial.loss)]
    own, coarse = explanation.curve[0], [trial for trial in finite[1:] if trial.sizes == "full"]
    reduced = [trial for trial in finite if trial.sizes != "full"]
    groups: tuple[tuple[str, Sequence[Trial], str, str, float], ...] = (
        (f"full, its own solver ({own.solver})", [own], "D", _FULL, 6),
        ("full, coarse steps", coarse, "s", _FULL, 5),
        ("reduced", reduced, "o", _REDUCED, 3),
        ("chosen", [] if explanation.chosen is None else [explanation.chosen], "*", _CHOICE, 15),
    )
    frontier = [trial for trial in explanation.frontier if math.isfinite(trial.cost + trial.loss)]
    axes.step(*_shares(frontier, own), where="post", color=_REDUCED, alpha=0.5, label="no other is better")
    for label, trials, marker, colour, size in groups:
        if trials:
            axes.plot(*_shares(trials, own), marker, color=colour, markersize=size, label=label)
    for trial in coarse:
        at, words = (trial.cost / own.cost, trial.loss), trial.solver
        axes.annotate(words, at, xytext=(3, 4), textcoords="offset points", fontsize=7, color=_FULL, rotation=45)
    losses = [trial.loss for trial in finite]
    least = min((abs(loss) for loss in losses if loss), default=1.0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=least)  # the full network itself loses nothing
    axes.set_ylim(1.5 * min(losses) - 0.5 * least, 3 * max(losses) + least)
    axes.set_xlabel("cost of the layer / that of the full one")
    axes.set_ylabel(f"loss ({explanation.metric})")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _shares(trials: Sequence[Trial], own: Trial) -> tuple[list[float], list[float]]:
    """Return the costs relative to the full layer's, and the losses."""
    return [trial.cost / own.cost for trial in trials], [trial.loss for trial in trials]


def _draw_singular_values(axes: Axes, explanation: Explanation) -> None:
    axes.set_title("singular values and sizes")
    sizes = {part.name: part.reduced for part in explanation.parts if part.fate == "reduced"}
    spectra = {name: np.array(values) for name, values in explanation.singular_values.items() if any(values)}
    if not spectra:
        _say(axes, "none were computed")
        return
    for name, values in spectra.items():
        relative = values[values > _SMALLEST * values[0]] / values[0]
        (line,) = axes.loglog(np.arange(1, len(relative) + 1), relative, label=name)
        size = sizes.get(name, 0)
        if 1 <= size <= len(relative):
            axes.loglog(size, relative[size - 1], "o", color=line.get_color())
            axes.annotate(str(size), (size, relative[size - 1]), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel("number of the singular value (dots: the chosen sizes)")
    axes.set_ylabel("singular value / the largest")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _draw_points(axes: Axes, explanation: Explanation) -> None:
    sizes = {part.name: part.full for part in explanation.parts}
    points = {name: found for name, found in explanation.points.items() if found}
    axes.set_title("evaluated points")
    if not points:
        _say(axes, "no stage was reduced to points")
        return
    grid = explanation.state_shape[-2:]
    on_grid = {name: found for name, found in points.items() if sizes[name] % math.prod(grid) == 0}
    if len(explanation.state_shape) > 1 and on_grid:
        _draw_picture(axes, on_grid, grid)
    else:
        _draw_marks(axes, points, sizes)


def _draw_picture(axes: Axes, points: Mapping[str, Sequence[int]], grid: Sequence[int]) -> None:
    """Draw how many points of stages (channels, *grid) fall at each place."""
    height, width = grid
    counts = Counter(point % (height * width) for found in points.values() for point in found)
    picture = np.array([counts[place] for place in range(height * width)]).reshape(height, width)
    shown = axes.imshow(picture, cmap="Blues", vmin=0)
    colours = axes.figure.colorbar(shown, ax=axes, shrink=0.8, ticks=MaxNLocator(integer=True))
    colours.set_label(f"points of {', '.join(points)}, in all channels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"evaluated points on the grid of {height} × {width}")


def _draw_marks(axes: Axes, points: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> None:
    for row, (name, found) in enumerate(points.items()):
        axes.plot(np.array(found) / sizes[name], np.full(len(found), row), "|", markersize=14, color=_REDUCED)
    axes.set_yticks(range(len(points)), [f"{name}: {len(found)} of {sizes[name]:,}" for name, found in points.items()])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("component / size of the stage")


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()
