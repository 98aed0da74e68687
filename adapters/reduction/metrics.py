"""How far a network's outputs are from those of another: the losses that reductions are chosen by."""

from collections.abc import Callable

import torch
from torch import Tensor

from torchmor.engine.errors import ShapeError

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


def loss(metric: Metric, output: Tensor, reference: Tensor, labels: Tensor | None = None) -> float:
    """Return the loss of a network's outputs (samples, …) against the reference's; 0 is as good, infinity useless.

    Parameters
    ----------
    metric
        As in :data:`Metric`. Classes are the largest entries along dimension 1.
    output, reference
        Outputs (samples, …).
    labels
        Classes (samples, …), for "accuracy".

    Raises
    ------
    ShapeError
        Classes are asked for, and the outputs have none.
    """
    if callable(metric):
        return float(metric(output, reference))
    if metric == "relative":
        known = reference.isfinite()  # a network may mask its output with infinity
        reference, output = reference[known].double(), output[known].double()
        value = float((output - reference).norm() / reference.norm().clamp(min=torch.finfo(torch.float64).tiny))
        return value if value == value else float("inf")
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
