"""The primitives of `torchmor.engine.expressions` on NumPy arrays, with their derivatives.

One line a primitive: its value, and its partial derivatives. Arithmetic is that of IEEE 754 without warnings,
as in torch: 1 / 0 is infinite, log(-1) is NaN. At a kink the derivative is the one that torch takes.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.special import erf, erfc, expit, log_expit, ndtr

from torchmor.engine.expressions import Expression

Function: TypeAlias = Callable[..., Any]
Numbers: TypeAlias = np.ndarray | float  # constants stay floats

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848, 1.0507009873554804934  # as in torch
_HALF_SQRT_PI, _SQRT_2_PI = np.sqrt(np.pi) / 2, np.sqrt(2 * np.pi)


def _elu(x: np.ndarray, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> np.ndarray:
    return np.where(x > 0, scale * x, alpha * scale * np.expm1(input_scale * np.minimum(x, 0)))


def _elu_derivative(x: np.ndarray, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> np.ndarray:
    return np.where(x > 0, scale, alpha * scale * input_scale * np.exp(input_scale * np.minimum(x, 0)))


def _gelu_argument(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The u and u' for which tanh's approximation of GELU is x sigmoid(u)."""
    c = 2 * np.sqrt(2 / np.pi)
    return c * (x + 0.044715 * x**3), c * (1 + 3 * 0.044715 * x**2)


def _gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    return x * (ndtr(x) if approximate == "none" else expit(_gelu_argument(x)[0]))


