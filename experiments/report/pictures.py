"""The pictures of an experiment on one network: what each method gives, and what a reduction keeps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmor.experiments.measure.comparison import ADEQUATE_POINTS, BATCHES, Row, layer_arguments
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.accuracy_figure import accuracy_by_method, accuracy_of_methods
from torchmor.experiments.report.figures import (
    points_by_channel,
    selected_units,
    selections_on_image,
    singular_values,
    trajectories,
    trajectory,
)
from torchmor.experiments.report.report import Picture
from torchmor.experiments.report.results import NetworkResult, Showcase
from torchmor.experiments.report.spread import Entry
from torchmor.experiments.report.verdict import PARTS


def pictures_of(network: NetworkResult, found: Sequence[Entry]) -> dict[str, Picture]:
    """Return all pictures of a network by name, in the order of the report."""
    pictures, largest = {}, max(BATCHES)
    timed = [entry for entry in found if entry.row.layer or entry.row.method == "skipped"]
    if found[0].row.layer:
        for part, words in PARTS.items():
            pictures[f"accuracy-{part}-time"] = Picture(
                accuracy_of_methods(timed, part, largest, network.heading),
                f"Accuracy against the time of the {words}: up and to the left is better. A line joins the sizes of a "
                f"method. Green: within {ADEQUATE_POINTS} points of the full network. The scale is even within one "
                "point of the full network and logarithmic beyond; the panels have time scales of their own. Thin "
                "bars: range over the seeds, where several were measured.",
            )
        if any(entry.compressed for entry in timed):
            pictures["methods-layer-time"] = Picture(
                accuracy_by_method(timed, "layer", largest),
                "The first picture again, method by method, with the sizes: r/m for reduced states and points, neurons "
                "or channels kept, or rank.",
            )
    return pictures | _pictures_of_reductions(network.showcase, [entry.row for entry in found])


def _pictures_of_reductions(showcase: Showcase, rows: Sequence[Row]) -> dict[str, Picture]:
    layers = showcase.reduced_layers
    if not layers:
        return {}
    first_method, first = next(iter(layers.items()))
    stages = list(first.points)
    of_method = [row for row in rows if row.method == first_method]
    sizes = {"state": [row.sizes["r"] for row in of_method]}
    sizes |= {stage: [row.sizes["m"] for row in of_method] for stage in stages}
    pictures = {
        "singular-values": Picture(
            singular_values(first.singular_values, sizes),
            "POD singular values of the snapshots of the state and of the nonlinearity. The faster they fall, the "
            "smaller a layer can be: what lies right of a dot is left out at that size.",
        )
    }
    for stage in stages:
        name = "points" if len(stages) == 1 else f"points-{stage}"
        pictures |= _pictures_of_points(showcase, layers, stage, name)
    parts = first.explain().parts
    sizes_in_words = ", ".join(f"{part.name} {part.reduced} of {part.full}" for part in parts)
    errors = ", ".join(
        f"{100 * layer.explain().errors['layer output']:.2g} % with {METHODS[method].words}"
        for method, layer in layers.items()
    )
    arguments = layer_arguments(showcase.full, showcase.name, showcase.inputs[:1])
    pictures["trajectories"] = Picture(
        trajectories(showcase.layer, first, arguments),
        f"The components of the state that move most, for the first validation input: the full layer, and the one "
        f"reduced by {METHODS[first_method].words} ({sizes_in_words}), both with the layer's own solver. On training "
        f"data that the reductions did not see, the layers' outputs of these sizes differ from the full one's by "
        f"{errors}.",
    )
    return pictures


def _pictures_of_points(showcase: Showcase, layers: Mapping[str, Any], stage: str, name: str) -> dict[str, Picture]:
    shape = next(iter(layers.values())).state_shape
    chosen = {method: np.asarray(layer.points[stage]) for method, layer in layers.items()}
    counts = " and ".join(dict.fromkeys(str(len(points)) for points in chosen.values()))
    total = int(np.prod(shape))
    if len(shape) == 1:
        return {
            name: Picture(
                selected_units(chosen, _variation(showcase)),
                f"The {counts} of {total} units at which each selection evaluates the nonlinearity. Points are chosen "
                "for what the others do not tell yet, so they are not simply the units that vary most.",
            )
        }
    image = showcase.inputs.float().mean(dim=(0, 1)).cpu().numpy()
    method, points = next(iter(chosen.items()))
    return {
        name: Picture(
            selections_on_image(chosen, shape, image),
            f"The {counts} of {total:,} components of the state at which each selection evaluates the nonlinearity: "
            "the number of channels at each pixel, on the mean of some validation images (grey).",
        ),
        f"{name}-by-channel": Picture(
            points_by_channel(method, points, shape),
            "The same points channel by channel: which channels matter, and where.",
        ),
    }


def _variation(showcase: Showcase) -> np.ndarray:
    """Standard deviation of each component of the full layer's state over some inputs and all times."""
    layer = showcase.layer
    arguments = layer_arguments(showcase.full, showcase.name, showcase.inputs)
    states = trajectory(layer, arguments, torch.linspace(layer.t[0], layer.t[-1], 21))
    return states.flatten(0, 1).flatten(1).std(dim=0).numpy()
