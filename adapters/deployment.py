"""`fold`: a copy of a reduced network for deployment, without projections and liftings that can be merged away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from torchmor.adapters.affine_folds import AffineFolds, Cost, Fold, Run
from torchmor.adapters.calibration import evaluation
from torchmor.adapters.fold_explanation import FoldedPart, FoldExplanation
from torchmor.adapters.network_graph import Call, NetworkGraph, operation
from torchmor.adapters.operations import IDENTITY
from torchmor.adapters.sampled_encoder import SampledFold, fit_sampled_encoder
from torchmor.engine.errors import SizeError

#: Samples of the example on which the folded network is compared with the original.
_COMPARED_SAMPLES = 512


class FoldedNetwork(fx.GraphModule):
    """What `fold` returns: a network as a graph of tensor operations, called like the one that it was made of.

    It computes in eval mode always: dropout is gone, and normalisations have their running statistics in them.
    """

    def explain(self) -> FoldExplanation:
        """Return what was merged, what was not and why, with multiply–adds before and after; print it to read it."""
        return self.meta["explanation"]


def fold(small: nn.Module, *example: Any, sampled_encoder: int | None = None) -> FoldedNetwork:
    """Return a copy of a network with reduced layers, for deployment: projection and lifting are merged away.

    Law: the copy is the same function of its arguments, in eval mode, for any batch, and costs no more; with
    `sampled_encoder` it is an approximation, whose error is reported.

    Once a layer is reduced, encoding n → r and decoding r → n cost more than the ODE. Where affine operations stand
    before the projection (linear layers, convolutions, batch normalisation, average pooling, padding, reshaping, by
    what they compute and however they are written), they become one matrix with it; so do those after the lifting.
    Each is done where it saves multiply–adds, and bytes; ``folded.explain()`` tells. The network is traced by
    torch.export with a dynamic batch, on the device of the example.

    The layer's check `on_outside` is lost, since the state is no longer there to be looked at.

    Parameters
    ----------
    small
        A network with one or more reduced layers; it is not changed.
    example
        Arguments of one call of it. Tensors as long as the first along dimension 0 are batched.
    sampled_encoder
        Number s of entries. Where nonlinear operations stand before a projection, so that it cannot be merged with
        them, it is fitted instead: z(0) from the s entries of y(0) that tell most, and only these are evaluated. The
        example is the calibration data then: four fifths of the samples are fitted to, the error is measured on the
        others. None (the default) to change nothing there.

    Returns
    -------
    FoldedNetwork

    Raises
    ------
    UnknownLayerError
        The network has no reduced layer.
    UnsupportedOperationError
        torch.export cannot trace the network with a dynamic batch.
    CalibrationError
        The example has no sample, or too few to fit a sampled encoder to.
    SizeError
        There is no such number of entries.

    Examples
    --------
    >>> folded = fold(small, images[:2])
    >>> approximate = fold(small, images[:5000], sampled_encoder=64)
    """
    if sampled_encoder is not None and sampled_encoder < 1:
        raise SizeError(f"expected sampled_encoder to be a number of entries ≥ 1, or None, got {sampled_encoder}")
    graph = NetworkGraph(small, example)
    folds = AffineFolds(graph)
    before = folds.cost()
    refused: dict[fx.Node, SampledFold] = {}
    if sampled_encoder is not None:
        for call in graph.calls:
            if call.encode is None:
                continue
            fitted = fit_sampled_encoder(folds, call.encode, example, sampled_encoder)
            if fitted is not None:
                exact = max((b.total - a.total for b, a in map(folds.gain, folds.runs(call.encode))), default=0)
                if fitted.before.total - fitted.after.total > max(exact, 0):
                    folds.replaced[call.encode] = fitted
                else:
                    refused[call.encode] = fitted
    marks = [node for call in graph.calls for node in (call.encode, call.decode) if node is not None]
    folds.fold_all([node for node in marks if node not in folds.replaced])
    after = folds.cost()
    parts = [part for call in graph.calls for part in _parts(call, folds, refused)]
    parts += [
        FoldedPart(name, "projection and lifting", "kept", "its input u is a function, or its times are a Tensor")
        for name in graph.closed
    ]
    _build(folds)
    folded = FoldedNetwork(graph.module, graph.graph)
    folded.eval()
    explanation = FoldExplanation(
        tuple(parts),
        (before.operations, after.operations),
        (before.written, after.written),
        _errors(small, folded, graph, example, folds),
    )
    folded.meta["explanation"] = explanation
    return folded


# -- the graph of the folded network ---------------------------------------------------------------------------------


def _build(folds: AffineFolds) -> None:
    """Put what was folded into the graph, in the place of its target."""
    graph = folds.graph
    for node in [node for node in graph.graph.nodes if node in folds.replaced]:
        fold = folds.replaced[node]
        with graph.graph.inserting_before(node):
            value = _sampled(graph, fold) if isinstance(fold, SampledFold) else _affine(graph, fold)
        value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()


def _sampled(graph: NetworkGraph, fold: SampledFold) -> fx.Node:
    name = graph.new_name("sampled_encoder")
    graph.module.add_submodule(name, fold.module)
    return graph.graph.call_module(name, (_rows(graph, fold.run.sources[0]),))


def _affine(graph: NetworkGraph, fold: Fold) -> fx.Node:
    axis, shape = graph.batch_axis(fold.run.target), graph.sample_shape(fold.run.target)
    bias = _parameter(graph, "folded_bias", fold.bias)
    if not fold.weights:
        batch = graph.graph.call_function(torch.ops.aten.sym_size.int, (graph.batched_placeholder, 0))
        return graph.graph.call_function(torch.ops.aten.expand.default, (bias, [batch, *shape]))
    total = None
    for source, weight in zip(fold.run.sources, fold.weights, strict=True):
        matrix = _parameter(graph, "folded_weight", weight)
        rows = _rows(graph, source) if fold.times is None else source
        arguments = (rows, matrix, bias) if total is None else (rows, matrix)
        term = graph.graph.call_function(torch.ops.aten.linear.default, arguments)
        total = term if total is None else graph.graph.call_function(torch.ops.aten.add.Tensor, (total, term))
    if fold.times is None:
        if len(shape) != 1:
            total = graph.graph.call_function(torch.reshape, (total, [-1, *shape]))
        return graph.graph.call_function(torch.movedim, (total, 0, axis)) if axis else total
    rest = [length for i, length in enumerate(shape) if i != fold.times]
    if len(rest) != 1:
        total = graph.graph.call_function(torch.reshape, (total, [shape[fold.times], -1, *rest]))
    time_axis = fold.times + (fold.times >= axis)
    return graph.graph.call_function(torch.movedim, (total, [0, 1], [time_axis, axis]))


def _rows(graph: NetworkGraph, source: fx.Node) -> fx.Node:
    """Return a value as rows, one flattened sample in each."""
    axis, shape = graph.batch_axis(source), graph.sample_shape(source)
    if axis:
        source = graph.graph.call_function(torch.movedim, (source, axis, 0))
    if len(shape) == 1:
        return source
    return graph.graph.call_function(torch.flatten if shape else torch.unsqueeze, (source, 1))


def _parameter(graph: NetworkGraph, stem: str, value: Tensor) -> fx.Node:
    name = graph.new_name(stem)
    graph.module.register_parameter(name, nn.Parameter(value))
    return graph.graph.get_attr(name)


# -- what is told of it ----------------------------------------------------------------------------------------------


def _parts(call: Call, folds: AffineFolds, refused: dict[fx.Node, SampledFold]) -> list[FoldedPart]:
    if call.encode is None:
        return [FoldedPart(call.layer, "projection and lifting", "kept", "there is none: the state is not reduced")]
    return [
        _part(call.layer, "projection", call.encode, folds, refused),
        _part(call.layer, "lifting", call.decode, folds, refused),
    ]


def _part(layer, part, mark, folds: AffineFolds, refused) -> FoldedPart:
    for fold in folds.replaced.values():
        if mark in fold.run.nodes:
            before, after = fold.before.operations, fold.after.operations
            if isinstance(fold, SampledFold):
                what = (
                    f"{_merged(fold.run, mark, folds)}: fitted on {_entries(fold)}, relative error of z(0) on "
                    f"{len(fold.held_out):,} held-out samples {fold.error:.2g}"
                )
                return FoldedPart(layer, part, "approximate", what, before, after)
            return FoldedPart(layer, part, "exact", _merged(fold.run, mark, folds), before, after)
    if mark in refused:
        fitted = refused[mark]
        what = (
            f"an encoder of {_entries(fitted)} would cost no less: {_cost(fitted.after)} instead of "
            f"{_cost(fitted.before)}"
        )
        return FoldedPart(layer, part, "kept", what, fitted.before.operations, fitted.after.operations)
    runs = [run for run in folds.runs(mark) if _working(run, mark, folds)]
    if not runs:
        return FoldedPart(layer, part, "kept", _neighbours(mark, folds, part))
    gains = {run: folds.gain(run) for run in runs}
    best = max(runs, key=lambda run: gains[run][0].total - gains[run][1].total)
    before, after = gains[best]
    merged = _merged(best, mark, folds)
    if best in folds.rejected:
        what = f"not {merged}: {folds.rejected[best]}"
    else:
        what = f"one matrix {merged} would cost {_cost(after)} instead of {_cost(before)}"
    return FoldedPart(layer, part, "kept", what, before.operations, after.operations)


def _working(run: Run, mark: fx.Node, folds: AffineFolds) -> list[str]:
    """Names of the operations of a run, beside a projection or lifting, that are no mere views or copies."""
    working = [n for n in folds.graph.needed([run.target], run.sources) if folds.graph.costs.get(n, (0, 0)) != (0, 0)]
    return [operation(node) for node in working if node is not mark and operation(node) not in IDENTITY]


def _merged(run: Run, mark: fx.Node, folds: AffineFolds) -> str:
    names = ", ".join(dict.fromkeys(_working(run, mark, folds))) or "reshaping"
    sizes = " + ".join(f"{folds.graph.size(source):,}" for source in run.sources) or "a constant"
    return f"with {names}: {sizes} -> {folds.graph.size(run.target):,}"


def _neighbours(mark: fx.Node, folds: AffineFolds, part: str) -> str:
    """Return what stands before a projection, or after a lifting."""
    graph = folds.graph
    if part == "projection":
        node = mark
        while folds.is_affine(node) and folds.sources(node):
            node = folds.sources(node)[0]
        if node.op == "placeholder":
            return "the network's input is the state"
        return f"'{_name(node)}' stands before it, which is not affine; sampled_encoder=… would approximate"
    following = {mark, *folds.following(mark)}
    users = [user for node in following for user in node.users if user not in following]
    named = [_name(user) for user in users if user.op != "output" and graph.batch_axis(user) is not None]
    if named:
        return f"'{named[0]}' stands after it, which is not affine"
    return "its result is the network's output"


def _name(node: fx.Node) -> str:
    return "another solve" if node.op == "call_module" else operation(node)


def _entries(fold: SampledFold) -> str:
    return f"{fold.entries} sampled entries of y(0)"


def _cost(cost: Cost) -> str:
    return f"{cost.operations:,} multiply-adds and {cost.written:,} bytes"


def _errors(small, folded, graph: NetworkGraph, example: Sequence[Any], folds: AffineFolds) -> dict[str, float]:
    """Compare the outputs of both networks: on held-out samples if an encoder was fitted, else on the first ones."""
    fitted = [fold for fold in folds.replaced.values() if isinstance(fold, SampledFold)]
    rows = fitted[0].held_out if fitted else torch.arange(min(graph.samples, _COMPARED_SAMPLES)).numpy()
    arguments = graph.select(example, rows[:_COMPARED_SAMPLES])
    with evaluation(small), torch.no_grad():
        expected, value = (tree_leaves(network(*arguments)) for network in (small, folded))
    missed = norm = 0.0
    for e, v in zip(expected, value, strict=True):
        if isinstance(e, Tensor) and e.is_floating_point():
            known = e.isfinite()
            missed += float((v[known].double() - e[known].double()).square().sum())
            norm += float(e[known].double().square().sum())
    where = "held-out samples" if fitted else "the example"
    return {f"network output on {where}": (missed / max(norm, 1e-300)) ** 0.5}