def _gelu_derivative(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    if approximate == "none":
        return ndtr(x) + x * np.exp(-(x**2) / 2) / _SQRT_2_PI
    x = np.clip(x, -1e3, 1e3)  # beyond, the derivative is 0 or 1, and u' might overflow
    u, du = _gelu_argument(x)
    return expit(u) + x * expit(u) * expit(-u) * du


def _tanh_softplus(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """tanh(log(1 + exp(x))) and its derivative, without cancellation."""
    e = np.exp(-np.abs(x))
    a, b = np.where(x > 0, 1.0, e), np.where(x > 0, e, 1.0)  # exp(x) = a / b
    numerator = a * (a + 2 * b)
    denominator = numerator + 2 * b**2
    return numerator / denominator, 4 * a * b**2 * (a + b) / denominator**2


def _softplus(x: np.ndarray, beta: float = 1.0, threshold: float = 20.0) -> np.ndarray:
    return np.where(beta * x > threshold, x, np.logaddexp(0, beta * x) / beta)


def _softplus_derivative(x: np.ndarray, beta: float = 1.0, threshold: float = 20.0) -> np.ndarray:
    return np.where(beta * x > threshold, 1.0, expit(beta * x))


def _mish_derivative(x: np.ndarray) -> np.ndarray:
    value, derivative = _tanh_softplus(x)
    return value + np.clip(x, -1e3, 1e3) * derivative


def _clamp_derivative(x: np.ndarray, min: float | None = None, max: float | None = None) -> np.ndarray:
    return (x >= (-np.inf if min is None else min)) & (x <= (np.inf if max is None else max))


def _pow_derivatives(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    by_base = np.where(b == 0, 0.0, b * np.power(a, b - 1.0))
    if type(b) is float:  # a constant
        return by_base, 0.0
    return by_base, np.where((a == 0) & (b >= 0), 0.0, np.power(a, b) * np.log(a))


def _zeros(a: Numbers, b: Numbers) -> tuple[np.bool, np.bool]:
    """Derivatives of what is piecewise constant."""
    return np.False_, np.False_


# Primitives of one operand: value and derivative.
_ONE: dict[str, tuple[Function, Function]] = {
    "neg": (np.negative, lambda x: -1.0),
    "reciprocal": (np.reciprocal, lambda x: -1 / x / x),
    "square": (np.square, lambda x: 2 * x),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x: -0.5 / np.sqrt(x) / x),
    "abs": (np.abs, np.sign),
    "sign": (np.sign, lambda x: np.False_),
    "floor": (np.floor, lambda x: np.False_),
    "ceil": (np.ceil, lambda x: np.False_),
    "trunc": (np.trunc, lambda x: np.False_),
    "round": (np.round, lambda x: np.False_),  # halves to even, as torch
    "exp": (np.exp, np.exp),
    "exp2": (np.exp2, lambda x: np.exp2(x) * np.log(2)),
    "expm1": (np.expm1, np.exp),
    "log": (np.log, np.reciprocal),
    "log2": (np.log2, lambda x: 1 / np.log(2) / x),
    "log10": (np.log10, lambda x: 1 / np.log(10) / x),
    "log1p": (np.log1p, lambda x: 1 / (1 + x)),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda x: -np.sin(x)),
    "tan": (np.tan, lambda x: 1 + np.tan(x) ** 2),
    "sinh": (np.sinh, np.cosh),
    "cosh": (np.cosh, np.sinh),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "asin": (np.arcsin, lambda x: 1 / np.sqrt((1 - x) * (1 + x))),
    "acos": (np.arccos, lambda x: -1 / np.sqrt((1 - x) * (1 + x))),
    "atan": (np.arctan, lambda x: 1 / (1 + x**2)),
    "asinh": (np.arcsinh, lambda x: 1 / np.hypot(1, x)),
    "acosh": (np.arccosh, lambda x: 1 / np.sqrt((x - 1) * (x + 1))),
    "atanh": (np.arctanh, lambda x: 1 / ((1 - x) * (1 + x))),
    "erf": (erf, lambda x: np.exp(-(x**2)) / _HALF_SQRT_PI),
    "erfc": (erfc, lambda x: -np.exp(-(x**2)) / _HALF_SQRT_PI),
    "sigmoid": (expit, lambda x: expit(x) * expit(-x)),
    "log_sigmoid": (log_expit, lambda x: expit(-x)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: x > 0),  # unlike where, maximum keeps NaN
    "leaky_relu": (
        lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
        lambda x, negative_slope=0.01: np.where(x > 0, 1.0, negative_slope),
    ),
    "elu": (_elu, _elu_derivative),
    "celu": (
        lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1 / alpha),
        lambda x, alpha=1.0: _elu_derivative(x, alpha, 1.0, 1 / alpha),
    ),
    "selu": (
        lambda x: _elu(x, _SELU_ALPHA, _SELU_SCALE),
        lambda x: _elu_derivative(x, _SELU_ALPHA, _SELU_SCALE),
    ),
    "gelu": (_gelu, _gelu_derivative),
    "silu": (lambda x: x * expit(x), lambda x: expit(x) + x * expit(x) * expit(-x)),
    "mish": (lambda x: x * _tanh_softplus(x)[0], _mish_derivative),
    "softplus": (_softplus, _softplus_derivative),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2),
    "tanhshrink": (lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2),
    "hardtanh": (
        lambda x, min_val=-1.0, max_val=1.0: np.clip(x, min_val, max_val),
        lambda x, min_val=-1.0, max_val=1.0: (x > min_val) & (x < max_val),
    ),
    "hardsigmoid": (
        lambda x: np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(np.abs(x) < 3, 1 / 6, 0.0),
    ),
    "hardswish": (
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0),
    ),
    "softshrink": (
        lambda x, lambd=0.5: x - np.clip(x, -lambd, lambd),
        lambda x, lambd=0.5: np.abs(x) > lambd,
    ),
    "hardshrink": (
        lambda x, lambd=0.5: np.where(np.abs(x) <= lambd, 0.0, x),
        lambda x, lambd=0.5: np.abs(x) > lambd,
    ),
    "threshold": (
        lambda x, threshold=0.0, value=0.0: np.where(x <= threshold, value, x),
        lambda x, threshold=0.0, value=0.0: x > threshold,
    ),
    "clamp": (lambda x, min=None, max=None: np.clip(x, min, max), _clamp_derivative),
}

