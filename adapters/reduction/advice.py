"""What is said of a reduction that hardly pays, or hangs on few samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.cost import OPERATIONS_PER_BYTE
from torchmor.adapters.reduction.adaptive_solves import NOTICED
from torchmor.engine.errors import FewSamplesWarning, LittleGainWarning
from torchmor.engine.explanation import Part

#: A reduced layer that costs more than the full one over this is warned about.
LEAST_GAIN = 1.1

#: Frames from here to the call of `reduce_network`.
_CALLER = 5


def tell_of_few_samples(parts: Sequence[Part], samples: np.ndarray) -> None:
    """Warn if there are fewer samples than reduced states, or fewer than two snapshots for each point.

    Parameters
    ----------
    parts
        What became of state and stages.
    samples
        Index (k,) of the sample of each snapshot.
    """
    state, *stages = (part.reduced if part.fate == "reduced" else 0 for part in parts)
    count, points = len(set(samples)), max(stages, default=0)
    needed = max(state, math.ceil(2 * points * count / len(samples)))
    if count < needed:
        warnings.warn(
            f"{count} calibration samples are few to fit {state} reduced states and {points} points to: on other "
            f"data, errors may be larger than stated. Give at least {math.ceil(needed / 0.8)}, of which a fifth "
            "is held out, or ask for smaller sizes",
            FewSamplesWarning,
            stacklevel=_CALLER,
        )


def tell_of_little_gain(operations: tuple[int, int], costs: tuple[float, float]) -> None:
    """Warn if the reduced layer costs hardly less than the full one.

    Parameters
    ----------
    operations, costs
        Of an evaluation of the ODE function, and of a forward pass of the layer: full and reduced.
    """
    if operations[1] >= operations[0] or costs[1] * LEAST_GAIN > costs[0]:
        warnings.warn(
            f"this reduction does not pay: an evaluation of the ODE function takes {operations[1]:,} multiply-adds "
            f"a sample, {operations[0]:,} before, and a forward pass of the layer costs {costs[1]:,.0f}, "
            f"{costs[0]:,.0f} before (multiply-adds, and {OPERATIONS_PER_BYTE} for each byte written). State and "
            "stages are small already: ask for smaller sizes, or take coarser steps of the full layer instead",
            LittleGainWarning,
            stacklevel=_CALLER,
        )


def tell_of_evaluations(evaluations: int, full: int, reduced: ReducedODELayer) -> None:
    """Warn if the adaptive solver of a reduced layer evaluates much more often than that of the full one."""
    if evaluations <= NOTICED * full:
        return
    assert reduced.explanation is not None
    steps = reduced.explanation.steps
    instead = (
        "looser tolerances may do, or a solver with fixed steps; none that were tried come as near"
        if steps is None
        else f"solver=({steps.method!r}, {steps.count}) does the same within its tolerances on held-out "
        f"calibration data (relative difference {steps.error:.2g})"
    )
    warnings.warn(
        f"the reduced layer's {reduced.method} evaluates its ODE function up to {evaluations:,} times in a forward "
        f"pass, the full layer's {full:,} times: the reduced ODE is stiffer. {instead}",
        LittleGainWarning,
        stacklevel=_CALLER,
    )
