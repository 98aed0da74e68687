"""Times that cannot be: a part takes longer than the whole that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.networks.timing import Timing

#: Times that contradict each other by less do so by noise.
NOISE = 1.1

#: Times that contradict each other are measured again, so many times in all.
MOST_MEASUREMENTS = 3


class SkippedLayer(nn.Identity):
    """Nothing in the place of an ODE layer: the state stays as it is."""

    def forward(self, y0: Tensor, u: Any = None, t: Any = None) -> Tensor:
        """Return the state y0 (batch, …)."""
        return y0


def contradictions(
    layer: Mapping[int, Timing], network: Mapping[int, Timing], without: Mapping[int, Timing]
) -> tuple[str, ...]:
    """Return what is impossible about the times of a network, by batch size, in words.

    Parameters
    ----------
    layer
        Of its ODE layer.
    network
        Of the whole.
    without
        Of the network without the ODE layer; empty if it is not known.
    """
    parts = {"its ODE layer": layer, "the network without it": without}
    return tuple(
        f"at batch {batch} the whole network takes less time than {part}"
        for batch, whole in network.items()
        for part, times in parts.items()
        if batch in times and NOISE * whole.wall_s < times[batch].wall_s
    )
