"""What torch operations are to a stage chain: the one table that decides, and that the README prints.

Names are those of aten operations without their overload. What is in none of these tables is written in terms of what
is, where torch can, or is kept if it turns out to be affine or bilinear when it is tried; else it is refused by name.
"""

from collections.abc import Callable
from math import copysign, prod
from typing import Any

import torch

from torchmor.adapters.solving import torch_private

_aten = torch.ops.aten

#: Operations whose result does not depend on the values of their argument, only on its shape: constants.
SHAPE_ONLY = frozenset(
    "ones_like zeros_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided sym_size".split()
)

#: Operations that return their argument.
IDENTITY = frozenset("detach clone alias lift_fresh lift_fresh_copy _to_copy contiguous _conj_physical".split())

_ALONE = ((0,),)
_EITHER = ((0,), (1,))

#: Affine operations: name → alternatives of argument positions in which the operation is jointly affine.
#: All other arguments must be constants: a convolution is affine in (input, bias) for a constant weight.
AFFINE: dict[str, tuple[tuple[int, ...], ...]] = {
    # products with constants
    "mm": _EITHER,
    "bmm": _EITHER,
    "mv": _EITHER,
    "addmm": ((0, 1), (0, 2)),
    "addmv": ((0, 1), (0, 2)),
    "baddbmm": ((0, 1), (0, 2)),
    "convolution": ((0, 2),),
    "native_batch_norm": _ALONE,  # in eval mode; refused with batch statistics
    "_native_batch_norm_legit_no_training": _ALONE,
    "cudnn_batch_norm": _ALONE,
    # sums, averages, resampling
    "sum": _ALONE,
    "mean": _ALONE,
    "cumsum": _ALONE,
    "avg_pool2d": _ALONE,
    "avg_pool3d": _ALONE,
    "_adaptive_avg_pool2d": _ALONE,
    "_adaptive_avg_pool3d": _ALONE,
    "upsample_nearest1d": _ALONE,
    "upsample_nearest2d": _ALONE,
    "upsample_nearest3d": _ALONE,
    "_upsample_nearest_exact1d": _ALONE,
    "_upsample_nearest_exact2d": _ALONE,
    "_upsample_nearest_exact3d": _ALONE,
    "upsample_linear1d": _ALONE,
    "upsample_bilinear2d": _ALONE,
    "upsample_bicubic2d": _ALONE,
    "upsample_trilinear3d": _ALONE,
    "constant_pad_nd": _ALONE,
    "reflection_pad1d": _ALONE,
    "reflection_pad2d": _ALONE,
    "reflection_pad3d": _ALONE,
    "replication_pad1d": _ALONE,
    "replication_pad2d": _ALONE,
    "replication_pad3d": _ALONE,
    "im2col": _ALONE,
    "col2im": _ALONE,
    # rearrangements
    "reshape": _ALONE,
    "permute": _ALONE,
    "transpose": _ALONE,
    "t": _ALONE,
    "expand": _ALONE,
    "squeeze": _ALONE,
    "unsqueeze": _ALONE,
    "slice": _ALONE,
    "select": _ALONE,
    "split": _ALONE,
    "split_with_sizes": _ALONE,
    "unbind": _ALONE,
    "cat": _ALONE,
    "stack": _ALONE,
    "flip": _ALONE,
    "roll": _ALONE,
    "rot90": _ALONE,
    "unfold": _ALONE,
    "repeat": _ALONE,
    "diagonal": _ALONE,
    "tril": _ALONE,
    "triu": _ALONE,
    "index_select": _ALONE,
    "index": _ALONE,
    "gather": _ALONE,
    "slice_scatter": ((0, 1),),
    "select_scatter": ((0, 1),),
    "index_put": ((0, 2),),
    "index_add": ((0, 3),),
    "scatter_add": ((0, 3),),
    "where": ((1, 2),),  # with a constant condition
    "pixel_shuffle": _ALONE,
    "pixel_unshuffle": _ALONE,
    "channel_shuffle": _ALONE,
}

#: Affine operations that only move entries: of a componentwise function they are that function of moved arguments.
REARRANGEMENTS = frozenset(
    "reshape permute transpose t squeeze unsqueeze slice select split split_with_sizes unbind flip roll".split()
)

