"""Graphs in float64 as ONNX Runtime computes them in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torchmor.adapters.export.graph import quiet, trace
from torchmor.adapters.solving.torch_private import decompositions

aten = torch.ops.aten

#: Activations that ONNX Runtime has in float32 only, or that keep numbers as attributes: computed from simpler ones.
_ACTIVATIONS = "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu mish selu softplus threshold"


def _add(x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    return NotImplemented if alpha == 1 else x + alpha * y


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    if low is not None:
        x = torch.where(x < low, low, x)
    return x if high is None else torch.where(x > high, high, x)


_SIMPLER = {
    aten.add.Tensor: _add,
    aten.clamp.default: _clamp,
    aten.lerp.Scalar: lambda start, end, weight: start + weight * (end - start),
    aten.rsub.Scalar: lambda x, y, alpha=1: x * -alpha + y,
}

#: Operations that take a number, and the same ones with a tensor in its place.
_WITH_TENSORS = {
    aten.add.Tensor: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.pow.Scalar: aten.pow.Tensor_Tensor,
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor,
    aten.where.ScalarSelf: aten.where.self,
    aten.where.ScalarOther: aten.where.self,
    **{getattr(aten, name).Scalar: getattr(aten, name).Tensor for name in "gt ge lt le eq ne".split()},
}


def exact(program: ExportedProgram, example: Sequence[Tensor]) -> ExportedProgram:
    """Return a float64 program with its numbers as float64 tensors; programs in other dtypes as they are.

    torch.onnx keeps Python's numbers in float32, and ONNX Runtime has few activations in float64. In other dtypes
    neither matters, and whole activations are faster.

    Parameters
    ----------
    program
        A traced module.
    example
        Arguments of a call.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    if all(values[name].dtype != torch.float64 for name in program.graph_signature.user_outputs):
        return program
    activations = [getattr(aten, name).default for name in _ACTIVATIONS.split()]
    with torch.no_grad(), quiet():
        program = program.run_decompositions(decompositions(activations) | _SIMPLER)
        module = program.module(check_guards=False)
    graph = module.graph
    for node in list(graph.nodes):
        positions = [i for i, argument in enumerate(node.args) if isinstance(argument, float)]
        if node.target not in _WITH_TENSORS or not positions:
            continue
        node.target = _WITH_TENSORS[node.target]
        for i in positions:
            name = f"{node.name}_number_{i}"
            module.register_buffer(name, torch.tensor(node.args[i], dtype=torch.float64))
            with graph.inserting_before(node):
                node.update_arg(i, graph.get_attr(name))
    module.recompile()
    return trace(module, example)
