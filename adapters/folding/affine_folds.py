"""Which affine runs of a network's graph are cheaper as one map, and these maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from torchmor.adapters.folding.network_graph import NetworkGraph
from torchmor.adapters.layers.arrays import to_tensor
from torchmor.adapters.models.conversion import MAX_ENTRIES
from torchmor.adapters.networks.cost import Cost
from torchmor.adapters.tracing.classifier import trace_map
from torchmor.engine.affine import AffineMap, Lift, dense
from torchmor.engine.errors import UnsupportedOperationError


@dataclass(frozen=True)
class Run:
    """The operations between some values and another.

    Parameters
    ----------
    target
        Node of the value.
    sources
        Nodes of the values that it is computed from; none for a constant.
    nodes
        Those on the way that have a batch axis, the target among them.
    times
        Number of times, if the same is done at each time of a trajectory; then there is no other source.
    """

    target: fx.Node
    sources: tuple[fx.Node, ...]
    nodes: frozenset[fx.Node]
    times: int | None = None


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
    before, after
        Cost of what is no longer evaluated, and of the map.
    time_axis
        Where the run does the same at each time of a trajectory (times, batch, size): the dimension of the target's
        samples that counts times; weights and bias are those of one time. None otherwise.
    read_times
        Where it reads some times of a trajectory only: their indices; the weight has columns for these. None otherwise.
    """

    run: Run
    weights: tuple[Tensor, ...]
    bias: Tensor
    before: Cost
    after: Cost
    time_axis: int | None = None
    read_times: tuple[int, ...] | None = None


@dataclass(eq=False)
class AffineFolds:
    """Finds affine runs through projections and liftings, and folds those that are cheaper as one map.

    Parameters
    ----------
    graph
        The network.
    replaced
        Node → what takes the place of the run that ends there, with attributes `run` and `after`.
    rejected
        Run → why it is not one map, where it was tried.
    """

    graph: NetworkGraph
    replaced: dict[fx.Node, Any] = field(default_factory=dict)
    rejected: dict[Run, str] = field(default_factory=dict)
    _affine: dict[fx.Node, bool] = field(default_factory=dict)

    def fold_all(self, marks: Sequence[fx.Node]) -> None:
        """Fold runs through any of some nodes, that which saves most first, as long as one saves anything.

        Law: neither the multiply–adds nor the cost of the network grow.
        """
        while True:
            runs = dict.fromkeys(run for mark in marks for run in self.runs(mark) if run not in self.rejected)
            best = self.best(run for run in runs if self.pays(run))
            if best is None:
                return
            try:
                self.replaced[best.target] = self._fold(best)
            except UnsupportedOperationError as error:
                self.rejected[best] = str(error)

    def runs(self, mark: fx.Node) -> Iterator[Run]:
        """All affine runs through a node, for each target from the shortest."""
        if not self.graph.depends(mark):
            yield Run(mark, (), frozenset((mark,)))
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for target in self.following(mark):
            nodes, sources = {target}, set(self.sources(target))
            while True:
                if mark in nodes:
                    run = Run(target, tuple(sorted(sources, key=order.__getitem__)), frozenset(nodes))
                    yield run
                    if (times := self._times(run)) in self.graph.sample_shape(target):
                        yield replace(run, times=times)
                affine = [source for source in sources if self.is_affine(source)]
                if not affine:
                    break
                last = max(affine, key=order.__getitem__)  # no other source is computed from it
                sources = sources - {last} | set(self.sources(last))
                nodes.add(last)

    def following(self, mark: fx.Node) -> list[fx.Node]:
        """The node, and those that are affine in it, in the order of evaluation."""
        found = {mark: None} if self.is_affine(mark) else {}
        for node in self.graph.nodes:
            if node not in found and any(source in found for source in self.sources(node)) and self.is_affine(node):
                found[node] = None
        return list(found)

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nearest values with a batch axis that a node is computed from, and arguments without; no constants."""
        if node in self.replaced:
            return self.replaced[node].run.sources
        found, stack = dict[fx.Node, None](), list(self.graph.arguments(node))
        while stack:
            argument = stack.pop()
            if self.graph.depends(argument):
                if self.graph.batch_axis(argument) is None and argument.op == "call_function":
                    stack.extend(self.graph.arguments(argument))
                else:
                    found[argument] = None
        return tuple(found)

    def is_affine(self, node: fx.Node) -> bool:
        """Whether a node is an affine map of its sources, sample by sample, in their dtype; tracing decides."""
        if node in self.replaced:
            return isinstance(self.replaced[node], Fold)
        if node not in self._affine:
            self._affine[node] = self._is_affine(node)
        return self._affine[node]

    def _is_affine(self, node: fx.Node) -> bool:
        sources = self.sources(node)
        if node.op != "call_function" or not sources:
            return False
        if any(self.graph.batch_axis(n) is None for n in (node, *sources)):
            return False
        dtypes = {n.meta["val"].dtype for n in (node, *sources)}
        if len(dtypes) > 1 or not dtypes.pop().is_floating_point:
            return False
        try:
            return not trace_map(self.graph.as_function(node, sources), self.example(node, sources)).stages
        except UnsupportedOperationError:
            return False

    # -- costs --------------------------------------------------------------------------------------------------------

    def cost(self, run: Run | None = None, own: Cost | None = None) -> Cost:
        """Cost of the network with what is replaced, and with one more run that is replaced at a cost of `own`."""
        replaced = {node: (fold.run, fold.after) for node, fold in self.replaced.items()}
        if run is not None:
            replaced[run.target] = (run, own)
        total, seen, stack = Cost(0, 0), set(), self.graph.outputs
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                if node in replaced:
                    run, cost = replaced[node]
                    stack.extend(run.sources)
                else:
                    cost = self.graph.costs.get(node, Cost(0, 0))
                    stack.extend(self.graph.arguments(node))
                total += cost
        return total

    def map_cost(self, run: Run) -> Cost:
        """Cost of a run as one map."""
        size, entries = self.graph.size(run.target), sum(self.graph.size(source) for source in run.sources)
        written = size * run.target.meta["val"].element_size() * len(run.sources)  # one product each, and their sum
        return Cost(size * entries // (run.times or 1), written)

    def superfluous(self, run: Run, own: Cost) -> Cost:
        """Cost of what is no longer evaluated once a run is replaced at a cost of `own`."""
        return self.cost() - self.cost(run, own) + own

    def saving(self, run: Run) -> Cost:
        """What folding a run saves; negative where it costs more."""
        own = self.map_cost(run)
        return self.superfluous(run, own) - own

    def best(self, runs: Iterable[Run]) -> Run | None:
        """Return the run that saves most."""
        return max(runs, key=lambda run: self.saving(run).total, default=None)

    def pays(self, run: Run) -> bool:
        """Whether folding a run saves anything, and needs no more multiply–adds."""
        saving = self.saving(run)
        return saving.total > 0 and saving.operations >= 0

    def _times(self, run: Run) -> int | None:
        """Number of times of a trajectory (times, batch, size) that is the only source of a run."""
        if len(run.sources) != 1 or self.graph.batch_axis(run.sources[0]) != 1:
            return None
        return self.graph.sample_shape(run.sources[0])[0]

    # -- maps ---------------------------------------------------------------------------------------------------------

    def example(self, target: fx.Node, sources: tuple[fx.Node, ...]) -> Tensor:
        """Rows to trace the way from sources to a target with."""
        like, generator = target.meta["val"], torch.Generator().manual_seed(0)
        width = sum(self.graph.size(source) for source in sources)
        return torch.randn(3, width, generator=generator, dtype=torch.float64).to(like.device, like.dtype)

    def _fold(self, run: Run) -> Fold:
        after = self.map_cost(run)
        before, like = self.superfluous(run, after), run.target.meta["val"]
        if not run.sources:
            with torch.no_grad():
                (rows,) = self.graph.evaluate([run.target], {}, 3)
            if not torch.equal(rows, rows[:1].expand_as(rows)):
                raise UnsupportedOperationError("the samples of a batch start from different constants")
            return Fold(run, (), rows[0].clone(), before, after)
        chain = trace_map(self.graph.as_function(run.target, run.sources), self.example(run.target, run.sources))
        if chain.stages:
            raise UnsupportedOperationError("together its operations are not affine")
        sizes = [self.graph.size(source) for source in run.sources]
        matrix, shift = _dense(chain.output, sum(sizes))
        bounds = np.cumsum(sizes)[:-1]
        axis = read = None
        if run.times is not None:
            axis, matrix, shift = _each_time(matrix, shift, self.graph.sample_shape(run.target), run.times)
        elif (times := self._times(run)) is not None:
            read, matrix = _read_times(matrix, times)
            after = replace(after, operations=matrix.size)
        weights = tuple(to_tensor(weight, like.dtype, like.device) for weight in np.split(matrix, bounds, axis=1))
        return Fold(run, weights, to_tensor(shift, like.dtype, like.device), before, after, axis, read)


def _dense(affine: AffineMap, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (rows, columns) and shift (rows,) of a map of one source "y"."""
    rows = affine.size
    if rows * columns > MAX_ENTRIES:
        raise UnsupportedOperationError(f"a matrix of {rows} × {columns} is too large")
    if not affine.sources:
        return np.zeros((rows, columns)), affine.shift
    if affine.is_opaque:  # by products from the side with fewer
        affine = affine.project(np.eye(rows)) if rows <= columns else affine.substitute({"y": Lift(np.eye(columns))})
    return dense(affine.linear), affine.shift


