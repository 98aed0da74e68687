"""What is exported: a copy of a module that can be traced, and its graph with a dynamic batch."""

import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from torchmor.adapters.export.failure import explain_failure
from torchmor.adapters.export.time_arguments import time_arguments
from torchmor.adapters.layers.placing import copied, original
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.solving.runge_kutta import is_fixed_step
from torchmor.adapters.solving.solve_settings import OWN_OPTIONS, SolvingLayer
from torchmor.adapters.solving.torch_private import tree_flatten, tree_leaves, tree_structure, tree_unflatten
from torchmor.engine.errors import ExportError, ShapeError, TorchmorError
from torchmor.engine.grids import equal_step_size


def exportable(module: nn.Module) -> nn.Module:
    """Return a copy of a module as it is exported: in eval mode, without gradients, every ODE layer with fixed steps.

    Law: the copy computes what the module computes in eval mode, to rounding; the module is not changed. What looks at
    values at run time (`on_outside`) stays behind, and so does torch.compile.

    Raises
    ------
    ExportError
        An ODE layer, full or reduced, has a solver that cannot be exported.
    """
    if not isinstance(module, nn.Module):
        raise ExportError(f"expected an nn.Module to export, got a {type(module).__name__}: wrap it in one")
    for name, layer in original(module).named_modules():
        if isinstance(layer, SolvingLayer):
            check_steps(name, layer)
    module = copied(original(module)).eval()
    for layer in module.modules():
        layer._compiled_call_impl = None
        if isinstance(layer, SolvingLayer):
            layer.adjoint = False  # a way to gradients, which goes through torchdiffeq
        if isinstance(layer, ReducedODELayer):
            layer.on_outside = None
    for parameter in module.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(False)
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
    steps = layer.explain().steps if isinstance(layer, ReducedODELayer) and layer.explanation is not None else None
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


def check_example(example: Sequence[Any], times: frozenset[int] = frozenset()) -> int:
    """Return the batch of an example, dimension 0 of its tensors.

    Tensors of dimension 0 have none, nor those of dimension 1 that are times of ODE layers, or of another length than
    the first tensor. Tuples, lists and dicts of tensors are looked into; numbers, strings and None are constants.

    Raises
    ------
    ShapeError
        There is no batch, it is empty, or the tensors have different ones.
    ExportError
        Something is neither tensor nor constant.
    """
    leaves = tree_leaves(tuple(example))
    for leaf in leaves:
        if not isinstance(leaf, Tensor | bool | int | float | str | None):
            raise ExportError(
                f"expected example arguments that are tensors, got a {type(leaf).__name__}: give inputs u(t) as "
                "samples (batch, times, p)"
            )
    batches = {len(leaves[i]) for i in _batched(leaves, times)}
    if len(batches) != 1 or 0 in batches:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)) or "none"
        raise ShapeError(
            f"expected example tensors with the same batch, 1 or more, in dimension 0, got shapes {shapes}: pass the "
            "arguments of one call"
        )
    return batches.pop()


def _batched(leaves: Sequence[Any], times: frozenset[int]) -> list[int]:
    """Positions of the tensors that have a batch."""
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim and i not in times]
    return [i for i in tensors if leaves[i].ndim > 1 or len(leaves[i]) == len(leaves[tensors[0]])]


def resized(example: Sequence[Any], batch: int, times: frozenset[int] = frozenset()) -> tuple[Any, ...]:
    """Return an example of another batch: its samples, repeated where needed, each repetition scaled differently.

    Times of ODE layers, by their positions among the leaves, become others.
    """
    leaves, structure = tree_flatten(tuple(example))
    batched = _batched(leaves, times)

    def other(i: int, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach()
        if i in batched and len(leaf) != batch:
            return rows(leaf)
        if i in times and batch != check_example(example, times):
            return leaf[:1] + (leaf - leaf[:1]) / 1.25
        return leaf

    def rows(tensor: Tensor) -> Tensor:
        repeats = math.ceil(batch / len(tensor))
        if tensor.is_floating_point():
            return torch.cat([tensor / (1 + i / 4) for i in range(repeats)])[:batch]
        return torch.cat([tensor] * repeats)[:batch]

    arguments: tuple[Any, ...] = tree_unflatten([other(i, leaf) for i, leaf in enumerate(leaves)], structure)
    return arguments


def trace(
    module: nn.Module, example: Sequence[Any], max_batch: int | None = None, times: frozenset[int] | None = None
) -> ExportedProgram:
    """Return the graph of an `exportable` module, with a dynamic batch in dimension 0 of the tensors that have one.

    It does not keep file names of this machine.

    Parameters
    ----------
    times
        Which leaves of the example are times of ODE layers; None to find out.

    Raises
    ------
    ExportError
        torch.export cannot trace the module, or only for one batch size.
    """
    times = time_arguments(module, example) if times is None else times
    size = max(check_example(example, times), 2)  # a batch of 1 would be taken for a constant
    if max_batch is not None and max_batch < size:
        raise ExportError(f"expected max_batch of at least {size} for this example, got {max_batch}: raise it")
    example = resized(example, size, times)
    shapes: Any = ShapesCollection()  # torch.export takes it, though its types do not say so
    batch = Dim("batch", min=1, max=max_batch)
    leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(example)]  # none of them twice
    example = tree_unflatten(leaves, tree_structure(example))
    for i in _batched(leaves, times):
        shapes[leaves[i]] = {0: batch}
    program = traced(module, tuple(example), shapes, "with a dynamic batch")
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def traced(module: nn.Module, example: tuple[Any, ...], dynamic_shapes: Any, how: str) -> ExportedProgram:
    """Return the graph that torch.export makes of a module.

    Raises
    ------
    ExportError
        It cannot be traced; the message names the part, the place and the cause.
    """
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise ExportError(
            f"expected modules in Python, to trace them {how}, got the TorchScript module {scripted[0]!r}, of which "
            "torch.export sees one batch only: put the module that was scripted or traced in its place"
        )
    failures: list[Exception] = []
    for strict in (False, True):  # the first does not understand len(x), the second not all of Python
        try:
            with torch.no_grad(), quiet():
                return torch.export.export(module, example, dynamic_shapes=dynamic_shapes, strict=strict)
        except TorchmorError:
            raise
        except Exception as error:  # torch raises what it likes
            failures.append(error)
    raise ExportError(
        f"expected a module that torch.export can trace {how}, got one that it cannot: "
        f"{explain_failure(failures[0], module)}"
    ) from failures[0]


#: Of a missing torchvision, of symbols that are not in a graph, of failures that are raised anyway.
_LOGGERS = (
    "torch.onnx._internal.exporter._registration",
    "torch.fx.experimental.symbolic_shapes",
    "torch._export.serde.serialize",
    "torch._dynamo",
    "torch._guards",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch warns about while it exports, none of which a user can mend."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # where half-made graphs are printed
        for category, message in (
            (FutureWarning, r".*LeafSpec"),  # torch copies tree specs of its own the old way
            (DeprecationWarning, r".*torch\.jit"),  # the compiler imports parts of torch.jit
            (UserWarning, r".* assigned during export"),  # what a copy keeps for later
        ):
            warnings.filterwarnings("ignore", message, category)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


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