#: Sums, differences and products; what they are depends on their arguments (see tracing.py).
ARITHMETIC = frozenset("add sub rsub mul div neg".split())

#: Products of matrices: affine with a constant factor (see `AFFINE`), else sums of products.
MATRIX_PRODUCTS = frozenset("mm bmm mv addmm addmv baddbmm".split())

#: Componentwise operations: name → primitive of `torchmor.engine.expressions`. Parameters keep their names.
COMPONENTWISE: dict[str, str] = {
    "_prelu_kernel": "prelu",
    "log_sigmoid_forward": "log_sigmoid",
    "rrelu_with_noise": "leaky_relu",  # in eval mode, with the mean slope
    "rrelu_with_noise_functional": "leaky_relu",  # the same, since torch 2.7
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "bitwise_not": "logical_not",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    **{
        name: name
        for name in (
            "reciprocal sqrt rsqrt abs sign floor ceil trunc round exp exp2 expm1 log log2 log10 log1p "
            "sin cos tan sinh cosh tanh asin acos atan asinh acosh atanh erf erfc "
            "sigmoid relu leaky_relu elu celu gelu silu mish softplus "
            "hardtanh hardsigmoid hardswish softshrink hardshrink threshold clamp logical_not "
            "pow remainder fmod atan2 hypot logaddexp maximum minimum gt ge lt le eq ne logical_and logical_or where"
        ).split()
    },
}


def _gated(x, dim=-1):
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def _clamped(x, least=None, most=None):
    x = x if least is None else torch.maximum(x, least)
    return x if most is None else torch.minimum(x, most)


def _normalised(x, average, weight, bias, eps):
    """Return ``weight (x − μ) / σ + bias`` with the statistics that `average` takes, in a shape like that of x.

    For an affine x that is three stages: the squares of ``x − μ``; σ, of one component for each group; and, with any
    componentwise function that follows, the quotient of ``weight (x − μ) + σ bias`` and σ, both of which are affine in
    x and σ.
    """
    centred = x - average(x, lambda mean: mean)
    # a variance is never negative, but a fit of one may be
    deviation = average(centred * centred, lambda variance: torch.sqrt(torch.relu(variance) + eps))
    scaled = centred if weight is None else centred * weight
    return (scaled if bias is None else scaled + deviation * bias) / deviation


def _statistics(x, dims, eps, keepdim):
    """Return mean and reciprocal deviation, which derivatives inside the function read."""
    mean = x.mean(dims, keepdim=True)
    rstd = torch.rsqrt(torch.relu(((x - mean) * (x - mean)).mean(dims, keepdim=True)) + eps)
    return (mean, rstd) if keepdim else (mean.squeeze(dims), rstd.squeeze(dims))


