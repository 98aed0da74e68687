"""Export to ExecuTorch, ``.pte``: for phones and embedded devices."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.export.agreement import Agreement, compare
from torchmor.adapters.export.failure import first_line
from torchmor.adapters.export.graph import announce, exportable, suffixed, trace
from torchmor.adapters.export.note import KEY, note
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import ExportError, MissingPackageError


def export_executorch(
    module: nn.Module, path: str | os.PathLike[str], *example: Any, max_batch: int = 256, verbose: bool = True
) -> Agreement:
    """Export a module to an ExecuTorch program with XNNPACK kernels, for any batch up to a largest one.

    Law: the method ``forward`` of the program equals ``module(*arguments)`` in eval mode. It is checked on the spot, at
    the example's batch and two others. The program holds a second method, ``torchmor``, that returns torchmor's note.

    Parameters
    ----------
    max_batch
        Largest batch: ExecuTorch plans its memory ahead.

    Other parameters, results and errors are those of :func:`~torchmor.adapters.export_program`.

    Raises
    ------
    MissingPackageError
        executorch is not installed.
    """
    path = suffixed(path, ".pte")
    try:
        with _silent():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
            from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
            from executorch.runtime import Runtime
    except ImportError as error:
        raise MissingPackageError(
            f"expected the package executorch, {error.name or 'a part of it'} is missing: pip install executorch, in "
            "the version that belongs to your torch"
        ) from error
    module = exportable(module)
    program = trace(module, example, max_batch)
    try:
        with torch.no_grad(), _silent():
            lowered = to_edge_transform_and_lower(
                program.run_decompositions(_SLICES),
                partitioner=[XnnpackPartitioner()],
                constant_methods={KEY: note(module, program)},
            )
            written = lowered.to_executorch(
                ExecutorchBackendConfig(sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass())  # plans for max_batch
            )
    except Exception as error:
        raise ExportError(
            f"ExecuTorch could not export the module ({first_line(error)}): see the error above"
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.buffer)
        with _silent():
            method = Runtime.get().load_program(temporary).load_method("forward")
        agreement = compare(
            lambda arguments: [
                value.clone() for value in method.execute([a.contiguous() for a in tree_leaves(arguments)])
            ],
            module,
            example,
            "ExecuTorch",
            max_batch,
        )
    announce(verbose, path, f"ExecuTorch program for batches up to {max_batch}", agreement)
    return agreement


def _split(x: Tensor, sizes: list[int], dim: int = 0) -> list[Tensor]:
    parts, start = [], 0
    for size in sizes:
        parts.append(torch.ops.aten.slice.Tensor(x, dim, start, start + size))
        start += size
    return parts


def _split_evenly(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    length = x.shape[dim]
    if not isinstance(length, int):
        return NotImplemented
    return _split(x, [min(size, length - start) for start in range(0, length, size)], dim)


#: ExecuTorch 1.5 takes the batch of the example for a constant where it meets a split; slices it takes as they are.
_SLICES = {torch.ops.aten.split_with_sizes.default: _split, torch.ops.aten.split.Tensor: _split_evenly}


@contextmanager
def _silent() -> Iterator[None]:
    """Silence all warnings: ExecuTorch uses outdated parts of Python and torch in many places, and says so itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
