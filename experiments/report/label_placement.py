"""Labels of points in a picture that hide neither a point nor each other."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

_RADII = (9, 13, 18, 24, 31, 39, 48, 58, 70, 85)  # in typographic points
_ANGLES = range(0, 360, 15)

_Point = tuple[float, float] | np.ndarray


def place_labels(
    axes: Axes,
    at: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    others: Sequence[tuple[float, float]] = (),
) -> list[Bbox]:
    """Write a text beside each point, with a line to it where there is no room next to it.

    Greedy, from the top down: each label takes the nearest place that is free, or else the one with the least overlap.

    Parameters
    ----------
    axes
        Finished but for the labels: limits, scales, legend and other texts are final.
    at, texts, colours
        Points in data coordinates, and their labels.
    others
        Points without labels, which are not to be hidden.

    Returns
    -------
    list of Bbox
        The labels' boxes in pixels, in the order of `texts`.
    """
    figure: Any = axes.figure
    if not isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):  # else this was done for other axes
        figure.draw_without_rendering()  # positions are known afterwards, and must not move
        figure.set_layout_engine("none")
    pixels = axes.transData.transform([*at, *others])
    pixel = figure.dpi / 72
    legend = axes.get_legend()
    taken = [legend.get_window_extent()] if legend else []
    taken += [text.get_window_extent() for text in axes.texts]
    inside = axes.get_window_extent()
    boxes: dict[int, Bbox] = {}
    lines: list[Path] = []
    for i in sorted(range(len(at)), key=lambda i: (-at[i][1], at[i][0])):
        best: Any = None
        trial = _annotate(axes, at[i], texts[i], colours[i], 0, 0)
        size = trial.get_window_extent().size
        trial.remove()
        for radius, angle in itertools.product(_RADII, _ANGLES):
            box = _box(pixels[i], size, pixel * radius, angle).padded(2 * pixel)
            wide = box.padded(3 * pixel)
            hides = sum(box.overlaps(other) for other in taken) + sum(wide.contains(*point) for point in pixels)
            line = Path([pixels[i], _nearest(box, pixels[i])])
            crosses = sum(line.intersects_bbox(other, filled=False) for other in taken)
            crosses += sum(other.intersects_bbox(box, filled=False) for other in lines)
            distances = [math.dist(point, _nearest(box, point)) for point in pixels]
            mistaken = sum(distance < 1.3 * distances[i] for distance in distances) - 1
            outside = not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
            cost = 100 * outside + 10 * hides + 2 * crosses + mistaken
            if best is None or cost < best[0]:
                best = cost, radius, angle, line
            if cost == 0:
                break
        _, radius, angle, line = best
        lines.append(line)
        label = _annotate(axes, at[i], texts[i], colours[i], radius, angle, line=radius > _RADII[0])
        label.update_positions(figure.canvas.get_renderer())
        boxes[i] = Text.get_window_extent(label)  # without the line
        taken.append(boxes[i].padded(2 * pixel))
    return [boxes[i] for i in range(len(at))]


def _box(point: _Point, size: _Point, radius: float, angle: float) -> Bbox:
    """Return where a label of this size in pixels lies, as `_annotate` aligns it."""
    width, height = size
    dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
    horizontal, vertical = _alignment(angle)
    x0 = point[0] + dx - {"left": 0, "center": width / 2, "right": width}[horizontal]
    y0 = point[1] + dy - {"bottom": 0, "center": height / 2, "top": height}[vertical]
    return Bbox.from_bounds(x0, y0, width, height)


def _alignment(angle: float) -> tuple[str, str]:
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    horizontal = "left" if cosine > 0.25 else "right" if cosine < -0.25 else "center"
    return horizontal, "center" if abs(sine) < 0.25 else "bottom" if sine > 0 else "top"


def _nearest(box: Bbox, point: _Point) -> tuple[float, float]:
    """Return the point of a box that is nearest to a point outside."""
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _annotate(
    axes: Axes, point: tuple[float, float], text: str, colour: str, radius: float, angle: float, line: bool = False
) -> Annotation:
    dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
    horizontal, vertical = _alignment(angle)
    arrow = {"arrowstyle": "-", "color": colour, "alpha": 0.45, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        text,
        point,
        xytext=(dx, dy),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=8.5,
        color=colour,
        arrowprops=arrow if line else None,
    )
