"""The primitives of `torchmor.engine.expressions` on torch tensors.

Torch only, no host synchronisation, no control flow on data: usable under torch.compile and torch.export, on
any device and in any floating dtype. Derivatives are those of autograd.
"""

from __future__ import annotations  # compilers would evaluate those of inner functions

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _of_tensors(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The function for two tensors, or a tensor and a number in either order."""

    def function_of_tensors(a: Any, b: Any) -> Tensor:
        if not isinstance(a, Tensor):
            a = b.new_full((), a)
        elif not isinstance(b, Tensor):
            b = a.new_full((), b)
        return function(a, b)

    return function_of_tensors


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    # torch.nn.functional.elu has no scales
    return torch.ops.aten.elu.default(x, alpha, scale, input_scale)


def _threshold(x: Tensor, threshold: float = 0.0, value: float = 0.0) -> Tensor:
    return F.threshold(x, threshold, value)


def _number(x: Tensor, like: Tensor) -> Tensor:
    # truth values have no precision to compute in
    return torch.where(x != 0, torch.ones_like(like), 0.0)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    # torch.nn.functional.prelu wants one weight for each channel
    return torch.where(x > 0, x, weight * x)


#: Values of the primitives: name -> f(*operands, **parameters); operands are tensors and Python floats.
TORCH_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x,
    "neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": _elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "threshold": _threshold,
    "clamp": torch.clamp,
    "number": _of_tensors(_number),
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "remainder": torch.remainder,
    "fmod": _of_tensors(torch.fmod),
    "pow": operator.pow,
    "atan2": _of_tensors(torch.atan2),
    "hypot": _of_tensors(torch.hypot),
    "logaddexp": _of_tensors(torch.logaddexp),
    "maximum": _of_tensors(torch.maximum),
    "minimum": _of_tensors(torch.minimum),
    "prelu": _of_tensors(_prelu),
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "logical_and": _of_tensors(torch.logical_and),
    "logical_or": _of_tensors(torch.logical_or),
    "logical_not": torch.logical_not,
    "where": torch.where,
}


def exact_functions(constant: Callable[[float], float | Tensor]) -> dict[str, Callable[..., Any]]:
    """Return `TORCH_FUNCTIONS` with the constants among their operands, and bounds to clamp by, as tensors.

    Law: the values are the same. It serves exporters that round Python's numbers. Other parameters (slopes and the
    like) stay numbers, as torch takes no tensors there.

    Parameters
    ----------
    constant
        Number → the number as a tensor.
    """

    def kept(operand: Any) -> Any:
        return constant(operand) if isinstance(operand, float) else operand

    def exact(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands, **parameters: function(*map(kept, operands), **parameters)

    functions = {name: exact(function) for name, function in TORCH_FUNCTIONS.items()}
    functions["clamp"] = lambda x, **bounds: torch.clamp(x, **{name: kept(bound) for name, bound in bounds.items()})
    functions["hardtanh"] = lambda x, min_val=-1.0, max_val=1.0: torch.clamp(x, kept(min_val), kept(max_val))
    return functions
