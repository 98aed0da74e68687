"""How far a network's outputs are from those of another: the losses that reductions are chosen by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import ShapeError, UnsupportedOperationError

#: "relative": ``‖output − reference‖ / ‖reference‖``; "agreement": share of samples whose class is another; "accuracy":
#: how much smaller the share of right classes is; or a function of (output, reference), both (samples, …).
Metric = str | Callable[[Tensor, Tensor], float]

METRICS = ("relative", "agreement", "accuracy")


def check_metric(metric: Metric) -> Metric:
    """Return the metric.

    Raises
    ------
    ValueError
        There is none of this name.
    """
    if metric in METRICS or callable(metric):
        return metric
    raise ValueError(f"expected metric to be one of {', '.join(METRICS)} or a function, got {metric!r}")


def loss(metric: Metric, output: Any, reference: Any, labels: Tensor | None = None) -> float:
    """Return the loss of a network's outputs (samples, …) against the reference's; 0 is as good, infinity useless.

    Parameters
    ----------
    metric
        As in :data:`Metric`. Classes are the largest entries along dimension 1.
    output, reference
        Outputs (samples, …); for "relative" and a function also several, as a tuple or a dictionary.
    labels
        Classes (samples, …), for "accuracy".

    Raises
    ------
    ShapeError
        Classes are asked for, and the outputs have none.
    UnsupportedOperationError
        The outputs are not of the kind that the metric needs.
    """
    if callable(metric):
        return float(metric(output, reference))
    if metric == "relative":
        reference, output = (_entries(one) for one in (reference, output))
        known = reference.isfinite()  # a network may mask its output with infinity
        reference, output = reference[known], output[known]
        value = float((output - reference).norm() / reference.norm().clamp(min=torch.finfo(torch.float64).tiny))
        return value if value == value else float("inf")
    if not isinstance(reference, Tensor):
        raise UnsupportedOperationError(
            f'expected a network whose output is one Tensor for metric="{metric}", got {type(reference).__name__}: use '
            'metric="relative", a function, or a module around the network that returns the part that counts'
        )
    if reference.ndim < 2 or reference.shape[1] < 2:
        raise ShapeError(
            f'expected outputs (batch, classes, …) for metric="{metric}", got {tuple(reference.shape)}: use '
            'metric="relative", or a function'
        )
    if not output.isfinite().all() and reference.isfinite().all():
        return 1.0
    classes, expected = output.argmax(1), reference.argmax(1)
    if metric == "agreement":
        return float((classes != expected).double().mean())
    assert labels is not None, "NetworkReductor insists on them"
    return float(expected.eq(labels).double().mean() - classes.eq(labels).double().mean())


def _entries(output: Any) -> Tensor:
    parts = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not parts:
        raise UnsupportedOperationError(
            f'expected floating-point outputs for metric="relative", got {type(output).__name__} without any: give '
            "metric=lambda output, reference: …"
        )
    return torch.cat([part.flatten().double() for part in parts])