# Primitives that see truth values as they are, or several operands: value and tuple of derivatives.
_MANY: dict[str, tuple[Function, Function]] = {
    "identity": (lambda x: x, lambda x: (np.True_,)),
    "number": (
        lambda a, like: np.where(np.not_equal(a, 0), np.ones_like(like, dtype=float), 0.0),
        _zeros,
    ),  # a truth value as 1 or 0
    "add": (np.add, lambda a, b: (np.True_, np.True_)),
    "sub": (np.subtract, lambda a, b: (np.True_, -1.0)),
    "mul": (np.multiply, lambda a, b: (b, a)),
    "div": (np.divide, lambda a, b: (np.reciprocal(b), -np.divide(a, b) / b)),
    "remainder": (np.remainder, lambda a, b: (np.True_, -np.floor(np.divide(a, b)))),
    "fmod": (np.fmod, lambda a, b: (np.True_, -np.trunc(np.divide(a, b)))),
    "pow": (np.power, _pow_derivatives),
    "atan2": (np.arctan2, lambda a, b: (b / np.hypot(a, b) ** 2, -a / np.hypot(a, b) ** 2)),
    "hypot": (np.hypot, lambda a, b: (a / np.hypot(a, b), b / np.hypot(a, b))),
    "logaddexp": (np.logaddexp, lambda a, b: (expit(a - b), expit(b - a))),
    "maximum": (np.maximum, lambda a, b: (np.heaviside(a - b, 0.5), np.heaviside(b - a, 0.5))),
    "minimum": (np.minimum, lambda a, b: (np.heaviside(b - a, 0.5), np.heaviside(a - b, 0.5))),
    "prelu": (
        lambda x, weight: np.where(np.greater(x, 0), x, weight * x),
        lambda x, weight: (np.where(np.greater(x, 0), 1.0, weight), np.minimum(x, 0)),
    ),
    "gt": (np.greater, _zeros),
    "ge": (np.greater_equal, _zeros),
    "lt": (np.less, _zeros),
    "le": (np.less_equal, _zeros),
    "eq": (np.equal, _zeros),
    "ne": (np.not_equal, _zeros),
    "logical_and": (np.logical_and, _zeros),
    "logical_or": (np.logical_or, _zeros),
    "logical_not": (np.logical_not, lambda a: (np.False_,)),
    "where": (np.where, lambda c, a, b: (np.False_, c, np.logical_not(c))),
}


def _of_floats(function: Function) -> Function:
    # NumPy would take the exponential of truth values in half precision.
    return lambda x, **parameters: function(np.asarray(x, dtype=float), **parameters)


def _tuple_of(function: Function) -> Function:
    return lambda x, **parameters: (function(x, **parameters),)


_silent = np.errstate(all="ignore")

#: Values of the primitives: name -> f(*operands, **parameters).
VALUES: dict[str, Function] = {name: _silent(_of_floats(value)) for name, (value, _) in _ONE.items()} | {
    name: _silent(value) for name, (value, _) in _MANY.items()
}

#: Their derivatives: name -> f(*operands, **parameters), a tuple of one partial derivative by each operand.
#: One that is a truth value selects: its product with infinity is 0 or infinity, never NaN.
DERIVATIVES: dict[str, Function] = {
    name: _silent(_of_floats(_tuple_of(derivative))) for name, (_, derivative) in _ONE.items()
} | {name: _silent(derivatives) for name, (_, derivatives) in _MANY.items()}


def evaluate(expression: Expression, arguments: Sequence[np.ndarray]) -> np.ndarray:
    """Value φ(a_0, …, a_{q-1}) of an expression at arrays that broadcast against each other."""
    return expression.evaluate(VALUES, arguments)


def derivatives(expression: Expression, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Partial derivatives ∂φ/∂a_i at arrays that broadcast against each other, by forward accumulation.

    ``φ(a + h e_i) - φ(a - h e_i) == 2 h derivatives(φ, a)[i] + O(h³)`` away from kinks.

    Returns
    -------
    One float64 array for each argument, of the arguments' common shape.
    """
    slots = [np.asarray(a) for a in arguments]
    # Of each slot, the derivatives by the arguments it depends on.
    tangents: list[dict[int, Numbers]] = [{i: np.float64(1)} for i in range(len(slots))]
    with np.errstate(all="ignore"):
        for instruction in expression.instructions:
            sources = [int(o[1:]) if isinstance(o, str) else None for o in instruction.operands]
            operands = [o if s is None else slots[s] for o, s in zip(instruction.operands, sources, strict=True)]
            parameters = dict(instruction.parameters)
            tangent: dict[int, Numbers] = {}
            partials = DERIVATIVES[instruction.function](*operands, **parameters)
            for source, partial in zip(sources, partials, strict=True):
                for i, inner in tangents[source].items() if source is not None else ():
                    selects = np.asarray(partial).dtype == bool
                    term = np.where(partial, inner, 0.0) if selects else partial * inner
                    tangent[i] = tangent[i] + term if i in tangent else term
            slots.append(VALUES[instruction.function](*operands, **parameters))
            tangents.append(tangent)
    shape = np.broadcast_shapes(*(np.shape(a) for a in arguments))
    return [np.zeros(shape) + tangents[-1].get(i, 0.0) for i in range(len(arguments))]
