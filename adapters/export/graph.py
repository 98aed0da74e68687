"""What is exported: a copy of a module that can be traced, and its graph with a dynamic batch."""

import copy
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.solving.runge_kutta import is_fixed_step
from torchmor.adapters.solving.solve_settings import OWN_OPTIONS, SolvingLayer
from torchmor.engine.errors import ExportError, ShapeError
from torchmor.engine.grids import equal_step_size


def exportable(module: nn.Module) -> nn.Module:
    """Return a copy of a module as it is exported: in eval mode, without gradients, every ODE layer with fixed steps.

    Law: the copy computes what the module computes in eval mode, to rounding; the module is not changed. What looks at
    values at run time (`on_outside`) stays behind.

    Raises
    ------
    ExportError
        An ODE layer, full or reduced, has a solver that cannot be exported.
    """
    if not isinstance(module, nn.Module):
        raise ExportError(f"expected an nn.Module to export, got a {type(module).__name__}: wrap it in one")
    for name, layer in module.named_modules():
        if isinstance(layer, SolvingLayer):
            check_steps(name, layer)
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, SolvingLayer):
            layer.adjoint = False  # a way to gradients, which goes through torchdiffeq
        if isinstance(layer, ReducedODELayer):
            layer.on_outside = None
    return module


def check_steps(name: str, layer: SolvingLayer) -> None:
    """Refuse a layer, of this name in its network, whose steps depend on the state or need torchdiffeq.

    Raises
    ------
    ExportError
        It has an adaptive or implicit method, or an option that only torchdiffeq knows.
    """
    place = f"layer {name!r}" if name else "the layer"
    if not is_fixed_step(layer.method):
        raise ExportError(
            f"expected ODE layers with a fixed-step method, got {place} with method={layer.method!r}: its steps depend "
            f"on the state, and a graph would repeat those of the example for all; {_steps_instead(layer)}"
        )
    unknown = [option for option in layer.options if option not in OWN_OPTIONS]
    if unknown:
        raise ExportError(
            f"expected ODE layers with the options {' and '.join(OWN_OPTIONS)} at most, got {place} with "
            f"{', '.join(map(repr, unknown))}, which needs torchdiffeq, and that cannot be exported: leave it out, or "
            "say step_size and interp, and compare the outputs"
        )


def _steps_instead(layer: SolvingLayer) -> str:
    """Say which steps were tried in the place of a layer's adaptive solver, or that none are known."""
    explained = isinstance(layer, ReducedODELayer) and layer.explanation is not None
    steps = layer.explain().steps if explained else None
    if steps is None:
        return (
            'it is not known how many equal steps do what it does: set layer.method and layer.options["step_size"], '
            "and compare the outputs with those of now on data like yours"
        )
    size = equal_step_size(abs(layer.t[-1] - layer.t[0]), steps.count)
    return (
        f'set layer.method = {steps.method!r}; layer.options = {{"step_size": {size!r}}}: {steps.count} equal steps '
        f"were tried on held-out calibration data, where they do the same within its tolerances (relative difference "
        f"{steps.error:.2g})"
    )


def check_example(example: Sequence[Tensor]) -> int:
    """Return the batch of an example, dimension 0 of all its tensors (0-dim ones have none).

    Raises
    ------
    ShapeError
        There is no batch, it is empty, or the tensors have different ones.
    ExportError
        Something is no tensor.
    """
    for argument in example:
        if not isinstance(argument, Tensor):
            raise ExportError(
                f"expected example arguments that are tensors, got a {type(argument).__name__}: give inputs u(t) as "
                "samples (batch, times, p)"
            )
    batches = {len(argument) for argument in example if argument.ndim}
    if len(batches) != 1 or 0 in batches:
        shapes = ", ".join(str(tuple(argument.shape)) for argument in example) or "none"
        raise ShapeError(
            f"expected example tensors with the same batch, 1 or more, in dimension 0, got shapes {shapes}: pass the "
            "arguments of one call"
        )
    return batches.pop()


def resized(example: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """Return an example of another batch: its samples, repeated where needed, each repetition scaled differently."""

    def rows(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) == batch:
            return tensor
        repeats = math.ceil(batch / len(tensor))
        if tensor.is_floating_point():
            return torch.cat([tensor / (1 + i / 4) for i in range(repeats)])[:batch]
        return torch.cat([tensor] * repeats)[:batch]

    return tuple(rows(tensor.detach()) for tensor in example)


def trace(module: nn.Module, example: Sequence[Tensor], max_batch: int | None = None) -> ExportedProgram:
    """Return the graph of an `exportable` module, with a dynamic batch in dimension 0 of every example tensor.

    It does not keep file names of this machine.

    Raises
    ------
    ExportError
        torch.export cannot trace the module, or only for one batch size.
    """
    size = max(check_example(example), 2)  # a batch of 1 would be taken for a constant
    if max_batch is not None and max_batch < size:
        raise ExportError(f"expected max_batch of at least {size} for this example, got {max_batch}: raise it")
    example = resized(example, size)
    shapes: Any = ShapesCollection()  # torch.export takes it, though its types do not say so
    batch = Dim("batch", min=1, max=max_batch)
    for tensor in example:
        if tensor.ndim:
            shapes[tensor] = {0: batch}
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module, example, dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(
            f"torch.export could not trace the module with a dynamic batch ({first_line(error)}): see the error "
            "above. Often it is control flow on values, or a batch made a number by len(y): write y.shape[0]"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with its class."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch warns about while it exports, none of which a user can mend."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")  # missing torchvision
    level = registry.level
    with warnings.catch_warnings():
        for category, message in (
            (FutureWarning, r".*LeafSpec"),  # torch copies tree specs of its own the old way
            (DeprecationWarning, r".*torch\.jit"),  # the compiler imports parts of torch.jit
        ):
            warnings.filterwarnings("ignore", message, category)
        registry.setLevel(logging.ERROR)
        try:
            yield
        finally:
            registry.setLevel(level)


def suffixed(path: str | os.PathLike[str], suffix: str) -> Path:
    """Return a path that ends in `suffix`.

    Raises
    ------
    ValueError
        It ends otherwise.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"expected a path that ends in {suffix}, got {os.fspath(path)!r}")
    return path


def announce(verbose: bool, path: Path, what: str, agreement: object) -> None:
    """Say what was written, and how far it is from torch."""
    if verbose:
        print(f"{path}: {what}, {path.stat().st_size:,} bytes\n  {agreement}")
