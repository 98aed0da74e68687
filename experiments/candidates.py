"""What is compared: one network made faster by every method, at every level of compression."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from torchmor.adapters.files import with_layers
from torchmor.adapters.reduce import NetworkReductor
from torchmor.experiments.baselines import prune_neurons, prune_structure, truncate_weights
from torchmor.experiments.data.labelled import DataSet

#: Methods of model order reduction, with what they ask of `reduce_network`.
SELECTIONS = {"pod-deim": "deim", "pod-qdeim": "qdeim", "pod-ei-greedy": "ei_greedy"}


#: The layer's own solver takes long: only every third level of a method is measured with it too.
LEVELS_PER_OWN = 3


@dataclass(frozen=True)
class Levels:
    """How strongly networks are compressed, the largest sizes first.

    Parameters
    ----------
    sizes
        Reduced states r and points m of the reductions; the first r's are those of POD–Galerkin too.
    kept
        Neurons that pruning keeps: channels of a convolution, units of a linear layer.
    ranks
        Of truncated weights.
    dense_ranks
        Of the truncated dense matrix; empty where the weight is dense anyway.
    weights
        Names of the layers within the ODE function whose weights are truncated; None for all.
    calibration
        Training samples that reductions and pruning see.
    """

    sizes: Sequence[tuple[int, int]]
    kept: Sequence[int]
    ranks: Sequence[int]
    dense_ranks: Sequence[int]
    weights: Sequence[str] | None = None
    calibration: int = 2000


@dataclass(frozen=True)
class Job:
    """A network to make.

    Parameters
    ----------
    method, sizes
        What it is.
    make
        Makes it.
    own_solver
        Whether it is measured with the layer's own solver too.
    """

    method: str
    sizes: Mapping[str, int]
    make: Callable[[], nn.Module]
    own_solver: bool = True


class SkippedLayer(nn.Identity):
    """Nothing in the place of an ODE layer: the state stays as it is."""

    def forward(self, y0: Tensor, u=None, t=None) -> Tensor:
        """Return the state y0 (batch, …)."""
        return y0


class Compression:
    """Makes a trained network faster in every way that is compared.

    What several networks share is computed once, when it is first needed.

    Parameters
    ----------
    network
        The trained network.
    name
        Name of its ODE layer.
    data
        Its training part calibrates.
    levels
        How strongly to compress.
    seed
        Of the choice of calibration samples.
    """

    def __init__(self, network: nn.Module, name: str, data: DataSet, levels: Levels, seed: int):
        self.network, self.name, self.levels = network, name, levels
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: levels.calibration]
        self.calibration = data.train.inputs[chosen]
        self.reductor = NetworkReductor(network, name, self.calibration, seed=seed, progress=False)

    def jobs(self) -> Iterator[Job]:
        """Yield the networks to make, by method."""
        network, name, levels = self.network, self.name, self.levels
        yield Job("skipped", {}, lambda: with_layers(network, {name: SkippedLayer()}))
        for method, selection in SELECTIONS.items():
            for i, (r, m) in enumerate(levels.sizes):
                yield Job(method, {"r": r, "m": m}, self._reduce(r, m, selection), i % LEVELS_PER_OWN == 0)
        for i, r in enumerate(dict.fromkeys(r for r, _ in levels.sizes)):
            yield Job("pod-galerkin", {"r": r}, self._reduce(r, "full", "deim"), i % LEVELS_PER_OWN == 0)

        example = self.calibration[:2]
        together = (
            ("pruning", "kept", levels.kept, lambda sizes: prune_neurons(network, name, self.calibration, sizes)),
            ("svd", "rank", levels.ranks, lambda sizes: truncate_weights(network, name, sizes, weights=levels.weights)),
            (
                "svd-dense",
                "rank",
                levels.dense_ranks,
                lambda sizes: truncate_weights(network, name, sizes, dense=True, example=example),
            ),
            ("torch-pruning", "kept", levels.kept, lambda sizes: prune_structure(network, name, example, sizes)),
        )
        for method, size, sizes, function in together:
            made = cache(lambda function=function, sizes=sizes: function(sizes))
            for i, value in enumerate(sizes):
                yield Job(method, {size: value}, lambda made=made, i=i: made()[i], i % LEVELS_PER_OWN == 0)

    def showcase(self) -> dict[str, nn.Module]:
        """Return the network reduced with each selection of points, to one of the middle sizes."""
        r, m = self.levels.sizes[len(self.levels.sizes) // 2]
        return {method: self._reduce(r, m, selection)() for method, selection in SELECTIONS.items()}

    def _reduce(self, r: int, m: int | str, selection: str) -> Callable[[], nn.Module]:
        return lambda: self.reductor.reduce(state_dim=r, points=m, selection=selection)
