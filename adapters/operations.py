"""What torch operations are to a stage chain: the one table that decides, and that the README prints.

Names are those of aten operations without their overload. Whatever is in none of these tables is refused by name.
"""

import torch

_aten = torch.ops.aten

#: Operations whose result does not depend on the values of their argument, only on its shape: constants.
SHAPE_ONLY = frozenset(
    "ones_like zeros_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided sym_size".split()
)

#: Operations that return their argument.
IDENTITY = frozenset("detach clone alias lift_fresh lift_fresh_copy _to_copy contiguous".split())

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

#: Sums, differences and products; what they are depends on their arguments (see tracing.py).
ARITHMETIC = frozenset("add sub rsub mul div neg".split())

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
            "reciprocal sqrt rsqrt abs sign exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh "
            "asin acos atan asinh acosh atanh erf erfc sigmoid relu leaky_relu elu celu gelu silu mish softplus "
            "hardtanh hardsigmoid hardswish softshrink hardshrink threshold clamp logical_not pow atan2 hypot "
            "logaddexp maximum minimum gt ge lt le eq ne logical_and logical_or where"
        ).split()
    },
}


def _gated(x, dim=-1):
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def _clamped(x, least=None, most=None):
    x = x if least is None else torch.maximum(x, least)
    return x if most is None else torch.minimum(x, most)


#: Operations that are first written in terms of others.
REWRITTEN = {
    _aten.glu.default: _gated,
    _aten.clamp.Tensor: _clamped,
    _aten.addcmul.default: lambda x, a, b, *, value=1: x + value * (a * b),
    _aten.addcdiv.default: lambda x, a, b, *, value=1: x + value * (a / b),
    _aten.lerp.Scalar: lambda x, end, weight: x + weight * (end - x),
    _aten.lerp.Tensor: lambda x, end, weight: x + weight * (end - x),
    _aten.masked_fill.Scalar: lambda x, mask, value: torch.where(mask, value, x),
    _aten.masked_fill.Tensor: lambda x, mask, value: torch.where(mask, value, x),
}

#: Why the operations that people try are refused, and what to do instead.
REFUSED: dict[str, str] = {
    "native_group_norm": "group normalisation divides by statistics of the state",
    "native_layer_norm": "layer normalisation divides by statistics of the state",
    "_softmax": "softmax couples all components",
    "_log_softmax": "log-softmax couples all components",
    "copy_": "it changes the state, which is the function's argument, in place; use inplace=False, or a copy",
    "max_pool2d_with_indices": "maximum pooling takes a maximum over several components; use average pooling",
    "_scaled_dot_product_flash_attention_for_cpu": "attention couples all components",
}


def support_table() -> str:
    """Return the tables above as the Markdown table of the README."""
    affine = sorted(AFFINE | dict.fromkeys(ARITHMETIC - {"mul", "div"}) | dict.fromkeys(IDENTITY))
    rows = (
        ("affine", "kept exactly, as matrices of the sampled rows", affine),
        ("constant", "evaluated once", sorted(SHAPE_ONLY)),
        ("componentwise", "evaluated at the points only", sorted(COMPONENTWISE)),
        ("sums", "affine, so kept exactly", ["add", "rsub", "sub"]),
        ("products", "affine with a constant, else componentwise in both factors", ["div", "mul"]),
        ("refused", "an error with the reason", sorted(REFUSED)),
    )
    lines = ["| kind | what becomes of it | operations of torch (aten names) |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {fate} | {' '.join(f'`{name}`' for name in names)} |" for kind, fate, names in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(support_table())
