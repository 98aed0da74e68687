"""What `fold` did to a network, in numbers and words. Pure Python."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from torchmor.adapters.folding.affine_folds import AffineFolds, Run
from torchmor.adapters.folding.network_graph import operation
from torchmor.adapters.folding.sampled_encoder import SampledFold
from torchmor.adapters.networks.cost import Cost
from torchmor.adapters.tracing.operations import IDENTITY
from torchmor.engine.text_table import text_table


@dataclass(frozen=True)
class FoldedPart:
    """What became of the projection or the lifting of a reduced layer, in one of its calls.

    Parameters
    ----------
    layer
        Name of the layer.
    part
        "projection", "lifting", or "both".
    result
        "exact", "approximate", or "kept".
    what
        What it was merged with, or why it was not.
    before, after
        Multiply–adds for each sample: of what is no longer evaluated, and of what takes its place. Where it was kept,
        those of the best alternative; None where there is none.
    """

    layer: str
    part: str
    result: str
    what: str
    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class FoldExplanation:
    """What `fold` did; ``print(folded.explain())`` to read it.

    Parameters
    ----------
    parts
        The projections and liftings, in the order of evaluation.
    operations
        Multiply–adds of the network for one sample, (before, after).
    written
        Bytes that it writes for one sample, (before, after).
    errors
        Relative differences from the network that was folded, by name.
    """

    parts: tuple[FoldedPart, ...]
    operations: tuple[int, int]
    written: tuple[int, int]
    errors: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether the folded network is the same function, to rounding."""
        return all(part.result != "approximate" for part in self.parts)

    def __str__(self) -> str:
        rows = [("layer", "part", "result", "multiply-adds", "merged with, or why not")]
        for part in self.parts:
            numbers = "-" if part.result == "kept" else f"{part.before:,} -> {part.after:,}"
            rows.append((part.layer or "(network)", part.part, part.result, numbers, part.what))
        (operations, fewer), (written, less) = self.operations, self.written
        return "\n".join(
            [
                "Folded network, in eval mode: "
                + ("the same function" if self.exact else "an approximation, by a sampled encoder"),
                "",
                *text_table(rows),
                "",
                f"whole network: {operations:,} -> {fewer:,} multiply-adds, {written:,} -> {less:,} bytes written, for "
                "each sample",
                *(f"relative difference of {name}: {error:.2g}" for name, error in self.errors.items()),
            ]
        )

    __repr__ = __str__


def describe(folds: AffineFolds, fitted: Mapping[fx.Node, SampledFold]) -> tuple[FoldedPart, ...]:
    """Return what became of each projection and lifting.

    Parameters
    ----------
    folds
        What was folded.
    fitted
        Node of a projection → the encoder that was fitted for it, whether it was taken or not.
    """
    parts = []
    for call in folds.graph.calls:
        if call.encode is None:
            parts.append(FoldedPart(call.layer, "both", "kept", "there are none: the state is not reduced"))
            continue
        parts.append(_part(call.layer, "projection", call.encode, folds, fitted))
        if call.decode is not None:
            parts.append(_part(call.layer, "lifting", call.decode, folds, fitted))
    whole = "traced as a whole, since its input u is a function"
    return (*parts, *(FoldedPart(name, "both", "kept", whole) for name in folds.graph.closed))


def _part(
    layer: str, part: str, mark: fx.Node, folds: AffineFolds, fitted: Mapping[fx.Node, SampledFold]
) -> FoldedPart:
    for fold in folds.replaced.values():
        if mark in fold.run.nodes:
            what, result = _merged(fold.run, mark, folds), "exact"
            if isinstance(fold, SampledFold):
                result = "approximate"
                what += f", fitted on {len(fold.entries)} sampled entries of y(0)"
            return FoldedPart(layer, part, result, what, fold.before.operations, fold.after.operations)
    if mark in fitted:
        encoder = fitted[mark]
        what = f"an encoder of {len(encoder.entries)} sampled entries would cost {_words(encoder.after)}"
        return _kept(layer, part, what, encoder.before, encoder.after)
    # merging with views alone changes nothing
    runs = [run for run in folds.runs(mark) if not run.sources or _working(run, mark, folds)]
    best = folds.best(runs)
    if best is None:
        return FoldedPart(layer, part, "kept", _neighbour(mark, folds, part))
    after = folds.map_cost(best)
    before = folds.superfluous(best, after)
    if best in folds.rejected:
        what = f"not {_merged(best, mark, folds)}: {folds.rejected[best]}"
        return FoldedPart(layer, part, "kept", what, before.operations, after.operations)
    return _kept(layer, part, f"one matrix {_merged(best, mark, folds)} would cost {_words(after)}", before, after)


def _kept(layer: str, part: str, what: str, before: Cost, after: Cost) -> FoldedPart:
    return FoldedPart(layer, part, "kept", f"{what} instead of {_words(before)}", before.operations, after.operations)


def _words(cost: Cost) -> str:
    return f"{cost.operations:,} multiply-adds and {cost.written:,} bytes"


def _working(run: Run, mark: fx.Node, folds: AffineFolds) -> list[str]:
    """Names of the operations of a run beside a projection or lifting, without views and copies."""
    graph, free = folds.graph, Cost(0, 0)
    nodes = [node for node in graph.needed([run.target], run.sources) if graph.costs.get(node, free) != free]
    nodes = [node for node in nodes if node is not mark and (graph.depends(node) or not run.sources)]
    return [operation(node) for node in nodes if operation(node) not in IDENTITY]


def _merged(run: Run, mark: fx.Node, folds: AffineFolds) -> str:
    size = folds.graph.size
    names = ", ".join(dict.fromkeys(_working(run, mark, folds)))
    sources = " + ".join(f"{size(source):,}" for source in run.sources) or "constant"
    return f"with {names or 'reshaping'}: {sources} -> {size(run.target):,}"


def _neighbour(mark: fx.Node, folds: AffineFolds, part: str) -> str:
    """Say what stands before a projection, or after a lifting."""
    if part == "projection":
        node = mark
        while folds.is_affine(node):
            node = folds.sources(node)[0]
        if node.op == "placeholder":
            return "the state is the network's input"
        if node.op == "call_module":
            return "the state is that of another solve"
        return f"'{operation(node)}' stands before it, which is not affine; sampled_encoder would approximate"
    following = {mark, *folds.following(mark)}
    for node in folds.graph.nodes:
        reads_it = any(source in following for source in folds.sources(node)) and node not in following
        if reads_it and node.op == "call_function":
            return f"'{operation(node)}' stands after it, which is not affine"
    return "its result is the network's output"
