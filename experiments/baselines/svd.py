"""SVD truncation of the weights of an ODE function."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg as spla
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from torchmor.adapters.layers.placing import find_layer, with_layers
from torchmor.engine.errors import SizeError, UnsupportedOperationError

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Columns of a dense matrix that are computed at a time.
_CHUNK = 256


def truncate_weights(
    network: nn.Module,
    name: str,
    ranks: Sequence[int],
    *,
    weights: Sequence[str] | None = None,
    dense: bool = False,
    example: Tensor | None = None,
) -> list[nn.Module]:
    """Truncate the weights of an ODE function to low rank: each becomes two.

    A linear layer of weight W (out, in) becomes two of weights (r, in) and (out, r); a convolution becomes one with the
    same kernel to r channels, and one of kernel 1 to its outputs. Law: their product is the best approximation of rank
    r in the Frobenius norm. A weight keeps its form where two would take as many multiply–adds, that is for
    ``r (in + out) ≥ in · out``, the kernel counted to `in`.

    Parameters
    ----------
    network
        The trained network; it is not changed.
    name
        Name of its ODE layer, "" if it is the layer.
    ranks
        Ranks r, one network for each.
    weights
        Names of the layers within the ODE function whose weights are truncated; None for all.
    dense
        Write each convolution as the dense matrix (n_out, n_in) that it is, and truncate this one.
    example
        Inputs (batch, …) of the network, which tell the sizes of the dense matrices.

    Returns
    -------
    list of nn.Module
        The networks.

    Raises
    ------
    SizeError
        A rank is no positive number.
    UnsupportedOperationError
        The ODE function has no linear layer or convolution, or none of these names.

    References
    ----------
    Xue, Li, Gong: Restructuring of deep neural network acoustic models with singular value decomposition, Interspeech
    2013. Denton et al.: Exploiting linear structure within convolutional networks for efficient evaluation, NeurIPS
    2014.
    """
    if not ranks or min(ranks) < 1:
        raise SizeError(f"expected ranks of at least 1, got {tuple(ranks)}")
    layer = find_layer(network, name)
    shapes = _input_shapes(network, layer, example) if dense else {}
    factories: dict[str, Callable[[int], nn.Module]] = {}
    for path, module in layer.func.named_modules() if isinstance(layer.func, nn.Module) else ():
        if weights is not None and path not in weights:
            continue
        if isinstance(module, nn.Linear):
            factories[path] = _linear(module, max(ranks))
        elif isinstance(module, _CONVOLUTIONS) and dense:
            factories[path] = _dense(module, shapes[path], max(ranks))
        elif isinstance(module, _CONVOLUTIONS) and module.groups == 1:
            factories[path] = _convolution(module, max(ranks))
    names = "" if weights is None else f" named {', '.join(weights)}"
    if not factories or (weights is not None and set(weights) - set(factories)):
        raise UnsupportedOperationError(
            f"expected an ODE function with linear layers or convolutions{names}, got {layer.func}: write its weights "
            "as nn.Linear or nn.Conv"
        )
    return [with_layers(network, {name: _with_modules(layer, factories, rank)}) for rank in ranks]


def low_rank(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return L (p, r) and R (r, q) whose product is the best approximation of rank r, for all smaller ranks too.

    Law: ``L[:, :s] @ R[:s]`` is the truncated SVD of rank s ≤ r: its squared error is the sum of the dropped σ².
    From the eigenvectors of the smaller one of ``M Mᵀ`` and ``Mᵀ M``, nothing is divided by small singular values.

    Parameters
    ----------
    matrix
        Array M (p, q), float64.
    rank
        Largest rank of interest.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    gramian = matrix @ matrix.T if wide else matrix.T @ matrix
    size = len(gramian)
    rank = min(rank, size)
    _, vectors = spla.eigh(gramian, subset_by_index=(size - rank, size - 1), overwrite_a=True)
    vectors = vectors[:, ::-1]
    return (vectors, vectors.T @ matrix) if wide else (matrix @ vectors, vectors.T)


class DenseMap(nn.Module):
    """A linear map of flattened samples as two dense matrices.

    Parameters
    ----------
    first, second
        The maps.
    shape
        Shape of a sample of the result.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear, shape: Sequence[int]):
        super().__init__()
        self.first, self.second, self.shape = first, second, tuple(shape)

    def forward(self, y: Tensor) -> Tensor:
        """Return the result (batch, *shape) for y (batch, …)."""
        return self.second(self.first(y.flatten(1))).unflatten(1, self.shape)


