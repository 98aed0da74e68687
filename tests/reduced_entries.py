"""Reduced layers of the catalogue's functions, with random bases, points and sizes: what reductions make of them."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from catalogue import FUNCTIONS, traced
from torchmor.adapters import ReducedODELayer
from torchmor.adapters.layers.arrays import to_tensor
from torchmor.adapters.models.conversion import chain_to_module
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.engine.quadratics import factors
from torchmor.engine.stages import Interpolation
from torchmor.engine.tableaux import TABLEAUX


def reduced_entry(name: str, methods: Sequence[str] = tuple(TABLEAUX)) -> ReducedODELayer:
    """A float64 layer of one or two steps, always the same for a name; many that the classic methods would make."""
    entry, chain = FUNCTIONS[name], traced(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    r = int(rng.integers(1, min(4, entry.n) + 1))
    trial = np.linalg.qr(rng.normal(size=(entry.n, r)))[0]
    oblique = 0.3 * rng.normal(size=(entry.n, r))
    test = trial + oblique - trial @ (trial.T @ oblique)  # Wᵀ V = I
    offset = rng.normal(size=entry.n)
    interpolations = {}
    for stage in chain.stages:
        points = rng.permutation(stage.size)[: rng.integers(1, min(5, stage.size) + 1)]
        lift = rng.normal(size=(stage.size, len(points))) / stage.size
        lift = np.abs(lift) if factors(stage) == (0, 0) else lift  # a variance below zero would have no root
        interpolations[stage.name] = Interpolation(points, lift)
    method = str(rng.choice(list(methods)))
    output = str(rng.choice(["final", "trajectory"]))
    layer = ReducedODELayer(
        SolveSettings((0.2, 0.5, 0.6)[: rng.integers(2, 4)], method, output=output),
        entry.shape,
        chain_to_module(chain.reduce(trial, test, offset, interpolations)),
        r,
        "required" if entry.p else "none",
    )
    for linear, weight, bias in ((layer.encode, test.T, -test.T @ offset), (layer.decode, trial, offset)):
        linear.weight, linear.bias = (nn.Parameter(to_tensor(values, torch.float64)) for values in (weight, bias))
    return layer


def arguments_of(name: str, layer: ReducedODELayer, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """A state, and samples of an input where the function reads one."""
    entry, generator = FUNCTIONS[name], torch.Generator().manual_seed(seed)
    kind = {"generator": generator, "dtype": layer.ode.output.weight.dtype}
    y0 = torch.randn(batch, *entry.shape, **kind)
    return (y0, torch.randn(batch, len(layer.t), entry.p, **kind)) if entry.p else (y0,)