def _group_normalised(x, weight, bias, batch, channels, entries, groups, eps):
    def average(value, then):
        means = then(value.reshape(batch, groups, -1).mean(2))
        return means.unsqueeze(2).expand(batch, groups, channels // groups).reshape(batch, channels, *ones)

    ones = (1,) * (x.dim() - 2)
    weight, bias = (None if p is None else p.reshape(1, channels, *ones) for p in (weight, bias))
    grouped = x.reshape(batch, groups, -1)
    return _normalised(x, average, weight, bias, eps), *_statistics(grouped, (2,), eps, keepdim=False)


def _layer_normalised(x, shape, weight, bias, eps):
    def average(value, then):
        return then(value.mean(dims, keepdim=True)).expand_as(x)

    dims = tuple(range(-len(shape), 0))
    return _normalised(x, average, weight, bias, eps), *_statistics(x, dims, eps, keepdim=True)


def _instance_normalised(x, weight, bias, mean, variance, training, momentum, eps):
    """Of one sample, instance normalisation; batch normalisation too, which comparing with a batch finds out."""
    if not training:
        return NotImplemented  # affine
    channels = x.shape[1]
    normalised, mean, rstd = _group_normalised(x, weight, bias, x.shape[0], channels, None, channels, eps)
    return normalised, mean.reshape(-1), rstd.reshape(-1)


def _norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    if ord != 2:
        return NotImplemented
    return torch.sqrt((x * x).sum(tuple(range(x.dim())) if dim is None else dim, keepdim))


def _variance(x, dim=None, *, correction=None, keepdim=False):
    dim = tuple(range(x.dim())) if dim is None else tuple(dim)
    centred = x - x.mean(dim, keepdim=True)
    count = prod(x.shape[d] for d in dim) - (1 if correction is None else correction)
    return (centred * centred).sum(dim, keepdim) / count


def _divided(a, b, *, rounding_mode=None):
    """Return a quotient; rounded down, it is that of the remainder, which is exact near whole numbers."""
    if rounding_mode is None or (isinstance(b, int | float) and b == 0):
        return a / b
    if rounding_mode == "trunc":
        return torch.trunc(a / b)
    down = torch.round((a - torch.remainder(a, b)) / b)
    if isinstance(b, int | float):
        return down
    return torch.where(b == 0, a / b, down)


def _negative(x):
    return (x < 0) | ((x == 0) & (torch.reciprocal(x) < 0))


def _either(a, b):
    return a != b if all(x.dtype == torch.bool for x in (a, b) if isinstance(x, torch.Tensor)) else NotImplemented


def _bucket(x, boundaries, *, out_int32=False, right=False):
    x = x.unsqueeze(-1)
    return (boundaries <= x if right else boundaries < x).sum(-1)


def _searched(boundaries, x, *, out_int32=False, right=False, side=None, sorter=None):
    if boundaries.dim() != 1 or sorter is not None:
        return NotImplemented
    return _bucket(torch.as_tensor(x), boundaries, right=right or side == "right")


def _trilinear(a, weight, b, expand1, expand2, expand3, sumdim, unroll_dim=1):
    """Sum a product of three, over what only the first two have before it is multiplied by the third."""
    for dims, place in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for dim in dims:
            a, weight, b = (x.unsqueeze(dim) if i == place else x for i, x in enumerate((a, weight, b)))
    partial = (a * weight).sum([dim for dim in sumdim if dim in expand3], keepdim=True)
    return (partial * b).sum(sumdim)


#: Operations that are first written in terms of others; NotImplemented leaves them as they are.
REWRITTEN: dict[Any, Callable[..., Any]] = {
    _aten.native_group_norm.default: _group_normalised,
    _aten.native_layer_norm.default: _layer_normalised,
    _aten.native_batch_norm.default: _instance_normalised,
    _aten.linalg_vector_norm.default: _norm,
    _aten.var.correction: _variance,
    _aten.std.correction: lambda *args, **kwargs: torch.sqrt(_variance(*args, **kwargs)),
    _aten.glu.default: _gated,
    _aten.clamp.Tensor: _clamped,
    _aten.addcmul.default: lambda x, a, b, *, value=1: x + value * (a * b),
    _aten.addcdiv.default: lambda x, a, b, *, value=1: x + value * (a / b),
    _aten.lerp.Scalar: lambda x, end, weight: x + weight * (end - x),
    _aten.lerp.Tensor: lambda x, end, weight: x + weight * (end - x),
    _aten.masked_fill.Scalar: lambda x, mask, value: torch.where(mask, value, x),
    _aten.masked_fill.Tensor: lambda x, mask, value: torch.where(mask, value, x),
    _aten.norm.ScalarOpt_dim: lambda x, p, dim, keepdim=False: _norm(x, 2 if p is None else p, dim, keepdim),
    _aten.div.Tensor_mode: _divided,
    _aten.floor_divide.default: lambda a, b: _divided(a, b, rounding_mode="floor"),
    _aten.round.decimals: lambda x, *, decimals: torch.round(x * 10.0**decimals) / 10.0**decimals,
    _aten.clamp_min.Tensor: torch.maximum,
    _aten.clamp_max.Tensor: torch.minimum,
    _aten.bitwise_xor.Tensor: _either,
    _aten.bitwise_xor.Scalar: _either,
    _aten.bitwise_xor.Scalar_Tensor: _either,
    _aten.logical_xor.default: lambda a, b: (a != 0) != (b != 0),
    _aten.isnan.default: lambda x: x != x,
    _aten.isinf.default: lambda x: torch.abs(x) == torch.inf,
    _aten.signbit.default: _negative,
    _aten.copysign.Tensor: lambda a, b: torch.where(_negative(b), -torch.abs(a), torch.abs(a)),
    _aten.copysign.Scalar: lambda a, b: torch.abs(a) * copysign(1.0, b),
    _aten._neg_view.default: torch.neg,
    _aten.angle.default: lambda x: torch.where(x < 0, torch.pi, x * 0.0),  # NaN stays
    _aten.sgn.default: torch.sign,
    _aten.fmax.default: lambda a, b: torch.where(a != a, b, torch.where(b != b, a, torch.maximum(a, b))),
    _aten.fmin.default: lambda a, b: torch.where(a != a, b, torch.where(b != b, a, torch.minimum(a, b))),
    _aten.ldexp.Tensor: lambda x, exponent: x * torch.exp2(exponent),
    _aten.bucketize.Tensor: _bucket,
    _aten.searchsorted.Tensor: _searched,
    _aten.any.default: lambda x: (x != 0).sum() > 0,
    _aten.any.dim: lambda x, dim, keepdim=False: (x != 0).sum(dim, keepdim) > 0,
    _aten.all.default: lambda x: (x == 0).sum() == 0,
    _aten.all.dim: lambda x, dim, keepdim=False: (x == 0).sum(dim, keepdim) == 0,
    _aten._trilinear.default: _trilinear,
    _aten._sparse_addmm.default: lambda x, a, b, *, beta=1, alpha=1: torch.addmm(x, a, b, beta=beta, alpha=alpha),
}

_MAXIMUM = "it takes a maximum over several components"
_ORDER = "it chooses components by their values"
_COUPLES = "couples all components"
_MATRIX = "it couples all entries of a matrix that varies"

#: Why the operations that people try are refused, and what to do instead.
REFUSED: dict[str, str] = {
    "_softmax": f"softmax {_COUPLES}; of few, write exp(x) / exp(x).sum(-1, keepdim=True), or use sigmoid gates",
    "_log_softmax": f"log-softmax {_COUPLES}; of few, write x - exp(x).sum(-1, keepdim=True).log()",
    "copy_": "it changes the state, which is the function's argument, in place; use inplace=False, or a copy",
    "max_pool2d_with_indices": f"{_MAXIMUM}; use average pooling, or convolutions with a stride",
    "max_pool3d_with_indices": f"{_MAXIMUM}; use average pooling, or convolutions with a stride",
    "_adaptive_max_pool2d": f"{_MAXIMUM}; use adaptive average pooling",
    "adaptive_max_pool2d": f"{_MAXIMUM}; use adaptive average pooling",
    "amax": f"{_MAXIMUM}; use a mean, or logsumexp written out",
    "amin": "it takes a minimum over several components; use a mean, or logsumexp written out",
    "max": f"{_MAXIMUM}; use a mean, or logsumexp written out; torch.maximum of two tensors is componentwise",
    "min": "it takes a minimum over several components; torch.minimum of two tensors is componentwise",
    "sort": f"{_ORDER}; leave the order as it is",
    "topk": f"{_ORDER}; weigh all of them instead",
    "argmax": f"{_ORDER}; weigh all of them instead",
    "argmin": f"{_ORDER}; weigh all of them instead",
    "kthvalue": f"{_ORDER}; leave the order as it is",
    "median": f"{_ORDER}; use a mean",
    "nanmedian": f"{_ORDER}; use a mean",
    "mode": f"{_ORDER}; use a mean",
    "searchsorted": f"{_ORDER}; add up comparisons, (x[..., None] > boundaries).sum(-1)",
    "cummax": f"{_MAXIMUM}; use a cumulative sum",
    "cummin": "it takes a minimum over several components; use a cumulative sum",
    "logsumexp": f"logsumexp {_COUPLES}; of few, write exp(x).sum(-1).log()",
    "logcumsumexp": f"logsumexp {_COUPLES}; of few, write exp(x).cumsum(-1).log()",
    "linalg_vector_norm": f"this norm {_COUPLES}; use the Euclidean one, or write (x.abs() ** p).sum(-1) ** (1 / p)",
    "norm": f"this norm {_COUPLES}; use the Euclidean one, or write (x.abs() ** p).sum(-1) ** (1 / p)",
    "_pdist_forward": f"a table of distances {_COUPLES}; write them out, of few",
    "_cdist_forward": f"a table of distances {_COUPLES}; write them out, of few",
    "_linalg_solve_ex": "it solves linear equations whose matrix varies; with a constant matrix it is affine",
    "linalg_solve_triangular": "it solves linear equations whose matrix varies; with a constant matrix it is affine",
    "linalg_lu_solve": "it solves linear equations whose matrix varies; with a constant matrix it is affine",
    "cholesky_solve": "it solves linear equations whose matrix varies; with a constant matrix it is affine",
    "linalg_inv_ex": f"{_MATRIX}; solve with, or invert, constant ones",
    "_linalg_det": f"{_MATRIX}; of a small one, write the determinant out",
    "_linalg_slogdet": f"{_MATRIX}; of a small one, write the determinant out",
    "linalg_matrix_exp": f"{_MATRIX}; solve the linear equation as part of the state instead",
    "linalg_qr": f"{_MATRIX}; factor constant ones, outside",
    "linalg_cholesky_ex": f"{_MATRIX}; factor constant ones, outside",
    "linalg_lu_factor_ex": f"{_MATRIX}; factor constant ones, outside",
    "_linalg_eigh": f"{_MATRIX}; decompose constant ones, outside",
    "linalg_eig": f"{_MATRIX}; decompose constant ones, outside",
    "_linalg_svd": f"{_MATRIX}; decompose constant ones, outside",
    "view_as_dtype": "it reads the bits of numbers as those of others",
    "nonzero": f"{_ORDER}; use torch.where(condition, value, 0), which is componentwise",
    "cumprod": "it multiplies many components with each other; write exp(log(x).cumsum(-1)) for positive ones",
    "prod": "it multiplies many components with each other; write the products out",
    "_scaled_dot_product_flash_attention_for_cpu": f"attention {_COUPLES}: keep it outside of the ODE function",
    "_native_multi_head_attention": f"attention {_COUPLES}: keep it outside of the ODE function",
}


#: Names of all operations that torchmor knows what to do with.
KNOWN = frozenset().union(AFFINE, COMPONENTWISE, SHAPE_ONLY, IDENTITY, ARITHMETIC, MATRIX_PRODUCTS, REFUSED)


def operation_name(target: Any) -> str:
    """Return the name of an operation without its overload; what differs in memory layout alone has one name."""
    name = torch_private.operation_name(target)
    if name is None:
        return getattr(target, "__name__", str(target))
    if target is _aten.view.dtype:
        return "view_as_dtype"
    if name in ("view", "view_copy", "_unsafe_view", "_reshape_copy", "unsafe_view"):
        return "reshape"
    name = name.removesuffix("_copy") if name not in ("_to_copy", "lift_fresh_copy") else name
    return {"unsafe_split": "split", "divide": "div", "subtract": "sub", "multiply": "mul"}.get(name, name)


def support_table() -> str:
    """Return the tables above as the Markdown table of the README."""
    affine = sorted(AFFINE | dict.fromkeys(ARITHMETIC - {"mul", "div"}) | dict.fromkeys(IDENTITY))
    rows = (
        ("affine", "kept exactly, as matrices of the sampled rows", affine),
        ("constant", "evaluated once", sorted(SHAPE_ONLY)),
        ("componentwise", "evaluated at the points only", sorted(COMPONENTWISE)),
        ("sums", "affine, so kept exactly", ["add", "rsub", "sub"]),
        ("products", "affine with a constant, else componentwise in both factors", ["div", "mul"]),
        ("products of matrices", "affine with a constant, else sums of products", sorted(MATRIX_PRODUCTS)),
        ("composite", "written in terms of the others", sorted({operation_name(operation) for operation in REWRITTEN})),
        ("others", "kept exactly if trying shows them to be affine, or bilinear", ["diag_embed", "linalg_cross", "…"]),
        ("refused", "an error with the reason", sorted(REFUSED)),
    )
    lines = ["| kind | what becomes of it | operations of torch (aten names) |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {fate} | {' '.join(f'`{name}`' for name in names)} |" for kind, fate, names in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(support_table())
