"""What is compared: one network made faster by every method, at every level of compression."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import nn

from torchmor.adapters.layers.placing import with_layers
from torchmor.adapters.reduction.network_reductor import NetworkReductor
from torchmor.adapters.solving.solve_settings import ADAPTIVE_METHODS
from torchmor.adapters.solving.steps import Steps, solved_by
from torchmor.adapters.tuning.distillation import distill
from torchmor.experiments.baselines import prune_neurons, prune_structure, truncate_weights
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.contradictions import SkippedLayer

#: Methods of model order reduction, with what they ask of `reduce_network`.
CLASSIC = {"basis": "pod", "fit": "interpolation"}
REDUCTIONS = {
    "pod-deim": {**CLASSIC, "selection": "deim"},
    "pod-qdeim": {**CLASSIC, "selection": "qdeim"},
    "pod-ei-greedy": {**CLASSIC, "selection": "ei_greedy"},
    "fitted": {"basis": "balanced", "selection": "omp", "fit": "least_squares"},
}

#: Reductions without points.
GALERKIN = {"pod-galerkin": "pod", "balanced-galerkin": "balanced"}


def method_of(names: Mapping[str, str]) -> str:
    """Return the method that a reduction was made by, of the names of basis, selection and fit in its explanation.

    Raises
    ------
    KeyError
        It is none of those that are compared.
    """
    for method, arguments in REDUCTIONS.items():
        if dict(names) == arguments:
            return method
    raise KeyError(f"expected a method of {', '.join(REDUCTIONS)}, got {dict(names)}")


#: EI-greedy takes long for more points.
GREEDY_POINTS = 256

#: Distillation takes about so many steps of gradient descent, with batches of this size.
DISTILLATION_STEPS, DISTILLATION_BATCH = 7500, 128

#: An adaptive solver takes long: only every third level of a reduction is measured with it too, and no network that
#: keeps the state large.
LEVELS_PER_ADAPTIVE = 3


@dataclass(frozen=True)
class Distillation:
    """A reduction that is distilled: r reduced states, m points, and the solver that it is trained and measured with.

    Parameters
    ----------
    solver
        None for that of the other compressed networks.
    """

    r: int
    m: int
    solver: Steps | None = None

    def __str__(self) -> str:
        return f"{self.r}/{self.m}" + (f" with {self.solver}" if self.solver else "")


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
    distilled
        Reductions of each network, by its key, that are distilled on all training inputs.
    teacher
        Steps of the full network that teaches; None for its own solver.
    epochs
        Most epochs of a distillation.
    """

    sizes: Sequence[tuple[int, int]]
    kept: Sequence[int]
    ranks: Sequence[int]
    dense_ranks: Sequence[int]
    weights: Sequence[str] | None = None
    calibration: int = 2000
    distilled: Mapping[str, Sequence[Distillation]] = field(default_factory=dict)
    teacher: Steps | None = None
    epochs: int = 200

    def in_words(self) -> dict[str, Any]:
        """Return the levels for a table of settings."""
        distilled = {key: [str(one) for one in several] for key, several in self.distilled.items()}
        how = (
            f"{DISTILLATION_STEPS:,} steps with batches of {DISTILLATION_BATCH}, at most {self.epochs} epochs; "
            "from random numbers for the first seed only"
        )
        return asdict(self) | {
            "distilled": distilled,
            "distillation": how,
            "teacher": str(self.teacher or "own solver"),
        }


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
    solver
        The only solver that it is measured with; None for the usual ones.
    """

    method: str
    sizes: Mapping[str, int]
    make: Callable[[], nn.Module]
    own_solver: bool = True
    solver: Steps | None = None


class Compression:
    """Makes a trained network faster in every way that is compared.

    What several networks share is computed once, when it is first needed.

    Parameters
    ----------
    key
        Of the network, in the levels.
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

    def __init__(self, key: str, network: nn.Module, name: str, data: DataSet, levels: Levels, seed: int):
        self.key, self.network, self.name, self.levels = key, network, name, levels
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: levels.calibration]
        self.calibration = data.train.inputs[chosen]
        self.data, self.seed = data, seed
        self.reductor = NetworkReductor(network, name, self.calibration, metric="agreement", seed=seed, progress=False)

    def jobs(self, companion: Steps | None, *, control: bool = True) -> Iterator[Job]:
        """Yield the networks to make, by method.

        Parameters
        ----------
        companion
            Coarse solver of the compressed networks; None for the layer's own.
        control
            Whether to distil from random numbers too.
        """
        network, name, levels = self.network, self.name, self.levels
        adaptive = network.get_submodule(name).method in ADAPTIVE_METHODS
        yield Job("skipped", {}, lambda: with_layers(network, {name: SkippedLayer()}))
        for method, arguments in REDUCTIONS.items():
            for i, (r, m) in enumerate(levels.sizes):
                if method != "pod-ei-greedy" or m <= GREEDY_POINTS:
                    yield Job(
                        method,
                        {"r": r, "m": m},
                        self._reduce(r, m, **arguments),
                        not (adaptive and i % LEVELS_PER_ADAPTIVE),
                    )
        for method, basis in GALERKIN.items():
            for r in dict.fromkeys(r for r, _ in levels.sizes):
                make = self._reduce(r, "full", **{**CLASSIC, "basis": basis, "selection": "deim"})
                yield Job(method, {"r": r}, make, not adaptive)
        for one in levels.distilled.get(self.key, ()):
            solver = one.solver or companion
            for method in ("distilled", "control") if control else ("distilled",):
                make = self._distill(one.r, one.m, solver, random=method == "control")
                yield Job(method, {"r": one.r, "m": one.m}, make, solver is None, solver)

        example = self.calibration[:2]
        together: tuple[tuple[str, str, Sequence[int], Callable[[Sequence[int]], list[nn.Module]]], ...] = (
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
            made = cache(partial(function, sizes))
            for i, value in enumerate(sizes):
                yield Job(method, {size: value}, partial(_one_of, made, i), not adaptive)

    def showcase(self) -> dict[str, nn.Module]:
        """Return the network reduced with each selection of points, to one of the middle sizes."""
        r, m = self.levels.sizes[len(self.levels.sizes) // 2]
        return {method: self._reduce(r, m, **arguments)() for method, arguments in REDUCTIONS.items()}

    def _reduce(self, r: int, m: int | Literal["full"], **arguments: Any) -> Callable[[], nn.Module]:
        return lambda: self.reductor.reduce(state_dim=r, points=m, **arguments)

    def _distill(self, r: int, m: int, solver: Steps | None, random: bool) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            start = solved_by(self.reductor.reduce(state_dim=r, points=m), self.name, solver)
            if random:
                randomise(start.get_submodule(self.name), self.seed)
            inputs = self.data.train.inputs
            return distill(
                solved_by(self.network, self.name, self.levels.teacher),
                start,
                inputs,
                validation=self.data.validation.inputs,
                epochs=min(self.levels.epochs, -(-DISTILLATION_STEPS * DISTILLATION_BATCH // len(inputs))),
                batch_size=DISTILLATION_BATCH,
                seed=self.seed,
                progress=False,
            )

        return make


def _one_of(made: Callable[[], Sequence[nn.Module]], i: int) -> nn.Module:
    return made()[i]


def randomise(layer: nn.Module, seed: int) -> None:
    """Draw all weights and biases anew, uniformly up to 1/√(number of inputs), as torch starts its linear layers."""
    generator = torch.Generator().manual_seed(seed)
    modules: Iterator[Any] = layer.modules()
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters(recurse=False):
                bound = max(1, module.weight.shape[1]) ** -0.5
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
