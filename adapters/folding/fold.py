"""`fold`: a copy of a reduced network for deployment, with projection and lifting merged into their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from torchmor.adapters.folding.affine_folds import AffineFolds, Fold
from torchmor.adapters.folding.explanation import FoldExplanation, describe
from torchmor.adapters.folding.network_graph import NetworkGraph
from torchmor.adapters.folding.sampled_encoder import SampledFold, fit_sampled_encoder
from torchmor.adapters.layers.placing import copied, original
from torchmor.adapters.networks.difference import Difference
from torchmor.adapters.solving.torch_private import tree_leaves, tree_map
from torchmor.engine.errors import SizeError, UnsupportedOperationError

#: Largest relative difference of outputs by rounding, in half precision too; an exact copy that differs more is wrong.
_SAME = 0.1

#: At most so many samples of the example compare the folded network with the original.
_COMPARED_SAMPLES = 512


class FoldedNetwork(fx.GraphModule):
    """What `fold` returns: a network as a graph of tensor operations, called like the one it was made of.

    It computes in eval mode whatever its mode: dropout is gone, and normalisations use their running statistics.
    """

    def explain(self) -> FoldExplanation:
        """Return what was merged, what was not and why, with multiply–adds before and after; print it to read it."""
        return self.meta["explanation"]


def fold(small: nn.Module, *example: Any, sampled_encoder: int | None = None) -> FoldedNetwork:
    """Return a copy of a network with reduced layers, for deployment: projection and lifting are merged away.

    Law: the copy is the same function of its arguments as `small` in eval mode, for any batch, and costs no more; with
    `sampled_encoder` it is an approximation, whose error is told.

    Once a layer is reduced, encoding n → r and decoding r → n cost more than its ODE. The affine operations that stand
    before the projection (linear layers, convolutions, batch normalisation, average pooling, padding, reshaping, by
    what they compute, however they are written) become one matrix with it, back to the last nonlinearity or the
    network's input; so do those after the lifting. Each is done where it saves multiply–adds and bytes, and only there;
    ``folded.explain()`` tells. Nothing else is changed: operations that other parts need too are kept for them.

    The network is traced by torch.export with a dynamic batch, on the device of the example, where the copy runs too.
    It can be exported and compiled. A layer's `on_outside` is lost, since the state is no longer there to be looked at.

    Parameters
    ----------
    small
        A network with one or more reduced layers; it is not changed.
    example
        The arguments of a call of it. Tensors as long as the first one along dimension 0 are batched, but for those
        that are the times of ODE layers.
    sampled_encoder
        Number s of entries, to treat projections that stand behind nonlinear operations, with which they cannot be
        merged, too: z(0) is fitted to the s entries of y(0) that tell most of it, and only these are evaluated, where
        that costs less. The example is the calibration data then: four fifths of its samples are fitted to, two or more
        for each entry, and the others measure the error. None (the default) to approximate nothing.

    Returns
    -------
    FoldedNetwork

    Raises
    ------
    UnknownLayerError
        The network has no reduced layer.
    UnsupportedOperationError
        torch.export cannot trace the network with a dynamic batch, or its graph computes something else.
    CalibrationError
        The example has no sample, or too few to fit a sampled encoder to.
    NonFiniteError
        The states to fit a sampled encoder to are not finite.
    SizeError
        There is no such number of entries.

    References
    ----------
    Tropp, Gilbert, Strauss: Algorithms for simultaneous sparse approximation, Part I, Signal Processing 2006.

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
    fitted = {}
    if sampled_encoder is not None:
        for encode in [call.encode for call in graph.calls if call.encode is not None]:
            encoder = fit_sampled_encoder(folds, encode, example, sampled_encoder)
            if encoder is not None:
                fitted[encode] = encoder
                if _pays(encoder, folds):
                    folds.replaced[encode] = encoder
    marks = [mark for call in graph.calls for mark in (call.encode, call.decode) if mark is not None]
    folds.fold_all([mark for mark in marks if mark not in folds.replaced])
    after, parts = folds.cost(), describe(folds, fitted)
    _build(folds)
    folded = FoldedNetwork(graph.module, graph.module.graph).eval()
    folded.meta["explanation"] = FoldExplanation(
        parts,
        (before.operations, after.operations),
        (before.written, after.written),
        _errors(small, folded, folds, example),
    )
    return folded


def _pays(encoder: SampledFold, folds: AffineFolds) -> bool:
    """Whether a sampled encoder saves anything, and more than an exact fold would."""
    exact = folds.best(run for run in folds.runs(encoder.run.target) if folds.pays(run))
    least = 0 if exact is None else folds.saving(exact).total
    return encoder.saving.operations >= 0 and encoder.saving.total > least


def _build(folds: AffineFolds) -> None:
    """Put what was folded into the graph, in the place of its target."""
    graph = folds.graph
    for node in [node for node in graph.nodes if node in folds.replaced]:
        fold = folds.replaced[node]
        with graph.module.graph.inserting_before(node):
            value = _sampled(graph, fold) if isinstance(fold, SampledFold) else _affine(graph, fold)
        value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
    graph.module.graph.eliminate_dead_code()
    graph.module.graph.lint()


