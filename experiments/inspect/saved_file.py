"""What a saved file holds, in words."""

from pathlib import Path
from typing import Any

from torchmor.adapters.export.operators import operators
from torchmor.adapters.layers.files import build_layer, read
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.experiments.inspect.plain_text import printable


def describe(path: Path) -> str:
    """Return what a file written by `save` holds: its layers with their sizes, equation, solver and explanation.

    Raises
    ------
    FileFormatError
        The file is damaged, or was not written by `save`.
    OSError
        The file is missing, or may not be read.
    """
    config, tensors = read(path)
    layers = {name: build_layer(entry, name, tensors) for name, entry in config["layers"].items()}
    values = sum(tensor.numel() for tensor in tensors.values())
    inside = sum(parameter.numel() for layer in layers.values() for parameter in layer.parameters())
    lines = [
        f"{path}: {config['format']}, version {config['version']}",
        f"{path.stat().st_size:,} bytes; {values:,} numbers, of these {inside:,} "
        f"in {_count(len(layers), 'reduced layer')}",
    ]
    for name, layer in layers.items():
        lines += ["", *_layer(name, layer)]
    return "\n".join(map(printable, lines))


def _layer(name: str, layer: ReducedODELayer) -> list[str]:
    entries = operators(layer)
    shape = " x ".join(map(str, layer.state_shape))
    stages: Any = zip(layer.ode.stages, layer.ode.expressions, strict=True)
    points = [f"{argument.weight.shape[0] // expression.arity:,}" for argument, expression in stages]
    lines = [
        f"layer {name!r}" if name else "a layer alone",
        f"  state      {shape} -> {layer.ode.state_size:,}",
        f"  points     {' + '.join(points) or 'none'}",
        f"  input      {_count(layer.ode.input_size, 'channel') if layer.ode.input_size else 'none'}",
        f"  dtype      {str(layer.ode.output.weight.dtype).removeprefix('torch.')}",
        f"  solver     {layer.settings}",
        f"  parameters {sum(parameter.numel() for parameter in layer.parameters()):,}",
        "  equation",
        *(f"    {line}" for line in str(entries["equation"]).splitlines()),
        "  shapes",
        *(f"    {line}" for line in str(entries["shapes"]).splitlines()),
    ]
    if layer.explanation is not None:
        lines += ["  explanation", *(f"    {line}".rstrip() for line in str(layer.explain()).splitlines())]
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
