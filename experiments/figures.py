"""The pictures of a report, as PNG files in memory."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from torchmor.experiments.comparison import BATCHES, Row, layer_wall_s
from torchmor.experiments.label_placement import place_labels

# distinguishable without colour too: every kind has a marker of its own
_KINDS = {
    ("full", True): ("#222222", "s", "full, own solver"),
    ("full", False): ("#8a8a8a", "D", "full, coarse solver"),
    ("reduced", True): ("#d95f02", "o", "reduced to r/m, own solver"),
    ("reduced", False): ("#1b6ca8", "^", "reduced to r/m, coarse solver"),
}

_ACCURACIES = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 96, 97, 98, 98.5, 99, 99.5, 99.8)


def accuracy_against_time(rows: Sequence[Row], batch: int = max(BATCHES)) -> bytes:
    """Draw test accuracy against the time of the ODE layer, every row labelled."""
    figure, axes = _figure(9.5, 6.2)
    shown = [row for row in rows if row.kind != "skipped"]
    for (kind, own), (colour, marker, words) in _KINDS.items():
        of_kind = [row for row in shown if (row.kind, row.own_solver) == (kind, own)]
        times = [1e3 * layer_wall_s(row, batch) for row in of_kind]
        axes.plot(times, [row.accuracy for row in of_kind], marker, color=colour, label=words, markersize=7)
    for row in rows:
        if row.kind == "skipped":
            axes.axhline(row.accuracy, color="#222222", linestyle=":", linewidth=1, label="ODE layer skipped")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"time of the ODE layer at batch {batch}, ms (logarithmic)")
    axes.set_ylabel("accuracy on test data, % (logarithm of the error)")
    axes.margins(0.14, 0.14)
    # good networks differ little: equal ratios of errors get equal room
    axes.set_yscale("function", functions=(_logarithm_of_error, lambda value: 100 - 10**-value))
    low, high = axes.get_ylim()
    axes.set_yticks([accuracy for accuracy in _ACCURACIES if low <= accuracy <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="lower right", framealpha=0.95)
    place_labels(
        axes,
        [(1e3 * layer_wall_s(row, batch), row.accuracy) for row in shown],
        [_short(row) for row in shown],
        [_KINDS[row.kind, row.own_solver][0] for row in shown],
    )
    return _png(figure)


def singular_values(spectra: Mapping[str, np.ndarray], sizes: Mapping[str, Sequence[int]]) -> bytes:
    """Draw the POD singular values of the state and of the stages, with the sizes that were tried."""
    figure, axes = _figure(9.5, 4.6)
    colours = ("#222222", "#d95f02", "#1b6ca8", "#5a9e3c")
    for i, (name, values) in enumerate(spectra.items()):
        relative = values / values[0]
        colour = colours[i % len(colours)]
        axes.semilogy(np.arange(1, len(values) + 1), relative, color=colour, label=_part(name))
        tried = sorted({size for size in sizes.get(name, ()) if size <= len(values)})
        axes.semilogy(tried, relative[np.array(tried, dtype=int) - 1], "o", color=colour, markersize=6)
        for size in tried:
            axes.annotate(
                str(size),
                (size, relative[size - 1]),
                xytext=(0, 7 if i else -14),
                textcoords="offset points",
                ha="left" if i else "right",
                color=colour,
                fontsize=9,
            )
    axes.set_xlabel("number of the singular value (dots: the sizes in the table)")
    axes.set_ylabel("singular value / largest one")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right")
    return _png(figure)


def interpolation_points(points: np.ndarray, shape: tuple[int, int, int], background: np.ndarray) -> bytes:
    """Draw where a stage is evaluated: for each channel, and summed over the channels.

    Parameters
    ----------
    points
        Indices (m,) into the flattened stage.
    shape
        (channels, height, width) of the stage.
    background
        Image (height, width) to draw upon.
    """
    channels, height, width = shape
    chosen = np.zeros(channels * height * width, dtype=int)
    chosen[points] = 1
    chosen = chosen.reshape(shape)
    columns = math.ceil(math.sqrt(channels))
    lines = math.ceil(channels / columns)
    figure = Figure(figsize=(9.5, 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.08))

    axes = left.subplots()
    axes.imshow(background, cmap="Greys", vmin=0, vmax=2.2 * max(float(background.max()), 1e-12))
    counts = chosen.sum(axis=0)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", color="#b34700", fontweight="bold")
    axes.set_xlabel("column of the image, pixels")
    axes.set_ylabel("row of the image, pixels")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.suptitle("points at each pixel, all channels together\n(grey: the mean image)", fontsize=10)

    grid = right.subplots(lines, columns, squeeze=False)
    colours = ListedColormap(["#eeeeee", "#d95f02"])
    for channel, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if channel < channels:
            axes.imshow(chosen[channel], cmap=colours, vmin=0, vmax=1)
            axes.set_title(f"channel {channel}: {chosen[channel].sum()}", fontsize=8, pad=3)
    right.suptitle(f"the same {len(points)} of {chosen.size:,} components by channel", fontsize=10)
    return _png(figure)


def trajectories(t: np.ndarray, full: np.ndarray, reduced: np.ndarray, components: Mapping[str, int]) -> bytes:
    """Draw some components of the state in time, of the full and of the reduced layer.

    Parameters
    ----------
    t
        Times (k,).
    full, reduced
        States (k, n).
    components
        Which to draw: what each is called → its index.
    """
    figure, axes = _figure(9.5, 4.6)
    colours = ("#222222", "#d95f02", "#1b6ca8", "#5a9e3c", "#8a4fae", "#a8791b")
    for i, (words, component) in enumerate(components.items()):
        colour = colours[i % len(colours)]
        axes.plot(t, full[:, component], color=colour, linewidth=1.8, label=words)
        axes.plot(t, reduced[:, component], color=colour, linewidth=1.8, linestyle="--")
    axes.plot([], [], color="#555555", label="full")
    axes.plot([], [], color="#555555", linestyle="--", label="reduced")
    axes.set_xlabel("time t of the ODE (no unit)")
    axes.set_ylabel("state")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _png(figure)


def _logarithm_of_error(accuracy):
    return -np.log10(np.maximum(100 - np.asarray(accuracy, dtype=float), 0.1))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _part(name: str) -> str:
    return "state" if name == "state" else f"stage {name}"


def _short(row: Row) -> str:
    if row.kind == "full":
        return row.solver.split(",")[0]
    sizes = f"{row.state}/{'+'.join(map(str, row.points))}"
    return sizes if row.own_solver else f"{sizes}, {row.solver}"
