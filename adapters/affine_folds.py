"""Which affine runs of a network's graph are cheaper as one matrix, and these matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sps
import torch
from torch import Tensor, fx

from torchmor.adapters.arrays import to_tensor
from torchmor.adapters.conversion import MAX_ENTRIES
from torchmor.adapters.cost import OPERATIONS_PER_BYTE
from torchmor.adapters.network_graph import NetworkGraph
from torchmor.adapters.tracing import trace_map
from torchmor.engine.affine import AffineMap, Lift
from torchmor.engine.errors import UnsupportedOperationError


@dataclass(frozen=True)
class Run:
    """Affine operations between some values and another.

    Parameters
    ----------
    target
        Node of the value.
    sources
        Nodes of the values that it is an affine map of.
    nodes
        The operations, the target among them.
    """

    target: fx.Node
    sources: tuple[fx.Node, ...]
    nodes: frozenset[fx.Node]


@dataclass(frozen=True)
class Cost:
    """Multiply–adds and bytes written for each sample."""

    operations: int
    written: int

    @property
    def total(self) -> int:
        """Both as multiply–adds."""
        return self.operations + OPERATIONS_PER_BYTE * self.written


@dataclass(frozen=True, eq=False)
class Fold:
    """A run as one affine map, ``target = Σ weights[i] @ sources[i] + bias``, of flattened samples.

    Parameters
    ----------
    run
        What it takes the place of.
    weights
        One matrix for each source, (size of target, size of source).
    bias
        (size of target,)
    times
        Dimension of the target's sample that counts times, if the same map acts at each of them on a trajectory
        (times, batch, size); weights and bias are those of one time. None otherwise.
    before, after
        Cost of what is no longer evaluated, and of the map.
    """

    run: Run
    weights: tuple[Tensor, ...]
    bias: Tensor
    times: int | None
    before: Cost
    after: Cost


@dataclass
class AffineFolds:
    """Finds runs through projections and liftings, and folds those that are cheaper as one map.

    Parameters
    ----------
    graph
        The network.
    replaced
        Node → what is evaluated in its place.
    """

    graph: NetworkGraph
    replaced: dict[fx.Node, Any] = field(default_factory=dict)
    rejected: dict[Run, str] = field(default_factory=dict)
    _affine: dict[fx.Node, bool] = field(default_factory=dict)

    def fold_all(self, marks: list[fx.Node]) -> None:
        """Fold runs through any of some nodes, that which saves most first, as long as one saves anything.

        Law: neither multiply–adds nor the cost of the network grow.
        """
        while True:
            runs = {run for mark in marks for run in self.runs(mark) if run not in self.rejected}
            gains = {run: self.gain(run) for run in runs}
            runs = [run for run in runs if gains[run][0].operations >= gains[run][1].operations]
            order = {node: i for i, node in enumerate(self.graph.graph.nodes)}
            best = max(runs, key=lambda run: (_saved(gains[run]), -order[run.target], -len(run.nodes)), default=None)
            if best is None or _saved(gains[best]) <= 0:
                return
            try:
                self.replaced[best.target] = self._fold(best, *gains[best])
            except UnsupportedOperationError as error:
                self.rejected[best] = str(error)

    def runs(self, mark: fx.Node) -> Iterator[Run]:
        """All runs through a node, from the shortest for each target."""
        if not self.graph.depends(mark):  # of a constant state
            yield Run(mark, (), frozenset((mark,)))
        for target in self.following(mark):
            nodes, sources = {target}, set(self.sources(target))
            order = {node: i for i, node in enumerate(self.graph.graph.nodes)}
            while True:
                if mark in nodes:
                    yield Run(target, tuple(sorted(sources, key=order.__getitem__)), frozenset(nodes))
                affine = [source for source in sources if self.is_affine(source)]
                if not affine:
                    break
                last = max(affine, key=order.__getitem__)  # nothing left reads it
                sources = sources - {last} | set(self.sources(last))
                nodes.add(last)

    def following(self, mark: fx.Node) -> list[fx.Node]:
        """The node and all that are affine in it, in the order of evaluation."""
        found = {mark: None} if self.is_affine(mark) else {}
        for node in self.graph.graph.nodes:
            if self.graph.depends(node) and self.graph.batch_axis(node) is not None and node not in found:
                if any(source in found for source in self.sources(node)) and self.is_affine(node):
                    found[node] = None
        return list(found)

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nearest values with a batch axis that a node is computed from."""
        if node in self.replaced:
            return self.replaced[node].run.sources
        found, stack = {}, list(self.graph.arguments(node))
        while stack:
            argument = stack.pop()
            if not self.graph.depends(argument):
                continue
            if self.graph.batch_axis(argument) is not None:
                found[argument] = None
            else:
                stack.extend(self.graph.arguments(argument))
        return tuple(found)

    def is_affine(self, node: fx.Node) -> bool:
        """Whether a node is an affine map of its sources, sample by sample; decided by tracing what it computes."""
        if node not in self._affine:
            self._affine[node] = node.op == "call_function" and self._is_affine(node)
        return self._affine[node]

    def _is_affine(self, node: fx.Node) -> bool:
        sources = self.sources(node)
        if not sources or self.graph.batch_axis(node) is None:
            return False
        try:
            return not trace_map(self.graph.as_function(node, sources), self.example(node, sources)).stages
        except UnsupportedOperationError:
            return False

    # -- costs --------------------------------------------------------------------------------------------------------

    def cost(self, run: Run | None = None, own: Cost | None = None) -> Cost:
        """Cost of the network, with the runs folded so far, and with one more that costs `own`."""
        after = {node: (fold.run.sources, fold.after) for node, fold in self.replaced.items()}
        if run is not None:
            after[run.target] = (run.sources, own)
        seen = set()
        stack = [n for node in self.graph.graph.nodes if node.op == "output" for n in node.all_input_nodes]
        operations = written = 0
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in after:
                reads, cost = after[node]
                own = (cost.operations, cost.written)
            else:
                reads, own = self.graph.arguments(node), self.graph.costs.get(node, (0, 0))
            operations, written = operations + own[0], written + own[1]
            stack.extend(reads)
        return Cost(operations, written)

    def map_cost(self, run: Run) -> Cost:
        """Cost of a run as one map."""
        size, entries = self.graph.size(run.target), sum(self.graph.size(source) for source in run.sources)
        written = size * run.target.meta["val"].element_size() * len(run.sources)  # products are written, then added
        return Cost(size * entries // (self._times(run) or 1), written)

    def gain(self, run: Run) -> tuple[Cost, Cost]:
        """Cost of what a run's map makes superfluous, and of the map."""
        own = self.map_cost(run)
        return self.superfluous(run, own), own

    def superfluous(self, run: Run, own: Cost) -> Cost:
        """Cost of what is no longer evaluated once a run is replaced by something that costs `own`."""
        now, then = self.cost(), self.cost(run, own)
        return Cost(now.operations - then.operations + own.operations, now.written - then.written + own.written)

    def _times(self, run: Run) -> int | None:
        """Number of times, where a run may act at each time of one trajectory alike."""
        if len(run.sources) != 1 or self.graph.batch_axis(run.sources[0]) != 1:
            return None
        times = self.graph.sample_shape(run.sources[0])[0]
        return times if times in self.graph.sample_shape(run.target) else None

    # -- maps ---------------------------------------------------------------------------------------------------------

    def example(self, target: fx.Node, sources: tuple[fx.Node, ...]) -> Tensor:
        like = target.meta["val"]
        generator = torch.Generator().manual_seed(0)
        width = sum(self.graph.size(source) for source in sources)
        return torch.randn(3, width, generator=generator, dtype=torch.float64).to(like.device, like.dtype)

    def affine_map(self, run: Run) -> AffineMap:
        """Return a run as an affine map of its stacked sources.

        Raises
        ------
        UnsupportedOperationError
            It is none.
        """
        chain = trace_map(self.graph.as_function(run.target, run.sources), self.example(run.target, run.sources))
        if chain.stages:
            raise UnsupportedOperationError("together they are not affine")
        return chain.output

    def _fold(self, run: Run, before: Cost, after: Cost) -> Fold:
        if not run.sources:
            (rows,) = self.graph.evaluate([run.target], {}, 3)
            if not torch.equal(rows, rows[:1].expand_as(rows)):
                raise UnsupportedOperationError("the samples start from different constants")
            return Fold(run, (), rows[0].detach().clone(), None, before, after)
        sizes = [self.graph.size(source) for source in run.sources]
        like = run.target.meta["val"]
        matrix, shift = dense(self.affine_map(run), sum(sizes))
        axis, times = None, self._times(run)
        if times is not None:
            axis, matrix, shift = _each_time(matrix, shift, self.graph.sample_shape(run.target), times)
            sizes = [sizes[0] // times]
        weights = [to_tensor(w, like.dtype, like.device) for w in np.split(matrix, np.cumsum(sizes)[:-1], axis=1)]
        return Fold(run, tuple(weights), to_tensor(shift, like.dtype, like.device), axis, before, after)


def _saved(gain: tuple[Cost, Cost]) -> int:
    return gain[0].total - gain[1].total


def dense(affine: AffineMap, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (rows, columns) and shift of an affine map of one source "y"."""
    rows = affine.size
    if rows * columns > MAX_ENTRIES:
        raise UnsupportedOperationError(f"a matrix of {rows} × {columns} does not fit in memory")
    if not affine.sources:
        return np.zeros((rows, columns)), affine.shift
    if affine.is_opaque:
        fewer_rows = rows <= columns
        affine = affine.project(np.eye(rows)) if fewer_rows else affine.substitute({"y": Lift(np.eye(columns))})
    linear = affine.linear
    return (linear.toarray() if sps.issparse(linear) else np.asarray(linear)), affine.shift


def _each_time(matrix, shift, shape, times) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the target's time axis and the map of one time, for a map that acts at each time alike."""
    for axis in (i for i, length in enumerate(shape) if length == times):
        blocks = np.moveaxis(matrix.reshape(*shape, times, -1), axis, 0)
        blocks = np.moveaxis(blocks.reshape(times, -1, times, blocks.shape[-1]), 2, 1)  # time, time, rows, columns
        shifts = np.moveaxis(shift.reshape(shape), axis, 0).reshape(times, -1)
        expected = np.zeros_like(blocks)
        expected[range(times), range(times)] = blocks[0, 0]
        size = max(np.abs(blocks).max(initial=0.0), np.abs(shifts).max(initial=0.0))
        if max(np.abs(blocks - expected).max(initial=0.0), np.abs(shifts - shifts[0]).max(initial=0.0)) <= 1e-12 * size:
            return axis, blocks[0, 0], shifts[0]
    raise UnsupportedOperationError("it does not act at each time of the trajectory alike")