def _each_time(
    matrix: np.ndarray, shift: np.ndarray, shape: tuple[int, ...], times: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the target's time axis, and matrix and shift of one time, for a map that does the same at each."""
    for axis in (i for i, length in enumerate(shape) if length == times):
        rows = np.moveaxis(matrix.reshape(*shape, -1), axis, 0).reshape(times, -1, times, matrix.shape[1] // times)
        shifts = np.moveaxis(shift.reshape(shape), axis, 0).reshape(times, -1)
        expected = np.zeros_like(rows)
        expected[range(times), :, range(times)] = rows[0, :, 0]
        values = (rows, shifts, rows - expected, shifts - shifts[0])
        *sizes, matrix_differs, shift_differs = (np.abs(value).max(initial=0.0) for value in values)
        if max(matrix_differs, shift_differs) <= 1e-12 * max(sizes):
            return axis, rows[0, :, 0], shifts[0]
    raise UnsupportedOperationError("it does not do the same at each time of the trajectory")


def _read_times(matrix: np.ndarray, times: int) -> tuple[tuple[int, ...] | None, np.ndarray]:
    """Return the times of a trajectory that a map reads, and its columns for these."""
    blocks = matrix.reshape(len(matrix), times, -1)
    rounding = 1e-13 * np.abs(matrix).max(initial=0.0)
    read = np.flatnonzero(np.any(np.abs(blocks) > rounding, axis=(0, 2)))
    if len(read) in (0, times):
        return None, matrix
    return tuple(read.tolist()), blocks[:, read].reshape(len(matrix), -1)
