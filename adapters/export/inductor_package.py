"""Export to AOTInductor packages, ``.pt2``: compiled for this machine."""

import io
import os
import shutil

import torch
from torch import Tensor, nn

from torchmor.adapters.export.agreement import Agreement, compare
from torchmor.adapters.export.graph import announce, exportable, first_line, quiet, suffixed, trace
from torchmor.adapters.export.note import KEY, note
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.solving.torch_private import aoti_compile_and_package, aoti_load_package, tree_leaves
from torchmor.engine.errors import ExportError


def export_inductor(
    module: nn.Module, path: str | os.PathLike[str], *example: Tensor, verbose: bool = True
) -> Agreement:
    """Compile a module to an AOTInductor package, for any batch, on the device of its parameters.

    Law: ``torch._inductor.aoti_load_package(path)(*arguments)`` equals ``module(*arguments)`` in eval mode. It is
    checked on the spot, at the example's batch and two others. The package holds machine code for processors like this
    one and for this version of torch, and runs without Python too. Compiling takes half a minute and a C++ compiler.

    Parameters, results and errors are those of :func:`~torchmor.adapters.export_program`.
    """
    path = suffixed(path, ".pt2")
    module = exportable(module)
    program = trace(module, example)
    written = io.BytesIO()  # on a full disk, torch's own writing would end the process
    try:
        with torch.no_grad(), quiet():
            aoti_compile_and_package(
                program,
                package_path=written,
                inductor_configs={"aot_inductor.metadata": {KEY: note(module, program)}},
            )
    except Exception as error:
        compiler = os.environ.get("CXX", "g++")
        fix = "see the error above" if shutil.which(compiler) else "install a C++ compiler, or set CXX to one"
        raise ExportError(f"AOTInductor could not compile the module ({first_line(error)}): {fix}") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.getbuffer())
        with quiet():
            loaded = aoti_load_package(os.fspath(temporary))
        agreement = compare(lambda a: tree_leaves(loaded(*a)), module, example, "AOTInductor")
    announce(verbose, path, "AOTInductor package", agreement)
    return agreement
