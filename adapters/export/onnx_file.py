"""Export to ONNX, checked in ONNX Runtime."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchmor.adapters.export.agreement import Agreement, compare
from torchmor.adapters.export.failure import chain, first_line
from torchmor.adapters.export.float64 import exact
from torchmor.adapters.export.graph import announce, exportable, quiet, suffixed, trace
from torchmor.adapters.export.note import KEY, note, tensor_names
from torchmor.adapters.export.time_arguments import time_arguments
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import ExportError, MissingPackageError

#: Version of ONNX's operators in exported files.
OPSET = 20


def export_onnx(module: nn.Module, path: str | os.PathLike[str], *example: Any, verbose: bool = True) -> Agreement:
    """Export a module to one ONNX file (opset 20, optimised, weights included), for any batch.

    Law: the file in ONNX Runtime equals ``module(*arguments)`` in eval mode. It is checked on the spot, on the CPU, at
    the example's batch and two others.

    Parameters
    ----------
    module
        A reduced layer, a network with such layers, a folded network, or a `single_step`; any module that torch.export
        can trace. It is not changed.
    path
        File ending in .onnx; written whole or not at all.
    example
        Arguments of one call: tensors, whose dimension 0 becomes the dynamic dimension "batch", or tuples, lists and
        dicts of them. Times of ODE layers have none, and are arguments of the file too; it holds numbers as constants.
    verbose
        Print what was written, its opset, and how far it is from torch.

    Returns
    -------
    Agreement
        The largest errors.

    Raises
    ------
    ExportError
        A layer's solver, or something else in the module, cannot be exported; or ONNX Runtime disagrees with torch, or
        has no implementation of an operation in the dtype (such as erf in float64). Nothing is written.
    MissingPackageError
        onnx, onnxscript or onnxruntime is not installed.
    ShapeError
        The example has no common batch.
    ValueError
        The path ends otherwise.
    OSError
        The file cannot be written.
    """
    path = suffixed(path, ".onnx")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch.onnx exports with
    except ImportError as error:
        raise MissingPackageError(
            f"expected the packages for ONNX, {error.name} is missing: pip install 'torchmor[export]'"
        ) from error
    module = exportable(module)
    program = trace(module, example)
    text, signature = note(module, program), program.graph_signature
    if len(tensor_names(program, signature.user_outputs)) < len(signature.user_outputs):
        program = trace(_Tensors(module), example, times=time_arguments(module, example))
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encoded(exact(program, example), text))
        agreement = compare(
            lambda arguments: _run(onnxruntime, temporary, arguments),
            module,
            example,
            f"ONNX Runtime {onnxruntime.__version__}",
        )
    announce(verbose, path, f"ONNX, opset {OPSET}", agreement)
    return agreement


def _encoded(program: ExportedProgram, text: str) -> bytes:
    signature = program.graph_signature
    names = tensor_names(program, signature.user_outputs)
    try:
        with torch.no_grad(), quiet():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=tensor_names(program, signature.user_inputs),
                output_names=["output"] if len(names) == 1 else [f"output_{i}" for i in range(len(names))],
                verbose=False,
            )
            _name_batch(exported.model.graph)
            exported.model.metadata_props[KEY] = text
            encoded: bytes = exported.model_proto.SerializeToString()
    except Exception as error:
        *_, cause = chain(error)
        raise ExportError(
            f"torch.onnx could not export the module ({first_line(cause)}): write it with other operations, or use "
            "export_program"
        ) from error
    return encoded


class _Tensors(nn.Module):
    """A module without what ONNX has no outputs for: numbers, strings and None."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(self.module(*arguments)) if isinstance(leaf, Tensor)]


def _name_batch(graph: Any) -> None:
    """Call the dynamic dimension "batch", where torch.onnx has the name of a symbol."""
    symbols = {length.value for value in graph.inputs for length in value.shape if not isinstance(length, int)}
    for value in (*graph.inputs, *graph.outputs):
        for i, length in enumerate(value.shape):
            if not isinstance(length, int) and length.value in symbols:
                value.shape[i] = "batch"


def _run(onnxruntime: Any, path: Path, arguments: Sequence[Any]) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors are raised, and warnings are about its own optimisations
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    feed = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]
