"""Export to torch.export programs, ``.pt2``."""

import io
import os

import torch
from torch import Tensor, nn

from torchmor.adapters.export.agreement import Agreement, compare
from torchmor.adapters.export.graph import announce, exportable, quiet, suffixed, trace
from torchmor.adapters.export.note import KEY, note
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.solving.torch_private import tree_leaves


def export_program(
    module: nn.Module, path: str | os.PathLike[str], *example: Tensor, verbose: bool = True
) -> Agreement:
    """Export a module as a torch.export program that runs with torch alone, for any batch.

    Law: ``torch.export.load(path).module()(*arguments)`` equals ``module(*arguments)`` in eval mode. It is checked on
    the spot, at the example's batch and two others.

    Parameters
    ----------
    module
        A reduced layer, a network with such layers, a folded network, or a `single_step`; any module that torch.export
        can trace. It is not changed.
    path
        File ending in .pt2; written whole or not at all.
    example
        Arguments of one call, tensors. Dimension 0 of each becomes a dynamic batch.
    verbose
        Print what was written and how far it is from torch.

    Returns
    -------
    Agreement
        The largest errors.

    Raises
    ------
    ExportError
        A layer's solver, or something else in the module, cannot be exported; or the loaded program disagrees with
        torch. Nothing is written.
    ShapeError
        The example has no common batch.
    ValueError
        The path ends otherwise.
    OSError
        The file cannot be written.
    """
    path = suffixed(path, ".pt2")
    module = exportable(module)
    program = trace(module, example)
    program.example_inputs = None  # data of the user, which would be saved too
    written = io.BytesIO()  # on a full disk, torch's own writing would end the process
    with quiet():
        torch.export.save(program, written, extra_files={KEY: note(module, program)})
        written.seek(0)
        loaded = torch.export.load(written).module()
    agreement = compare(lambda a: tree_leaves(loaded(*a)), module, example, "torch.export")
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.getbuffer())
    announce(verbose, path, "torch.export program", agreement)
    return agreement