def _sampled(graph: NetworkGraph, fold: SampledFold) -> fx.Node:
    name = graph.new_name("sampled_encoder")
    graph.module.add_submodule(name, fold.module)
    return graph.module.graph.call_module(name, (_rows(graph, fold.run.sources[0]),))


def _affine(graph: NetworkGraph, fold: Fold) -> fx.Node:
    call = graph.module.graph.call_function
    axis, shape = graph.batch_axis(fold.run.target), graph.sample_shape(fold.run.target)
    bias = _tensor(graph, "folded_bias", nn.Parameter(fold.bias))
    if not fold.weights:
        batch = call(torch.ops.aten.sym_size.int, (graph.batched_placeholder, 0))
        return call(torch.ops.aten.expand.default, (bias, [batch, *shape]))
    assert axis is not None, "a run ends in samples"
    total: Any = None
    for source, weight in zip(fold.run.sources, fold.weights, strict=True):
        matrix = _tensor(graph, "folded_weight", nn.Parameter(weight))
        if fold.time_axis is not None:
            rows = source  # (times, batch, size)
        elif fold.read_times is not None:
            indices = torch.tensor(fold.read_times, device=weight.device)
            read = call(torch.index_select, (source, 0, _tensor(graph, "read_times", indices)))
            rows = call(torch.flatten, (call(torch.movedim, (read, 1, 0)), 1))
        else:
            rows = _rows(graph, source)
        term = call(torch.ops.aten.linear.default, (rows, matrix, bias) if total is None else (rows, matrix))
        total = term if total is None else call(torch.ops.aten.add.Tensor, (total, term))
    if fold.time_axis is None:
        if len(shape) != 1:
            total = call(torch.reshape, (total, [-1, *shape]))
        return call(torch.movedim, (total, 0, axis)) if axis else total
    times, rest = shape[fold.time_axis], [length for i, length in enumerate(shape) if i != fold.time_axis]
    if len(rest) != 1:
        total = call(torch.reshape, (total, [times, -1, *rest]))
    return call(torch.movedim, (total, [0, 1], [fold.time_axis + (fold.time_axis >= axis), axis]))


def _rows(graph: NetworkGraph, source: fx.Node) -> fx.Node:
    """Return a value with one flattened sample in each row."""
    call = graph.module.graph.call_function
    axis, dimensions = graph.batch_axis(source), len(graph.sample_shape(source))
    if axis:
        source = call(torch.movedim, (source, axis, 0))
    if dimensions == 1:
        return source
    return call(torch.flatten if dimensions else torch.unsqueeze, (source, 1))


def _tensor(graph: NetworkGraph, stem: str, value: Tensor) -> fx.Node:
    name = graph.new_name(stem)
    if isinstance(value, nn.Parameter):
        graph.module.register_parameter(name, value)
    else:
        graph.module.register_buffer(name, value)
    return graph.module.graph.get_attr(name)


def _errors(small: nn.Module, folded: nn.Module, folds: AffineFolds, example: tuple[Any, ...]) -> dict[str, float]:
    """Compare both networks; where encoders were fitted, on the samples that they were not fitted to."""
    encoders = {
        call.layer: encoder
        for call in folds.graph.calls
        if call.encode is not None and isinstance(encoder := folds.replaced.get(call.encode), SampledFold)
    }
    errors, rows, samples = {}, np.arange(folds.graph.samples), "samples of the example"
    for layer, encoder in encoders.items():
        rows, samples = encoder.held_out, "held-out samples"
        errors[f"z(0) of layer '{layer}' on {len(rows):,} {samples}"] = encoder.error
    rows = rows[:_COMPARED_SAMPLES]
    arguments = folds.graph.select(example, rows)
    network = copied(original(small)).eval()  # what it counts and keeps does not move
    found = _difference(network, folded, arguments)
    errors[f"the network's output on {len(rows):,} {samples}"] = found.relative
    if not encoders:
        few = folds.graph.select(example, rows[: 1 if len(rows) == 2 else 2])
        others = tree_map(lambda a: a / 1.25 if isinstance(a, Tensor) and a.is_floating_point() else a, few)
        for one in (found, _difference(network, folded, others)):
            if not one.norm <= _SAME * one.size + 1e-6:  # outputs may be 0 but for rounding
                raise UnsupportedOperationError(
                    "expected a network whose graph computes what it computes, got a relative difference of "
                    f"{one.relative:.2g} on the example or data like it: let its forward not depend on "
                    "random numbers in eval mode, on earlier calls, or on values outside of torch"
                )
    return errors


def _difference(network: nn.Module, folded: nn.Module, arguments: tuple[Any, ...]) -> Difference:
    """Difference of the floating-point outputs, with the same random numbers."""
    with torch.no_grad(), torch.random.fork_rng():
        state = torch.get_rng_state()
        expected = tree_leaves(network(*arguments))
        torch.set_rng_state(state)
        values = tree_leaves(folded(*arguments))
    found = Difference()
    for exact, value in zip(expected, values, strict=True):
        if isinstance(exact, Tensor) and exact.is_floating_point():
            found.add(exact, value)
    return found
