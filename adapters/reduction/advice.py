"""What is said of a reduction that hardly pays, or hangs on few samples."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.reduction.adaptive_solves import NOTICED
from torchmor.engine.errors import FewSamplesWarning, LittleGainWarning
from torchmor.engine.explanation import Part
from torchmor.engine.findings import Clock

#: A reduced layer that is not so many times as fast as the full one is warned about.
LEAST_GAIN = 1.1

_ADAPTERS = Path(__file__).parents[1]


def callers_level() -> int:
    """Return the `stacklevel` with which a warning of the calling function names the user's line, outside of here."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_ADAPTERS):
        frame, level = frame.f_back, level + 1
    return level


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
            stacklevel=callers_level(),
        )


def pays(clock: Clock) -> bool:
    """Whether the reduced layer is clearly faster than the full one, with whatever solver, at one of the batches."""
    gains = [gain for _, gain in _least_gains(clock).values()]
    return not gains or max(gains) >= LEAST_GAIN


def _least_gains(clock: Clock) -> dict[int, tuple[str, float]]:
    """Return, for each batch, the solver with which the full layer is fastest, and the gain over that."""
    found = {batch: clock.gains("layer", batch) for batch in clock.batches}
    return {batch: min(gains.items(), key=lambda gain: gain[1]) for batch, gains in found.items() if gains}


def tell_of_little_gain(operations: tuple[int, int], clock: Clock) -> None:
    """Warn if the reduced layer does not pay.

    Parameters
    ----------
    operations
        Of an evaluation of the ODE function: full and reduced.
    clock
        Times of the layer.
    """
    if pays(clock):
        return
    times = " and ".join(
        f"{1 / gain:.2g} times as long as the full layer with {solver} at batch {batch}"
        for batch, (solver, gain) in _least_gains(clock).items()
    )
    warnings.warn(
        f"this reduction does not pay: the reduced layer takes {times}; an evaluation of the ODE function takes "
        f"{operations[1]:,} multiply-adds a sample, {operations[0]:,} before. Ask for smaller sizes, or for fewer "
        'steps, as solver=("midpoint", 1), or take coarser steps of the full layer instead',
        LittleGainWarning,
        stacklevel=callers_level(),
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
        stacklevel=callers_level(),
    )
