"""What torchmor notes in the files that it exports: plain data, read by ``torchmor info``."""

import json
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from torchmor.adapters.export.operators import equation
from torchmor.adapters.export.single_step import SingleStep
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.solving.solve_settings import SolvingLayer

#: Name of the note in a file's metadata.
KEY = "torchmor"


def note(module: nn.Module, program: ExportedProgram) -> str:
    """Return the note of a module and its graph, as JSON: versions, inputs, outputs, sizes and layers."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    batch = _batch([values[name] for name in tensor_names(program, signature.user_inputs)])

    def tensors_of(names: Iterable[Any]) -> list[dict[str, Any]]:
        return [_tensor(name, values[name], batch) for name in tensor_names(program, names)]

    tensors = [*module.parameters(), *module.buffers()]
    return json.dumps(
        {
            "torchmor": metadata.version("torchmor"),
            "torch": torch.__version__,
            "module": type(module).__name__,
            "inputs": tensors_of(signature.user_inputs),
            "outputs": tensors_of(signature.user_outputs),
            "parameters": sum(tensor.numel() for tensor in tensors),
            "parameter_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            "layers": [_layer(name, part) for name, part in module.named_modules() if isinstance(part, _LAYERS)],
        },
        allow_nan=False,
    )


_LAYERS = (SolvingLayer, SingleStep)


def tensor_names(program: ExportedProgram, names: Iterable[Any]) -> list[str]:
    """Those among the inputs or outputs of a program that are tensors; others are constants, and lengths."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [name for name in names if isinstance(name, str) and isinstance(values.get(name), torch.Tensor)]


def _batch(inputs: list[torch.Tensor]) -> str | None:
    """Symbol of the batch."""
    return next((str(n) for value in inputs for n in value.shape if not isinstance(n, int)), None)


def _tensor(name: str, value: torch.Tensor, batch: str | None) -> dict[str, Any]:
    shape = [n if isinstance(n, int) else "batch" if str(n) == batch else str(n) for n in value.shape]
    return {"name": name, "shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}


def _layer(name: str, layer: SolvingLayer | SingleStep) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "kind": "full ODE layer", "solver": str(layer.settings)}
    if isinstance(layer, SolvingLayer) and not isinstance(layer, ReducedODELayer):
        return found
    found |= {
        "kind": "one step of a reduced ODE layer" if isinstance(layer, SingleStep) else "reduced ODE layer",
        "state_size": layer.ode.state_size,
        "input_size": layer.ode.input_size,
        "equation": equation(layer.ode),
    }
    if isinstance(layer, ReducedODELayer):
        found["state_shape"] = list(layer.state_shape)
        if layer.explanation is not None:
            found["method"] = dict(layer.explanation.method)
    return found
