"""Operations on complex numbers, written in terms of real and imaginary parts; stages are real."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

_aten = torch.ops.aten

#: Real and imaginary part, tensors or numbers.
Parts = tuple[Any, Any]


def _is_complex(value: Any) -> bool:
    return value.is_complex() if isinstance(value, torch.Tensor) else isinstance(value, complex)


def _parts(value: Any) -> Parts:
    if not _is_complex(value):
        return value, 0.0
    if not isinstance(value, torch.Tensor):
        return value.real, value.imag
    parts = torch.view_as_real(value)
    return parts[..., 0], parts[..., 1]


def _joined(parts: Parts) -> torch.Tensor:
    like = next(part for part in parts if isinstance(part, torch.Tensor))
    tensors = [part if isinstance(part, torch.Tensor) else torch.full_like(like, part) for part in parts]
    return torch.view_as_complex(torch.stack(torch.broadcast_tensors(*tensors), -1))


def _product(a: Parts, b: Parts, times: Callable[[Any, Any], Any] = lambda x, y: x * y) -> Parts:
    real, imaginary = times(a[0], b[0]), None
    for x, y, sign in ((a[0], b[1], 1), (a[1], b[0], 1), (a[1], b[1], -1)):
        if (isinstance(x, float) and x == 0) or (isinstance(y, float) and y == 0):
            continue  # of a real factor
        if sign < 0:
            real = real - times(x, y)
        else:
            imaginary = times(x, y) if imaginary is None else imaginary + times(x, y)
    return real, 0.0 if imaginary is None else imaginary


def _modulus(a: Parts) -> Any:
    return torch.hypot(a[0], a[1])


def _reciprocal(a: Parts) -> Parts:
    square = a[0] * a[0] + a[1] * a[1]
    return a[0] / square, -a[1] / square


def _quotient(a: Parts, b: Parts) -> Parts:
    if isinstance(b[1], float) and b[1] == 0:
        return a[0] / b[0], a[1] / b[0]
    return _product(a, _reciprocal(b))


def _exp(a: Parts) -> Parts:
    size = torch.exp(a[0])
    return size * torch.cos(a[1]), size * torch.sin(a[1])


def _log(a: Parts) -> Parts:
    return torch.log(_modulus(a)), torch.atan2(a[1], a[0])


def _sqrt(a: Parts) -> Parts:
    modulus, half = torch.sqrt(_modulus(a)), torch.atan2(a[1], a[0]) / 2
    return modulus * torch.cos(half), modulus * torch.sin(half)


def _sgn(a: Parts) -> Parts:
    modulus = _modulus(a)
    size = torch.where(modulus == 0, 1.0, modulus)
    return a[0] / size, a[1] / size


def _pow(a: Parts, b: Parts) -> Parts:
    exponent = b[0]
    if isinstance(exponent, int | float) and b[1] == 0 and exponent == int(exponent) and 1 <= abs(exponent) <= 16:
        value = a
        for _ in range(int(abs(exponent)) - 1):
            value = _product(value, a)
        return value if exponent > 0 else _reciprocal(value)
    if not isinstance(a[0], torch.Tensor):
        base = complex(*a)
        modulus, angle = math.log(abs(base)), math.atan2(base.imag, base.real)
        return _exp(_product((modulus, angle), b))
    return _exp(_product(_log(a), b))


def _sinh(a: Parts) -> Parts:
    return torch.sinh(a[0]) * torch.cos(a[1]), torch.cosh(a[0]) * torch.sin(a[1])


def _cosh(a: Parts) -> Parts:
    return torch.cosh(a[0]) * torch.cos(a[1]), torch.sinh(a[0]) * torch.sin(a[1])


def _tanh(a: Parts) -> Parts:
    t, tangent = torch.tanh(a[0]), torch.tan(a[1])
    return _quotient((t, tangent), (torch.ones_like(t), t * tangent))


def _rotated(function: Callable[[Parts], Parts], back: complex) -> Callable[[Parts], Parts]:
    """Return ``back · function(i a)``: circular functions are hyperbolic ones of imaginary numbers."""

    def rotated(a: Parts) -> Parts:
        return _product(function((-a[1], a[0])), (back.real, back.imag)) if back != 1 else function((-a[1], a[0]))

    return rotated


def _sigmoid(a: Parts) -> Parts:
    real, imaginary = _tanh((a[0] / 2, a[1] / 2))
    return (1 + real) / 2, imaginary / 2


def _sum(name: str) -> Callable[..., Parts]:
    def sum_of(a: Parts, b: Parts, *, alpha: Any = 1) -> Parts:
        real, imaginary = _product(b, _parts(alpha)) if alpha != 1 else b
        if name == "add":
            return a[0] + real, a[1] + imaginary
        if name == "rsub":
            (a, (real, imaginary)) = (b, _product(a, _parts(alpha)) if alpha != 1 else a)
        return a[0] - real, a[1] - imaginary

    return sum_of


def _matrix_product(function: Callable[[Any, Any], Any]) -> Callable[[Parts, Parts], Parts]:
    return lambda a, b: _product(a, b, function)


def _added_matrix_product(function: Callable[[Any, Any], Any]) -> Callable[..., torch.Tensor]:
    def added(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> torch.Tensor:
        return beta * x + alpha * function(a, b) if any(map(_is_complex, (x, a, b))) else NotImplemented

    return added


def _rewriting(function: Callable[..., Any], joined: bool = True) -> Callable[..., Any]:
    """Return the operation for complex operands; NotImplemented leaves one of real operands as it is."""

    @wraps(function)
    def rewritten(*operands: Any, **kwargs: Any) -> Any:
        if not any(map(_is_complex, (*operands, *kwargs.values()))):
            return NotImplemented
        value = function(*map(_parts, operands), **kwargs)
        return _joined(value) if joined else value

    return rewritten


def _equal(a: Parts, b: Parts) -> Any:
    return (a[0] == b[0]) & (a[1] == b[1])


#: Functions by their names.
_FUNCTIONS: dict[str, Callable[..., Parts]] = {
    "_conj": lambda a: (a[0], -a[1]),
    "conj_physical": lambda a: (a[0], -a[1]),
    "_conj_physical": lambda a: (a[0], -a[1]),
    "reciprocal": _reciprocal,
    "square": lambda a: _product(a, a),
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "rsqrt": lambda a: _reciprocal(_sqrt(a)),
    "sgn": _sgn,
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "sin": _rotated(_sinh, -1j),
    "cos": _rotated(_cosh, 1),
    "tan": _rotated(_tanh, -1j),
    "sigmoid": _sigmoid,
    "silu": lambda a: _product(a, _sigmoid(a)),
    "mm": _matrix_product(torch.mm),
    "bmm": _matrix_product(torch.bmm),
    "mv": _matrix_product(torch.mv),
    "dot": _matrix_product(torch.dot),
    "vdot": lambda a, b: _product((a[0], -a[1]), b, torch.dot),
}

#: Operations that are written in real and imaginary parts where an operand is complex.
#: What is linear in the real and imaginary parts (Fourier transforms, conjugates, sums, slices) stays as it is.
COMPLEX: dict[Any, Callable[..., Any]] = {
    **{
        getattr(_aten, name).Tensor: _rewriting(function)
        for name, function in {
            "add": _sum("add"),
            "sub": _sum("sub"),
            "rsub": _sum("rsub"),
            "mul": _product,
            "div": _quotient,
        }.items()
    },
    **{getattr(_aten, name).default: _rewriting(function) for name, function in _FUNCTIONS.items()},
    **{
        operation: _rewriting(_pow)
        for operation in (_aten.pow.Tensor_Tensor, _aten.pow.Tensor_Scalar, _aten.pow.Scalar)
    },
    _aten.where.self: _rewriting(lambda c, a, b: (torch.where(c[0], a[0], b[0]), torch.where(c[0], a[1], b[1]))),
    _aten.abs.default: _rewriting(_modulus, joined=False),
    _aten.angle.default: _rewriting(lambda a: torch.atan2(a[1], a[0]), joined=False),
    _aten.eq.Tensor: _rewriting(_equal, joined=False),
    _aten.eq.Scalar: _rewriting(_equal, joined=False),
    _aten.ne.Tensor: _rewriting(lambda a, b: ~_equal(a, b), joined=False),
    _aten.ne.Scalar: _rewriting(lambda a, b: ~_equal(a, b), joined=False),
    _aten.addmm.default: _added_matrix_product(torch.mm),
    _aten.addmv.default: _added_matrix_product(torch.mv),
    _aten.baddbmm.default: _added_matrix_product(torch.bmm),
    _aten.polar.default: lambda modulus, angle: _joined((modulus * torch.cos(angle), modulus * torch.sin(angle))),
}
