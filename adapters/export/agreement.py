"""Whether an exported file computes what torch computes, checked where it was written."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.export.failure import first_line
from torchmor.adapters.export.graph import check_example, resized
from torchmor.adapters.export.time_arguments import time_arguments
from torchmor.adapters.solving.torch_private import tree_leaves
from torchmor.engine.errors import ExportError

#: Largest error of an exported file, relative to the largest magnitude of the output, by its dtype.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of an exported file are from torch's.

    Parameters
    ----------
    runtime
        Where the file ran.
    batches
        Batch sizes that were compared, the example's first.
    absolute
        Largest absolute error.
    relative
        Largest error relative to the largest magnitude of the output that it is in.
    """

    runtime: str
    batches: tuple[int, ...]
    absolute: float
    relative: float

    def __str__(self) -> str:
        batches = ", ".join(map(str, self.batches))
        return (
            f"{self.runtime} against torch at batch {batches}: max absolute error {self.absolute:.2g}, "
            f"relative {self.relative:.2g}"
        )


def compare(
    run: Callable[[Sequence[Any]], Sequence[Any]],
    module: nn.Module,
    example: Sequence[Any],
    runtime: str,
    max_batch: int | None = None,
) -> Agreement:
    """Compare an exported file with the module at the example's batch and at two others, at other times there.

    Only tensors are compared: numbers that a module returns beside are not in every format.

    Parameters
    ----------
    run
        Arguments → outputs of the file.
    module
        The module in eval mode, before it was traced.
    example
        Arguments of a call.
    runtime
        Where the file runs.
    max_batch
        Largest batch that the file takes; None for any.

    Raises
    ------
    ExportError
        The file does not run, returns other shapes or dtypes, or its error is above TOLERANCES.
    """
    times = time_arguments(module, example)
    batch = check_example(example, times)
    others = [size for size in (1, batch + 3, 2, 3) if size != batch and size <= (max_batch or size)][:2]
    absolute = relative = 0.0
    for size in (batch, *others):
        arguments = resized(example, size, times)
        with torch.no_grad():
            expected = _tensors(tree_leaves(module(*arguments)))
        try:
            outputs = _tensors(run(arguments))
        except Exception as error:
            raise ExportError(
                f"the exported module fails in {runtime} at batch {size} ({first_line(error)}): nothing was "
                "written; where an operation is not implemented for the dtype, export module.float()"
            ) from error
        found = [(tuple(value.shape), value.dtype) for value in outputs]
        wanted = [(tuple(value.shape), value.dtype) for value in expected]
        if found != wanted:
            raise ExportError(f"expected outputs {wanted} at batch {size}, got {found} from {runtime}: nothing written")
        for value, target in zip(outputs, expected, strict=True):
            worst, scale = _errors(value, target)
            absolute, relative = max(absolute, worst), max(relative, worst / scale if worst else 0.0)
            tolerance = TOLERANCES.get(target.dtype, 0.0)
            if not worst <= tolerance * scale:
                raise ExportError(
                    f"expected a relative error of at most {tolerance:.0e} in {runtime} for {target.dtype}, got "
                    f"{worst / scale:.2g} at batch {size}: nothing was written; see which operations differ, or export "
                    "in another dtype, module.float() or module.double()"
                )
    return Agreement(runtime, (batch, *others), absolute, relative)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _errors(value: Tensor, target: Tensor) -> tuple[float, float]:
    """Largest absolute error, and the largest magnitude of the target."""
    if not target.numel():
        return 0.0, 1.0
    value, target = value.detach().to("cpu", torch.float64), target.detach().to("cpu", torch.float64)
    if not target.isfinite().all():
        raise ExportError("expected a module that returns finite values for the example, got NaN or infinity in torch")
    error = float((value - target).abs().max())
    return (math.inf if math.isnan(error) else error), max(float(target.abs().max()), 1e-30)
