"""Pictures of reduced layers, as PNG files in memory: what was chosen, and what it does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from torchmor.adapters.solving.solve_settings import SolvingLayer
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.drawing import empty_figure, png

#: Singular values below this share of the largest are rounding errors, or nearly.
SMALLEST = 1e-8

_COLOURS = ("#222222", "#d95f02", "#1b6ca8", "#5a9e3c", "#8a4fae", "#a8791b")


def singular_values(spectra: Mapping[str, np.ndarray], sizes: Mapping[str, Sequence[int]]) -> bytes:
    """Draw the singular values of the state and of the stages, with the sizes that were tried.

    Parameters
    ----------
    spectra
        "state" or name of the stage → singular values, the largest first.
    sizes
        The same names → sizes in the table.
    """
    figure = empty_figure(9.5, 4.6)
    axes = figure.subplots()
    for i, (name, values) in enumerate(spectra.items()):
        relative = values[values > SMALLEST * values[0]] / values[0]
        colour = _COLOURS[i % len(_COLOURS)]
        axes.loglog(np.arange(1, len(relative) + 1), relative, color=colour, label=_part(name))
        tried = sorted({size for size in sizes.get(name, ()) if size <= len(relative)})
        axes.loglog(tried, relative[np.array(tried, dtype=int) - 1], "o", color=colour, markersize=6)
        for size in tried:
            axes.annotate(
                str(size),
                (size, relative[size - 1]),
                xytext=(4, 5) if i else (-4, -6),
                textcoords="offset points",
                ha="left" if i else "right",
                va="bottom" if i else "top",
                color=colour,
                fontsize=9,
            )
    axes.set_xlabel("number of the singular value, logarithmic (dots: the sizes in the table)")
    axes.set_ylabel("singular value / largest one")
    longest = max(map(len, spectra.values()))
    axes.xaxis.set_major_locator(FixedLocator([2**power for power in range(longest.bit_length())]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left")
    return png(figure)


def interpolation_points(points: np.ndarray, shape: tuple[int, int, int], background: np.ndarray) -> bytes:
    """Draw where a stage is evaluated: summed over the channels, and for each channel.

    Parameters
    ----------
    points
        Indices (m,) into the flattened stage.
    shape
        (channels, height, width) of the stage.
    background
        Image to draw upon.
    """
    chosen = _chosen(points, shape)
    figure = empty_figure(9.5, 4.9)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.08))
    left, right = halves
    _on_image(left.subplots(), chosen, background, "#b34700")
    left.suptitle("points at each pixel, all channels together\n(grey: the mean image)", fontsize=10)
    _by_channel(right, chosen, METHODS["pod-deim"].colour)
    right.suptitle(f"the same {len(points)} of {chosen.size:,} components by channel", fontsize=10)
    return png(figure)


def selections_on_image(
    selections: Mapping[str, np.ndarray], shape: tuple[int, int, int], background: np.ndarray
) -> bytes:
    """Draw where methods evaluate a stage, summed over the channels, side by side.

    Parameters
    ----------
    selections
        Method → indices (m,) into the flattened stage.
    shape
        (channels, height, width) of the stage.
    background
        Image to draw upon; it is stretched over the stage's pixels.
    """
    figure = empty_figure(11.5, 4.6)
    panels = figure.subplots(1, len(selections), squeeze=False)[0]
    for i, (axes, (method, points)) in enumerate(zip(panels, selections.items(), strict=True)):
        chosen = _chosen(points, shape)
        _on_image(axes, chosen, background, METHODS[method].colour, rows=i == 0)
        used = np.count_nonzero(chosen.sum(axis=0))
        axes.set_title(
            f"{METHODS[method].words}\n{len(points)} points, at {used} of {shape[1] * shape[2]} pixels", fontsize=10
        )
    return png(figure)


def points_by_channel(method: str, points: np.ndarray, shape: tuple[int, int, int]) -> bytes:
    """Draw where a method evaluates a stage, channel by channel.

    Parameters
    ----------
    method
        The method.
    points
        Indices (m,) into the flattened stage.
    shape
        (channels, height, width) of the stage.
    """
    chosen = _chosen(points, shape)
    columns = _columns(shape[0])
    figure = empty_figure(9.5, 1.35 * -(-shape[0] // columns) + 0.5)
    _by_channel(figure, chosen, METHODS[method].colour)
    figure.suptitle(
        f"{METHODS[method].words}: {len(points)} of {chosen.size:,} components, by channel and pixel", fontsize=10
    )
    return png(figure)


def selected_units(selections: Mapping[str, np.ndarray], variation: np.ndarray) -> bytes:
    """Draw which units methods evaluate, in the order of how much the units' states vary.

    Parameters
    ----------
    selections
        Method → indices (m,) of units.
    variation
        How much the state of each unit varies (n,).
    """
    figure = empty_figure(9.5, 2.2 + 0.55 * len(selections))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 0.5 * len(selections)))
    order = np.argsort(-variation, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(1, len(order) + 1)
    above.fill_between(np.arange(1, len(order) + 1), variation[order], step="mid", color="#b5b5b5", linewidth=0)
    above.set_ylim(bottom=0)
    above.set_ylabel("standard\ndeviation")
    above.set_title("how much the state of each unit varies, over validation sequences and times", fontsize=10)
    for line, (method, points) in enumerate(selections.items()):
        below.eventplot(
            place[points], lineoffsets=-line, linelengths=0.8, linewidths=1.8, colors=METHODS[method].colour
        )
    below.set_yticks(
        [-line for line in range(len(selections))],
        [f"{METHODS[method].words}, {len(points)}" for method, points in selections.items()],
    )
    below.set_xlim(0.5, len(order) + 0.5)
    below.set_title("units at which the nonlinearity is evaluated (a bar each)", fontsize=10)
    below.set_xlabel(f"all {len(order)} units, from the one that varies most to the one that varies least")
    return png(figure)


def trajectories(full: SolvingLayer, reduced: SolvingLayer, arguments: Sequence[Tensor], count: int = 6) -> bytes:
    """Draw the components of the state that move most, of the full layer and of a reduced one.

    Parameters
    ----------
    full, reduced
        The layers; both are solved by the full one's own solver.
    arguments
        Of one call of the layers: an initial state (1, …), and inputs if they take any.
    count
        Number of components.
    """
    t = torch.linspace(full.t[0], full.t[-1], 41)
    own = {"method": full.method, "options": full.options}
    states = [trajectory(layer, arguments, t, **own)[:, 0].flatten(1).numpy() for layer in (full, reduced)]
    moving = np.argsort(-np.ptp(states[0], axis=0), kind="stable")[:count]
    figure = empty_figure(9.5, 4.6)
    axes = figure.subplots()
    for i, (component, words) in enumerate(zip(moving, _places(moving, arguments[0].shape[1:]), strict=True)):
        colour = _COLOURS[i % len(_COLOURS)]
        axes.plot(t, states[0][:, component], color=colour, linewidth=1.8, label=words)
        axes.plot(t, states[1][:, component], color=colour, linewidth=1.8, linestyle="--")
    handles, _ = axes.get_legend_handles_labels()
    kinds = [Line2D([], [], color="#555555", linestyle=style, label=kind) for kind, style in _KINDS.items()]
    axes.legend(handles=[*handles, *kinds], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set_xlabel("time t of the ODE (no unit)")
    axes.set_ylabel("state")
    axes.grid(alpha=0.25)
    return png(figure)


def trajectory(layer: SolvingLayer, arguments: Sequence[Tensor], t: Tensor, **settings: Any) -> Tensor:
    """Return the states (len(t), batch, …) of a layer, with other settings of its solver if there are any."""
    own = layer.settings
    try:
        layer.settings = replace(own, output="trajectory", **settings)
        with torch.no_grad():
            return layer(*arguments, t=t).cpu()
    finally:
        layer.settings = own


_KINDS: dict[str, Any] = {"full": "-", "reduced": "--"}


def _places(components: np.ndarray, shape: Sequence[int]) -> list[str]:
    if len(shape) != 3:
        return [f"unit {component}" for component in components]
    places = zip(*np.unravel_index(components, shape), strict=True)
    return [f"channel {channel}, pixel ({row}, {column})" for channel, row, column in places]


def _chosen(points: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    chosen = np.zeros(math.prod(shape), dtype=int)
    chosen[points] = 1
    return chosen.reshape(shape)


def _on_image(axes: Axes, chosen: np.ndarray, background: np.ndarray, colour: str, rows: bool = True) -> None:
    """Draw the number of chosen components at each pixel."""
    _, height, width = chosen.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(background, cmap="Greys", vmin=0, vmax=2.6 * max(float(background.max()), 1e-12), extent=extent)
    counts = chosen.sum(axis=0)
    size = min(10.0, 110 / max(height, width))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color=colour,
                fontweight="bold",
                fontsize=size,
            )
    axes.set_xlabel("column of the state, pixels")
    if rows:
        axes.set_ylabel("row of the state, pixels")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _columns(channels: int) -> int:
    return math.ceil(math.sqrt(channels)) if channels < 12 else 8


def _by_channel(figure: Figure | SubFigure, chosen: np.ndarray, colour: str) -> None:
    channels = len(chosen)
    columns = math.ceil(math.sqrt(channels)) if isinstance(figure, SubFigure) else _columns(channels)
    grid = figure.subplots(math.ceil(channels / columns), columns, squeeze=False)
    colours = ListedColormap(["#eeeeee", colour])
    for channel, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if channel < channels:
            axes.imshow(chosen[channel], cmap=colours, vmin=0, vmax=1)
            axes.set_title(f"channel {channel}: {chosen[channel].sum()}", fontsize=8, pad=3)


def _part(name: str) -> str:
    return "state" if name == "state" else f"nonlinearity (stage {name})"
