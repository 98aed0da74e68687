"""Labels of points in a picture that hide neither a point nor each other."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_RADII = (9, 13, 18, 24, 31, 39, 48, 58, 70, 85)  # in typographic points
_ANGLES = range(0, 360, 15)


def place_labels(
    axes: Axes, at: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]
) -> list[Bbox]:
    """Write a text beside each point, with a line to it where there is no room next to it.

    Greedy, from the top down: each label takes the nearest place that is free, or else the one with the least overlap.

    Parameters
    ----------
    axes
        Finished but for the labels: limits, scales and legend are final.
    at, texts, colours
        Points in data coordinates, and their labels.

    Returns
    -------
    list of Bbox
        The labels' boxes in pixels, in the order of `texts`.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # positions are known afterwards, and must not move
    figure.set_layout_engine("none")
    pixels = axes.transData.transform(at)
    pixel = figure.dpi / 72
    taken = [axes.get_legend().get_window_extent()] if axes.get_legend() else []
    inside = axes.get_window_extent()
    boxes: dict[int, Bbox] = {}
    lines: list[Path] = []
    for i in sorted(range(len(at)), key=lambda i: (-at[i][1], at[i][0])):
        best = None
        for radius, angle in itertools.product(_RADII, _ANGLES):
            label = _annotate(axes, at[i], texts[i], colours[i], radius, angle)
            box = label.get_window_extent().padded(2 * pixel)
            label.remove()
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
                best = cost, radius, angle, box, line
            if cost == 0:
                break
        _, radius, angle, boxes[i], line = best
        lines.append(line)
        _annotate(axes, at[i], texts[i], colours[i], radius, angle, line=radius > _RADII[0])
        taken.append(boxes[i])
    return [boxes[i] for i in range(len(at))]


def _nearest(box: Bbox, point) -> tuple[float, float]:
    """Return the point of a box that is nearest to a point outside."""
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _annotate(axes, point, text, colour, radius, angle, line=False) -> Annotation:
    dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
    arrow = {"arrowstyle": "-", "color": colour, "alpha": 0.45, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
    return axes.annotate(
        text,
        point,
        xytext=(dx, dy),
        textcoords="offset points",
        ha="left" if dx > 2 else "right" if dx < -2 else "center",
        va="center" if abs(dy) < 5 else "bottom" if dy > 0 else "top",
        fontsize=8.5,
        color=colour,
        arrowprops=arrow if line else None,
    )
