"""A projection behind nonlinear operations, fitted on few entries of the state, so that only they are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from torchmor.adapters.folding.affine_folds import AffineFolds, Run
from torchmor.adapters.folding.network_graph import NetworkGraph
from torchmor.adapters.layers.arrays import to_array, to_columns
from torchmor.adapters.layers.chain_module import ChainModule
from torchmor.adapters.models.conversion import chain_to_module
from torchmor.adapters.networks.cost import Cost
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.adapters.tracing.classifier import trace_map
from torchmor.engine.affine import AffineMap, dense
from torchmor.engine.errors import CalibrationError, NonFiniteError, UnsupportedOperationError
from torchmor.engine.held_out import held_out_mask
from torchmor.engine.matching_pursuit import matching_pursuit
from torchmor.engine.regression import regress
from torchmor.engine.stages import StageChain

#: Samples that are evaluated together.
_BATCH = 256

#: Samples to fit to for each entry.
_SAMPLES_PER_ENTRY = 2


class SampledEncoder(nn.Module):
    """An approximate projection: some entries of a value, and a small function of them.

    Parameters
    ----------
    entries
        Which entries of a sample are read (s,); None for all.
    chain
        What is computed of them.
    """

    entries: Tensor | None

    def __init__(self, entries: Tensor | None, chain: ChainModule):
        super().__init__()
        self.register_buffer("entries", entries)
        self.chain = chain

    def forward(self, rows: Tensor) -> Tensor:
        """Return z(0) (batch, r) for rows (batch, size)."""
        return self.chain(rows if self.entries is None else rows.index_select(1, self.entries))


@dataclass(frozen=True, eq=False)
class SampledFold:
    """A sampled encoder in the place of a projection and of what stands before it.

    Parameters
    ----------
    run
        What it takes the place of; the operations are not all affine.
    module
        The encoder.
    entries
        The sampled entries of the flattened state y(0), (s,).
    before, after
        Cost of what is no longer evaluated, and of the encoder.
    error
        Relative error of z(0) on held-out samples.
    held_out
        Indices of the held-out samples in the example.
    """

    run: Run
    module: SampledEncoder
    entries: np.ndarray
    before: Cost
    after: Cost
    error: float
    held_out: np.ndarray

    @property
    def saving(self) -> Cost:
        """What it saves."""
        return self.before - self.after


def fit_sampled_encoder(folds: AffineFolds, encode: fx.Node, example: Sequence[Any], count: int) -> SampledFold | None:
    """Fit an encoder on sampled entries, which evaluates only what these need, from where that is cheapest.

    With Y the states y(0) of four fifths of the samples, and Z their projections, entries are chosen by matching
    pursuit, and ``Z ≈ E Y[entries] + e`` is a ridge regression. Law: the error is that on the other samples.

    Parameters
    ----------
    folds
        The network; nothing is folded yet at `encode`.
    encode
        Node of a projection.
    example
        Arguments with all samples.
    count
        Number s of entries.

    Returns
    -------
    The encoder; None where only affine operations stand before the projection, so that folding is exact.

    Raises
    ------
    CalibrationError
        There are too few samples.
    NonFiniteError
        A state y(0) is not finite.
    """
    graph, (state, *affine) = folds.graph, encode.all_input_nodes
    if not _behind_nonlinearity(folds, state):
        return None
    count = min(count, graph.size(state))
    held_out = held_out_mask(graph.samples)
    if int(np.sum(~held_out)) < _SAMPLES_PER_ENTRY * count:
        raise CalibrationError(
            f"expected at least {-(-_SAMPLES_PER_ENTRY * count * 5 // 4) + 1} example samples to fit an encoder on "
            f"{count} sampled entries of the state, {_SAMPLES_PER_ENTRY} for each beside a held-out fifth, got "
            f"{graph.samples}: call fold with more, like those that the network will see, or with a smaller "
            "sampled_encoder"
        )
    states = _columns(graph, state, example)
    if not np.isfinite(states).all():
        raise NonFiniteError("expected finite states y(0) of the example, got NaN or infinity: clean the data")
    weight, bias = (to_array(graph.value(node)) for node in affine)
    target = weight @ states + bias[:, np.newaxis]
    entries = matching_pursuit(states[:, ~held_out], target[:, ~held_out], count)
    if not len(entries):
        return None  # the state is the same for all samples
    matrix, shift, _ = regress(states[np.ix_(entries, ~held_out)], target[:, ~held_out])
    missed = target[:, held_out] - matrix @ states[np.ix_(entries, held_out)] - shift[:, np.newaxis]
    error = float(np.linalg.norm(missed)) / max(float(np.linalg.norm(target[:, held_out])), 1e-300)

    found = []
    for run in _runs_to(folds, encode, state):
        try:
            chain = trace_map(graph.as_function(state, run.sources), folds.example(state, run.sources))
        except UnsupportedOperationError:
            break
        chain, columns = chain.restrict(entries)
        output = chain.output.project(matrix.T)
        chain = replace(chain, output=replace(output, shift=output.shift + shift))
        item = encode.meta["val"].element_size()
        chain, read = _reading(chain, columns, graph.size(run.sources[0]), item)
        after = _cost(chain, item) if read is None else _cost(chain, item) + Cost(0, item * len(read))
        found.append((run, chain, read, folds.superfluous(run, after), after))
        if after.total > folds.cost().total:
            break
    run, chain, read, before, after = max(found, key=lambda entry: (entry[3] - entry[4]).total)
    like = encode.meta["val"]
    module = SampledEncoder(
        None if read is None else torch.from_numpy(read).to(like.device),
        chain_to_module(chain, like.dtype, like.device),
    )
    return SampledFold(run, module, entries, before, after, error, np.flatnonzero(held_out))


def _behind_nonlinearity(folds: AffineFolds, state: fx.Node) -> bool:
    frontier, seen = [state], set()
    while frontier:
        node = frontier.pop()
        if node in seen or node.op == "placeholder" or not folds.graph.depends(node):
            continue
        if not folds.is_affine(node):
            return True
        seen.add(node)
        frontier.extend(folds.sources(node))
    return False


def _columns(graph: NetworkGraph, node: fx.Node, example: Sequence[Any]) -> np.ndarray:
    """Values of a node for all samples, (size, samples)."""
    parts = []
    with torch.no_grad():
        for start in range(0, graph.samples, _BATCH):
            rows = np.arange(start, min(start + _BATCH, graph.samples))
            known = dict(zip(graph.placeholders, tree_leaves(graph.select(example, rows)), strict=True))
            (value,) = graph.evaluate([node], known, len(rows))
            parts.append(to_columns(value))
    return np.concatenate(parts, axis=1)


def _runs_to(folds: AffineFolds, encode: fx.Node, state: fx.Node) -> Iterator[Run]:
    """Runs to a projection from single values, first from the state, then from what it is computed of."""
    nodes, source = {encode}, state
    while True:
        yield Run(encode, (source,), frozenset(nodes))
        sources = folds.sources(source)
        if (
            source.op != "call_function"
            or len(sources) != 1
            or source.meta["val"].dtype != sources[0].meta["val"].dtype
        ):
            return
        nodes.add(source)
        (source,) = sources


def _reading(chain: StageChain, read: np.ndarray, size: int, item: int) -> tuple[StageChain, np.ndarray | None]:
    """Let the chain read the whole value instead of some entries, where that is cheaper than to pick them."""
    rows = sum(affine.size for affine in chain.maps if "y" in affine.sources)
    if rows * (size - len(read)) > Cost(0, item * len(read)).total:
        return chain, read

    def spread(affine: AffineMap) -> AffineMap:
        blocks = affine.blocks()
        if "y" in blocks:
            wide = np.zeros((affine.size, size))
            wide[:, read] = dense(blocks["y"])
            blocks["y"] = wide
        return AffineMap.from_blocks(blocks, affine.shift)

    stages = tuple(replace(stage, argument=spread(stage.argument)) for stage in chain.stages)
    return StageChain(size, 0, stages, spread(chain.output)), None


def _cost(chain: StageChain, item: int) -> Cost:
    operations = sum(affine.size * sum(affine.sizes) for affine in chain.maps)
    return Cost(operations, item * (sum(m.size for m in chain.maps) + sum(stage.size for stage in chain.stages)))
