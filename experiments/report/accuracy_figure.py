"""The main picture of a comparison: accuracy against time."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from torchmor.experiments.measure.comparison import ADEQUATE_POINTS, BATCHES, Row, layer_wall_s
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.drawing import empty_figure, png
from torchmor.experiments.report.label_placement import place_labels
from torchmor.experiments.report.spread import Entry

FULL, GREY = "#222222", "#8a8a8a"

_ACCURACIES = (0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 96, 97, 98, 98.5, 99, 99.5, 99.8)

# of the two-sided logarithmic axis, in points
_DIFFERENCES = (10, 5, 3, 2, 1, 0.5, 0, -0.5, -1, -2, -3, -5, -10, -20, -40, -80)

# of a decade, where the axis spans at least this ratio
_SUBDIVISIONS = {300: (1,), 10: (1, 2, 5), 4: (1, 2, 3, 5, 7), 0: (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)}

_PARTS = {"layer": "the ODE layer", "network": "the whole network"}


def accuracy_against_time(rows: Sequence[Row], batch: int = max(BATCHES)) -> bytes:
    """Draw test accuracy against the time of the ODE layer, every row labelled: for a comparison of one method.

    Rows with impossible times are left out, but for the first.
    """
    figure = empty_figure(9.5, 6.2)
    axes = figure.subplots()
    shown = [row for row in rows if row.method != "skipped" and (row is rows[0] or not row.impossible)]
    kinds = {
        ("full", True): (FULL, "s", "full, own solver"),
        ("full", False): (GREY, "D", "full, coarse solver"),
        ("reduced", True): ("#d95f02", "o", "reduced to r/m, own solver"),
        ("reduced", False): ("#1b6ca8", "^", "reduced to r/m, coarse solver"),
    }

    def kind(row: Row) -> tuple[str, bool]:
        return "reduced" if row.ours else row.method, row.own_solver

    for of_this, (colour, marker, words) in kinds.items():
        of_kind = [row for row in shown if kind(row) == of_this]
        times = [1e3 * layer_wall_s(row, batch) for row in of_kind]
        axes.plot(times, [row.accuracy for row in of_kind], marker, color=colour, label=words, markersize=7)
    for row in rows:
        if row.method == "skipped":
            axes.axhline(row.accuracy, color=FULL, linestyle=":", linewidth=1, label="ODE layer skipped")
    axes.margins(0.14, 0.14)
    _time_axis(axes, "layer", batch)
    axes.set_ylabel("accuracy on test data, % (logarithm of the error)")
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
        [_short(row) if row.method == "full" else _size_and_solver(row) for row in shown],
        [kinds[kind(row)][0] for row in shown],
    )
    return png(figure)


def accuracy_of_methods(found: Sequence[Entry], part: str, batch: int = max(BATCHES), title: str = "") -> bytes:
    """Draw test accuracy against a time for all methods: own solver and coarse solver side by side.

    The accuracy of a row is that of the full network plus the mean difference over the seeds, and thin bars are the
    range of these differences: so rows of one seed and of several compare. Rows with impossible times are left out, but
    for the first.

    Parameters
    ----------
    found
        Of :func:`~torchmor.experiments.report.spread.entries`; the first is the full network with its own solver.
    part
        "layer" or "network": whose time.
    batch
        The batch size.
    title
        Title of the picture.
    """
    found = [entry for entry in found if entry is found[0] or not entry.row.impossible]
    groups = _groups(found, part)
    figure = empty_figure(11.5 if len(groups) > 1 else 9.0, 6.9)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    full = [entry for entry in found if entry.row.method == "full" and getattr(entry.row, part)]
    labelled = []
    for axes, (title, of_group) in zip(panels, groups.items(), strict=True):
        axes.set_title(title, fontsize=11)
        for method in METHODS:
            of_method = [entry for entry in of_group if entry.row.method == method]
            _curve(axes, of_method, method, lambda entry: _milliseconds(entry, part, batch))
        # beside coarse solvers the own one may be so slow that all else would shrink to a corner
        far = of_group and not of_group[0].row.own_solver
        labelled.append([entry for entry in full if not (far and entry.row.own_solver)])
        skipped = [entry for entry in found if entry.row.method == "skipped"]
        _references(axes, [*labelled[-1], *skipped], part, batch)
        if far:
            axes.text(
                0.985,
                0.975,
                f"full network, own solver: {_milliseconds(found[0], part, batch):.3g} ms →",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=9,
                color=FULL,
            )
    limits = _scales(panels, found, 0.045)
    for axes in panels:
        _time_axis(axes, part, batch)
    panels[0].set_ylabel("accuracy on test data, %")
    right = panels[-1].twinx()
    _difference_scale(right, *limits)
    right.yaxis.set_major_locator(FixedLocator([tick for tick in _DIFFERENCES if limits[0] <= tick <= limits[1]]))
    right.yaxis.set_major_formatter(FuncFormatter(_signed))
    right.set_ylabel("points against the full network")
    columns = 5 if len(groups) > 1 else 4
    _legend(figure, [entry.row.method for group in groups.values() for entry in group], columns)
    for axes, of_group, of_full in zip(panels, groups.values(), labelled, strict=True):
        place_labels(
            axes,
            [(_milliseconds(entry, part, batch), entry.difference.mean) for entry in of_full],
            [_short(entry.row) for entry in of_full],
            [FULL] * len(of_full),
            [(_milliseconds(entry, part, batch), entry.difference.mean) for entry in of_group],
        )
    return png(figure)


def accuracy_by_method(found: Sequence[Entry], part: str, batch: int = max(BATCHES)) -> bytes:
    """Draw the same with a panel for each method, whose sizes are labelled; all others are grey behind it."""
    compressed = [entry for entry in found if entry.compressed and getattr(entry.row, part)]
    methods = [method for method in METHODS if any(entry.row.method == method for entry in compressed)]
    columns = min(len(methods), 3)
    lines = -(-len(methods) // columns)
    figure = empty_figure(11.5, 0.9 + 3.1 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)

    def time(entry: Entry) -> float:
        return _milliseconds(entry, part, batch)

    for axes in grid.flat[len(methods) :]:
        axes.set_axis_off()
    for axes, method in zip(grid.flat, methods, strict=False):
        axes.set_title(METHODS[method].words, fontsize=11, color=METHODS[method].colour, fontweight="bold")
        axes.plot(
            [time(entry) for entry in compressed],
            [entry.difference.mean for entry in compressed],
            ".",
            color="#cccccc",
            markersize=4,
        )
        _references(axes, found, part, batch)
        for own in (True, False):
            of_method = [entry for entry in compressed if (entry.row.method, entry.row.own_solver) == (method, own)]
            _curve(axes, of_method, method, time, own)
    _scales(grid.flat[: len(methods)], found, 0.075)
    for i, axes in enumerate(grid.flat[: len(methods)]):
        _time_axis(axes, part, batch, words=False)
        axes.tick_params(labelbottom=i + columns >= len(methods), labelleft=i % columns == 0)
    figure.supxlabel(_time_words(part, batch), fontsize=10)
    figure.supylabel("accuracy on test data, %", fontsize=10)
    colour = "#555555"
    handles = [
        Line2D([], [], color=colour, marker="o", markerfacecolor="white", linestyle="--", label="own solver"),
        Line2D([], [], color=colour, marker="o", label="coarse solver"),
        *_reference_handles(),
        Line2D([], [], color="#cccccc", marker=".", linestyle="none", label="the other methods"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    full = [entry for entry in found if entry.row.method == "full" and getattr(entry.row, part)]
    for axes, method in zip(grid.flat, methods, strict=False):
        of_method = [entry for entry in compressed if entry.row.method == method]
        coarse = [entry for entry in of_method if not entry.row.own_solver] or of_method
        place_labels(
            axes,
            [(time(entry), entry.difference.mean) for entry in coarse],
            [_size(entry.row) for entry in coarse],
            [METHODS[method].colour] * len(coarse),
            [(time(entry), entry.difference.mean) for entry in (*of_method, *full) if entry not in coarse],
        )
    return png(figure)


def _groups(found: Sequence[Entry], part: str) -> dict[str, list[Entry]]:
    """Return the compressed networks by kind of solver; title → entries."""
    compressed = [entry for entry in found if entry.compressed and getattr(entry.row, part)]
    own = [entry for entry in compressed if entry.row.own_solver]
    coarse = [entry for entry in compressed if not entry.row.own_solver]
    groups = {}
    if own or not coarse:
        groups[f"compressed networks with the layer's own solver, {found[0].row.solver}"] = own
    if coarse:
        solvers = " or ".join(dict.fromkeys(entry.row.solver for entry in coarse))
        groups[f"compressed networks with {solvers}"] = coarse
    return groups


def _milliseconds(entry: Entry, part: str, batch: int) -> float:
    return 1e3 * getattr(entry.row, part)[batch].wall_s


def _curve(
    axes: Axes, of_method: Sequence[Entry], method: str, time: Callable[[Entry], float], hollow: bool = False
) -> None:
    """Draw the sizes of a method, joined, with the ranges over seeds."""
    look = METHODS[method]
    times = [time(entry) for entry in of_method]
    axes.plot(
        times,
        [entry.difference.mean for entry in of_method],
        color=look.colour,
        marker=look.marker,
        markersize=7 if look.marker == "*" else 6,
        markerfacecolor="white" if hollow else look.colour,
        linestyle="--" if hollow else "-",
        linewidth=1.2,
        alpha=0.9,
    )
    several = [entry for entry in of_method if entry.difference.seeds > 1]
    axes.vlines(
        [time(entry) for entry in several],
        [entry.difference.low for entry in several],
        [entry.difference.high for entry in several],
        color=look.colour,
        linewidth=0.9,
        alpha=0.5,
    )


def _references(axes: Axes, found: Sequence[Entry], part: str, batch: int) -> None:
    """Draw the full network with its solvers, the one without its layer, and the band of what is good enough."""
    axes.axhspan(-ADEQUATE_POINTS, 0, color="#eef3ec", zorder=0)
    for entry in found:
        if entry.row.method == "skipped":
            axes.axhline(entry.difference.mean, color=FULL, linestyle=":", linewidth=1.1)
        if entry.row.method == "full" and getattr(entry.row, part):
            time = _milliseconds(entry, part, batch)
            axes.vlines(time, entry.difference.low, entry.difference.high, color=FULL, linewidth=0.9, alpha=0.5)
            filled = FULL if entry.row.own_solver else "white"
            axes.plot(time, entry.difference.mean, "s", color=FULL, markerfacecolor=filled, markersize=6, zorder=3)


def _scales(panels: Iterable[Axes], found: Sequence[Entry], gap: float) -> list[float]:
    """Set the accuracies that all panels share, and return the limits of the differences to the full network.

    The scale is even within a point of the full network, and logarithmic beyond; ticks are at least so far apart, as a
    share of its length.
    """
    shown = [entry for entry in found if entry.row.method == "skipped" or entry.row.layer]
    low = 1.35 * min(-1.0, *(entry.difference.low for entry in shown))
    high = 0.25 + 1.1 * max(0.3, *(entry.difference.high for entry in shown))
    accuracy = found[0].accuracy.mean
    for axes in panels:
        _difference_scale(axes, low, high)
        axes.yaxis.set_major_locator(FixedLocator([tick - accuracy for tick in _ticks(accuracy, low, high, gap)]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{accuracy + value:.3g}"))
        axes.grid(alpha=0.2, which="major")
    return [low, high]


def _difference_scale(axes: Axes, low: float, high: float) -> None:
    axes.set_yscale("symlog", linthresh=1, linscale=1.1)
    axes.set_ylim(low, high)
    axes.yaxis.set_minor_locator(NullLocator())


def _ticks(accuracy: float, low: float, high: float, gap: float) -> list[float]:
    """Return round accuracies that are well apart on the scale, those near the full network first."""

    def place(tick: float) -> float:
        difference = tick - accuracy
        return difference if abs(difference) <= 1 else math.copysign(1 + math.log10(abs(difference)), difference)

    gap *= place(accuracy + high) - place(accuracy + low)
    chosen: list[float] = []
    for step, near in ((1.0, 3.0), (0.5, 1.0), (5.0, 25.0), (10.0, 100.0)):
        for i in range(int(100 / step) + 1):
            tick = i * step
            free = all(abs(place(tick) - place(other)) > gap for other in chosen)
            if free and abs(tick - accuracy) <= near and low <= tick - accuracy <= high:
                chosen.append(tick)
    return chosen


def _time_axis(axes: Axes, part: str, batch: int, words: bool = True) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.1)
    low, high = axes.get_xlim()
    few = next(subs for least, subs in _SUBDIVISIONS.items() if high / low >= least)
    axes.xaxis.set_major_locator(LogLocator(subs=few, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if words:
        axes.set_xlabel(_time_words(part, batch))


def _time_words(part: str, batch: int) -> str:
    return f"time of {_PARTS[part]} at batch {batch}, ms (logarithmic)"


def _legend(figure: Figure, methods: Sequence[str], columns: int) -> None:
    handles = [
        Line2D([], [], color=METHODS[method].colour, marker=METHODS[method].marker, label=METHODS[method].words)
        for method in METHODS
        if method in methods
    ]
    figure.legend(
        handles=[*_reference_handles(), *handles], loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def _reference_handles() -> list[Line2D]:
    square: dict[str, Any] = {"color": FULL, "marker": "s", "linestyle": "none"}
    return [
        Line2D([], [], **square, label="full network, own solver"),
        Line2D([], [], **square, markerfacecolor="white", label="full network, coarse solver"),
        Line2D([], [], color=FULL, linestyle=":", label="ODE layer skipped"),
    ]


def _logarithm_of_error(accuracy: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(100 - np.asarray(accuracy, dtype=float), 0.1))


def _signed(points: float, _: object = None) -> str:
    return f"{points:+g}".replace("-", "−") if points else "0"


def _short(row: Row) -> str:
    return row.solver if row.own_solver else row.solver.removesuffix(" steps").removesuffix(" step")


def _size(row: Row) -> str:
    return "/".join(map(str, row.sizes.values()))


def _size_and_solver(row: Row) -> str:
    return _size(row) if row.own_solver else f"{_size(row)}, {row.solver}"
