"""Exporting the operators of a reduced layer to SciPy, MATLAB, Octave and Julia."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torchmor.adapters.layers.arrays import to_array
from torchmor.adapters.layers.atomic import atomic_path
from torchmor.adapters.layers.chain_module import AffineModule, ChainModule
from torchmor.adapters.layers.reduced_layer import ReducedODELayer


def export_operators(layer: ReducedODELayer, path: str | os.PathLike[str]) -> None:
    """Write the reduced operators to an ``.npz`` or ``.mat`` file, with the equation in words.

    The file holds float64 arrays named as in its entry ``equation``: the encoding ``z = E y + e``, for each stage k
    the matrices of its argument (``A1_z`` multiplies z, ``A1_u`` the input, ``A1_t`` the time, ``A2_g1`` stage 1) and
    its shift ``b1``, the output ``dz/dt`` likewise (``B_z``, …, ``b``), the decoding ``y = D z + d``, and the layer's
    `times`. The entry ``shapes`` lists all shapes. States are flattened row by row (C order).

    Parameters
    ----------
    layer
        The reduced layer.
    path
        File ending in .npz (NumPy, Julia's NPZ) or .mat (MATLAB 5, Octave, SciPy, Julia's MAT).

    Raises
    ------
    ValueError
        The path ends otherwise.
    OSError
        The file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".mat"):
        raise ValueError(f"expected a path that ends in .npz or .mat, got {os.fspath(path)!r}")
    if not isinstance(layer, ReducedODELayer):
        raise TypeError(f"expected a ReducedODELayer, got a {type(layer).__name__}: pass the layer, small.ode")
    entries = operators(layer)
    written = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(written, allow_pickle=False, **entries)
    else:
        import scipy.io

        scipy.io.savemat(written, entries, oned_as="column")
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def operators(layer: ReducedODELayer) -> dict[str, np.ndarray]:
    """Return the entries of the exported file by name."""
    arrays: dict[str, np.ndarray] = {}
    lines = []
    if not isinstance(layer.encode, nn.Identity):
        arrays |= {"E": to_array(layer.encode.weight), "e": to_array(layer.encode.bias)}
        lines.append("z(t0) = E y(t0) + e")
    else:
        lines.append("z = y")
    lines += _ode_lines(layer.ode, arrays)
    if not isinstance(layer.decode, nn.Identity):
        arrays |= {"D": to_array(layer.decode.weight), "d": to_array(layer.decode.bias)}
        lines.append("y(t) = D z(t) + d")
    arrays["times"] = np.array(layer.t)
    shapes = "\n".join(f"{name}: {' x '.join(map(str, array.shape))}" for name, array in arrays.items())
    words = {
        "equation": "\n".join(lines),
        "shapes": shapes,
        "solver": str(layer.settings),
        "state_shape": " x ".join(map(str, layer.state_shape)),
    }
    return {**arrays, **{name: np.array(text) for name, text in words.items()}}


def equation(ode: ChainModule) -> str:
    """Return a reduced ODE in words, with its matrices named as in the exported file."""
    return "\n".join(_ode_lines(ode, {}))


def _ode_lines(ode: ChainModule, arrays: dict[str, np.ndarray]) -> list[str]:
    """Add the matrices of a reduced ODE to the arrays, and return the ODE in words."""
    lines = []
    for k, (expression, argument) in enumerate(zip(ode.expressions, ode.stages, strict=True), start=1):
        names = [f"a{k}"] if expression.arity == 1 else [f"a{k}_{i}" for i in range(1, expression.arity + 1)]
        for name, rows in zip(names, np.split(np.arange(argument.weight.shape[0]), expression.arity), strict=True):
            lines.append(f"{name} = {_affine(arrays, argument, name.replace('a', 'A'), name.replace('a', 'b'), rows)}")
        lines += expression.statements(names, f"g{k}", f"g{k}_")
    lines.append(f"dz/dt = {_affine(arrays, ode.output, 'B', 'b')}")
    return lines


def _affine(
    arrays: dict[str, np.ndarray], module: AffineModule, matrix: str, shift: str, rows: Any = slice(None)
) -> str:
    """Add the matrices of an affine map to the arrays, and return the map in words."""
    weight, bias = to_array(module.weight)[rows], to_array(module.bias)[rows]
    terms, start = [], 0
    for source, size in module.sources.items():
        name = {"y": "z"}.get(source, source)
        arrays[f"{matrix}_{name}"] = weight[:, start : start + size]
        terms.append(f"{matrix}_{name} {name}")
        start += size
    arrays[shift] = bias
    return " + ".join([*terms, shift])