def _linear(module: nn.Linear, most: int) -> Callable[[int], nn.Module]:
    left, right = low_rank(_matrix(module.weight), most)
    outputs, inputs = module.weight.shape

    def make(rank: int) -> nn.Module:
        if rank * (inputs + outputs) >= inputs * outputs:
            return copy.deepcopy(module)
        return nn.Sequential(_fully(module, right[:rank]), _fully(module, left[:, :rank], module.bias))

    return make


def _convolution(module: _Convolution, most: int) -> Callable[[int], nn.Module]:
    matrix = _matrix(module.weight.flatten(1))
    left, right = low_rank(matrix, most)
    outputs, inputs = matrix.shape
    form = {key: getattr(module, key) for key in ("stride", "padding", "dilation", "padding_mode")}

    def make(rank: int) -> nn.Module:
        if rank * (inputs + outputs) >= inputs * outputs:
            return copy.deepcopy(module)
        kind = {"dtype": module.weight.dtype, "device": module.weight.device}
        first = skip_init(type(module), module.in_channels, rank, module.kernel_size, bias=False, **form, **kind)
        second = skip_init(type(module), rank, module.out_channels, 1, bias=module.bias is not None, **kind)
        _fill(first.weight, right[:rank])
        _fill(second.weight, left[:, :rank])
        if module.bias is not None:
            _fill(second.bias, module.bias)
        return nn.Sequential(first, second)

    return make


def _dense(module: _Convolution, shape: tuple[int, ...], most: int) -> Callable[[int], nn.Module]:
    linear = copy.deepcopy(module).double().requires_grad_(False)
    zero = torch.zeros(1, *shape, dtype=torch.float64, device=module.weight.device)
    shift = linear(zero)
    columns = torch.eye(zero.numel(), dtype=torch.float64, device=zero.device).split(_CHUNK)
    matrix = torch.cat([(linear(part.unflatten(1, shape)) - shift).flatten(1) for part in columns])
    left, right = low_rank(matrix.T.cpu().numpy(), most)

    def make(rank: int) -> nn.Module:
        first = _fully(module, right[:rank])
        return DenseMap(first, _fully(module, left[:, :rank], shift.flatten()), shift.shape[1:])

    return make


def _fully(like: nn.Linear | _Convolution, weight: np.ndarray, bias: Tensor | None = None) -> nn.Linear:
    kind = {"dtype": like.weight.dtype, "device": like.weight.device}
    made = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, **kind)
    _fill(made.weight, weight)
    if bias is not None:
        _fill(made.bias, bias)
    return made


def _fill(parameter: Tensor, values: Tensor | np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(
            torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values).view_as(parameter)
        )


def _matrix(weight: Tensor) -> np.ndarray:
    return weight.detach().cpu().double().numpy()


def _input_shapes(network: nn.Module, layer: Any, example: Tensor | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of a sample that each convolution of the ODE function sees."""
    if example is None:
        raise SizeError("expected example inputs, which tell the size of a dense matrix, got none: example=inputs[:2]")
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, path=path: shapes.update({path: tuple(inputs[0].shape[1:])}))
        for path, module in layer.func.named_modules()
        if isinstance(module, _CONVOLUTIONS)
    ]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _with_modules(layer: Any, factories: dict[str, Callable[[int], nn.Module]], rank: int) -> nn.Module:
    """Return a copy of the layer with other modules in its ODE function."""
    layer = copy.deepcopy(layer)
    for path, make in factories.items():
        made = make(rank)
        if path:
            layer.func.set_submodule(path, made)
        else:
            layer.func = made
    return layer
