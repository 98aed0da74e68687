"""Tracing: the chain is the function, the function stays as it was, and what cannot be traced is refused by name."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from catalogue import ACTIVATIONS, CASES, FUNCTIONS, OdeFunction, module, traced
from torchmor.adapters.tracing.classifier import trace
from torchmor.adapters.tracing.operations import AFFINE, COMPONENTWISE, MATRIX_PRODUCTS, REWRITTEN, support_table
from torchmor.engine.errors import SignatureError, UnsupportedOperationError
from torchmor.engine.expressions import PRIMITIVES

HERE = Path(__file__).name
SUPPORTED = "Supported are affine operations"


def state(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 6)), dtype=torch.float64)


def traced_function(f, y=None):
    return trace(OdeFunction(f), state() if y is None else y)


# -- the chain is the function ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "opaque"), [*CASES, *((name, False) for name in ACTIVATIONS)])
def test_chain_equals_function(name, opaque):
    """``chain(y.T, u.T, t) == f(t, y, u).T`` for batches of any size and at any time."""
    entry, chain = FUNCTIONS[name], traced(name, opaque)
    for k, t in ((1, 0.0), (7, 0.37), (3, -1.3)):
        y, u = entry.columns(k, seed=k)
        np.testing.assert_allclose(chain(y, u, t), entry.values(y, u, t), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_chain_has_the_parts_of_the_function(name):
    entry, chain = FUNCTIONS[name], traced(name)
    assert (chain.state_size, chain.input_size, chain.output.size) == (entry.n, entry.p, entry.n)
    assert len(chain.stages) == entry.stages
    assert (chain.reads("t"), chain.reads("u")) == (entry.reads_time, entry.p > 0)


def test_catalogue_has_every_activation():
    couples = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    assert {type(make()).__name__ for make in ACTIVATIONS.values()} == set(nn.modules.activation.__all__) - couples


@pytest.mark.parametrize("exponents", [[1.0, 2.0] * 3, [3.0, 2.0] * 3, [1.0]])
def test_each_component_to_a_power_of_its_own(exponents):
    powers, y = torch.tensor(exponents, dtype=torch.float64), state()
    np.testing.assert_allclose(traced_function(lambda t, y: y**powers, y)(y.T.numpy()), (y**powers).T, rtol=1e-12)


def test_opaque_maps_are_opaque_and_small_ones_are_matrices():
    assert all(affine.is_opaque for affine in traced("residual", True).maps)
    assert not any(affine.is_opaque for affine in traced("residual").maps)


@pytest.mark.parametrize("name", ["rate network", "time channels", "bottleneck", "pooling", "GRU cell", "ELU"])
def test_weights_of_single_precision_are_exact(name):
    """Everything after the weights is computed in float64."""
    entry = FUNCTIONS[name]
    f = entry.function().float()
    y, u = (None if part is None else part.float() for part in entry.example(3))
    chain = trace(OdeFunction(f), y, u)
    with torch.no_grad():
        value = OdeFunction(f.double())(
            torch.tensor(0.3, dtype=torch.float64), y.double(), None if u is None else u.double()
        )
    columns = [None if part is None else part.double().flatten(1).numpy().T for part in (y, u)]
    np.testing.assert_allclose(chain(*columns, 0.3), value.detach().flatten(1).numpy().T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    f = FUNCTIONS["residual"].function().to(dtype)
    y = torch.randn(2, 2, 4, 4).to(dtype)
    chain = trace(OdeFunction(f), y)
    expected = f.double()(0.0, y.double()).detach().flatten(1).numpy().T
    np.testing.assert_allclose(chain(y.double().flatten(1).numpy().T), expected, rtol=1e-12, atol=1e-13)


def test_values_that_are_not_finite():
    """Where f is undefined, the chain is too, and that is no reason to refuse it."""
    chain = traced_function(lambda t, y: torch.sqrt(y) - y, state(4, 6).abs())
    y = np.array([[0.0, 1.0, 4.0]]).repeat(6, 0)
    np.testing.assert_allclose(chain(y)[0], [0.0, 0.0, -2.0])
    assert np.isnan(chain(-y[:, 1:])).all()


# -- every entry of the tables -----------------------------------------------------------------------------------

IMAGE, ORDER = (2, 4, 4), torch.tensor([3, 0, 1, 2])
WEIGHTS = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KERNEL = WEIGHTS[:4, :9].reshape(2, 2, 3, 3)
RESIZE = {"scale_factor": 2.0}

#: aten operation → a function of images (batch, 2, 4, 4) that calls it; its result is cropped or padded.
AFFINE_CALLS = {
    "mm": lambda y: y.flatten(2).flatten(0, 1) @ WEIGHTS,
    "bmm": lambda y: torch.bmm(y.flatten(2), WEIGHTS.expand(len(y), 16, 16)),
    "mv": lambda y: y.flatten(2)[:, 0] @ WEIGHTS[0],
    "addmm": lambda y: torch.addmm(WEIGHTS[0], y.flatten(2)[:, 0], WEIGHTS),
    "addmv": lambda y: torch.addmv(WEIGHTS[0, :1], y.flatten(2)[:, 0], WEIGHTS[0]),
    "baddbmm": lambda y: torch.baddbmm(WEIGHTS[:2], y.flatten(2), WEIGHTS.expand(len(y), 16, 16)),
    "convolution": lambda y: F.conv_transpose2d(y, KERNEL, WEIGHTS[0, :2], stride=2),
    "native_batch_norm": lambda y: F.batch_norm(y, *WEIGHTS[0, :4].split(2), WEIGHTS[1, :2], WEIGHTS[1, 2:4]),
    "sum": lambda y: y.sum((2, 3)),
    "mean": lambda y: y.mean(1),
    "cumsum": lambda y: y.cumsum(2),
    "avg_pool2d": lambda y: F.avg_pool2d(y, 3, 1, padding=1, count_include_pad=False),
    "avg_pool3d": lambda y: F.avg_pool3d(y[:, None], 2),
    "_adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, (3, 2)),
    "_adaptive_avg_pool3d": lambda y: F.adaptive_avg_pool3d(y[:, None], (1, 3, 2)),
    "upsample_nearest1d": lambda y: F.interpolate(y[:, 0], **RESIZE),
    "upsample_nearest2d": lambda y: F.interpolate(y, **RESIZE),
    "upsample_nearest3d": lambda y: F.interpolate(y[:, None], **RESIZE),
    "_upsample_nearest_exact1d": lambda y: F.interpolate(y[:, 0], **RESIZE, mode="nearest-exact"),
    "_upsample_nearest_exact2d": lambda y: F.interpolate(y, **RESIZE, mode="nearest-exact"),
    "_upsample_nearest_exact3d": lambda y: F.interpolate(y[:, None], **RESIZE, mode="nearest-exact"),
    "upsample_linear1d": lambda y: F.interpolate(y[:, 0], **RESIZE, mode="linear"),
    "upsample_bilinear2d": lambda y: F.interpolate(y, **RESIZE, mode="bilinear", align_corners=True),
    "upsample_bicubic2d": lambda y: F.interpolate(y, **RESIZE, mode="bicubic"),
    "upsample_trilinear3d": lambda y: F.interpolate(y[:, None], **RESIZE, mode="trilinear"),
    "constant_pad_nd": lambda y: F.pad(y, (1, 0, 0, 2), value=0.5),
    "reflection_pad1d": lambda y: F.pad(y[:, 0], (1, 2), mode="reflect"),
    "reflection_pad2d": lambda y: F.pad(y, (1, 2, 0, 1), mode="reflect"),
    "reflection_pad3d": lambda y: F.pad(y[:, None], (1, 2, 0, 1, 1, 1), mode="reflect"),
    "replication_pad1d": lambda y: F.pad(y[:, 0], (1, 2), mode="replicate"),
    "replication_pad2d": lambda y: F.pad(y, (1, 2, 0, 1), mode="replicate"),
    "replication_pad3d": lambda y: F.pad(y[:, None], (1, 2, 0, 1, 1, 1), mode="replicate"),
    "im2col": lambda y: F.unfold(y, 2),
    "col2im": lambda y: F.fold(y.reshape(-1, 8, 4), (3, 3), 2),
    "reshape": lambda y: y.reshape(len(y), 4, -1).flatten(1),
    "permute": lambda y: y.permute(0, 3, 2, 1),
    "transpose": lambda y: y.transpose(1, 2),
    "t": lambda y: y[:, 0, 0].t().t(),
    "expand": lambda y: y[:, :1].expand(-1, 3, 4, 4),
    "squeeze": lambda y: y[:, :1].squeeze(1),
    "unsqueeze": lambda y: y.unsqueeze(2),
    "slice": lambda y: y[:, :, 1::2],
    "select": lambda y: y[:, 1],
    "split": lambda y: torch.cat(y.chunk(2, dim=2)[::-1], dim=1),
    "split_with_sizes": lambda y: y.split((1, 3), dim=2)[1],
    "unbind": lambda y: y.unbind(1)[1],
    "cat": lambda y: torch.cat([y, WEIGHTS[:2, 0].expand(len(y), 4, 4, 2).permute(0, 3, 1, 2)], dim=1),
    "stack": lambda y: torch.stack([2 * y, y], dim=1),
    "flip": lambda y: y.flip(1),
    "roll": lambda y: y.roll((1, -1), (2, 3)),
    "rot90": lambda y: y.rot90(1, (2, 3)),
    "repeat": lambda y: y.repeat(1, 1, 2, 1),
    "unfold": lambda y: y.unfold(2, 2, 1),
    "diagonal": lambda y: y.diagonal(dim1=2, dim2=3),
    "tril": torch.tril,
    "triu": torch.triu,
    "index_select": lambda y: y.index_select(2, ORDER),
    "index": lambda y: y[:, :, ORDER, [0, 1, 1, 0]],
    "gather": lambda y: y.gather(2, ORDER.expand(len(y), 2, 4, 4)),
    "slice_scatter": lambda y: y.slice_scatter(2 * y[:, :, 1:], 2, 1),
    "select_scatter": lambda y: y.select_scatter(2 * y[:, :, 1], 2, 0),
    "index_put": lambda y: assigned(y, ORDER[:2]),
    "index_add": lambda y: y.index_add(2, ORDER, y.flip(3)),
    "scatter_add": lambda y: y.scatter_add(2, ORDER.expand(len(y), 2, 4, 4), y.flip(3)),
    "where": lambda y: torch.where(WEIGHTS[:4, :4] > 0, y, 1 - y.flip(1)),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y.reshape(-1, 4, 2, 4), 2),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
    "channel_shuffle": lambda y: F.channel_shuffle(y.reshape(-1, 4, 2, 4), 2),
}

#: What other versions of torch, or other devices, call operations of the table.
ELSEWHERE = {"_native_batch_norm_legit_no_training", "cudnn_batch_norm", "rrelu_with_noise"}


def assigned(y, index):
    z = torch.ones_like(y)
    z[:, :, index] = y[:, :, 1:3]
    return z


def cropped(call):
    def f(t, y):
        value = call(y.unflatten(1, IMAGE)).reshape(len(y), -1)
        return F.pad(value, (0, max(0, 32 - value.shape[1])))[:, :32]

    return f


def test_every_affine_operation_is_tried():
    assert set(AFFINE) - ELSEWHERE == set(AFFINE_CALLS)


@pytest.mark.parametrize("name", AFFINE_CALLS)
def test_affine_operation(name):
    f, y = cropped(AFFINE_CALLS[name]), state(3, 32)
    chain = traced_function(f, y)
    assert not chain.stages
    np.testing.assert_allclose(chain(y.numpy().T), f(0.0, y).numpy().T, rtol=1e-12, atol=1e-13)


BOOLEAN = {"bitwise_and": "&", "bitwise_or": "|", "logical_and": "logical_and", "logical_or": "logical_or"}
COMPONENTWISE_CALLS = {
    "_prelu_kernel": lambda y: F.prelu(y - 0.5, WEIGHTS[:1, 0]),
    "log_sigmoid_forward": F.logsigmoid,
    "rrelu_with_noise_functional": lambda y: F.rrelu(y - 0.5),
    "clamp": lambda y: y.clamp(0.3, 0.6),
    "clamp_min": lambda y: y.clamp_min(0.4),
    "clamp_max": lambda y: y.clamp_max(0.4),
    "round": lambda y: y + (5 * y).round(),
    "floor": lambda y: y + (5 * y).floor(),
    "ceil": lambda y: y + (5 * y).ceil(),
    "trunc": lambda y: y + (5 * y - 2).trunc(),
    "remainder": lambda y: torch.remainder(y - 0.5, 0.3) + torch.remainder(2.0, y) + y % (y.flip(1) - 0.5),
    "fmod": lambda y: torch.fmod(y - 0.5, 0.3) + torch.fmod(y, y.flip(1) - 0.5),
    "bitwise_not": lambda y: y * ~(y > 0.4),
    "bitwise_and": lambda y: y * ((y > 0.3) & (y < 0.6)),
    "bitwise_or": lambda y: y * ((y < 0.3) | (y > 0.6)),
    "logical_not": lambda y: y * torch.logical_not(y > 0.4),
    "logical_and": lambda y: y * torch.logical_and(y > 0.3, y < 0.6),
    "logical_or": lambda y: y * torch.logical_or(y < 0.3, y > 0.6),
    "threshold": lambda y: F.threshold(y, 0.4, -1.0),
    "where": lambda y: torch.where(y > 0.4, y, -1.0),
    "acosh": lambda y: torch.acosh(1 + y),
    "pow": lambda y: y**0.3 - 2**y + y ** y.flip(1),
} | {name: lambda y, name=name: y * getattr(torch, name)(y, y.flip(1)) for name in "gt ge lt le eq ne".split()}


def componentwise_call(name):
    function = getattr(torch, name, None) or getattr(F, name)
    if PRIMITIVES[COMPONENTWISE[name]] == 2:
        return lambda y: function(y, 0.7 * y.flip(1))
    return function


@pytest.mark.parametrize("name", sorted(set(COMPONENTWISE) - ELSEWHERE))
def test_componentwise_operation(name, monkeypatch):
    call = COMPONENTWISE_CALLS.get(name) or componentwise_call(name)
    y = 0.1 + 0.8 * torch.rand(3, 6, dtype=torch.float64)
    chain = traced_function(lambda t, y: call(y), y)
    assert chain.stages
    np.testing.assert_allclose(chain(y.numpy().T), call(y).numpy().T, rtol=1e-12, atol=1e-13)
    monkeypatch.delitem(COMPONENTWISE, name)
    monkeypatch.delitem(AFFINE, name, raising=False)
    with pytest.raises(UnsupportedOperationError, match=f"'{name}' at .*{HERE}"):
        traced_function(lambda t, y: call(y), y)


ARITHMETIC_CALLS = {
    "sum with factor": lambda y: torch.add(y, y.flip(1), alpha=3),
    "sum of stages with factor": lambda y: torch.add(y.sin(), y.flip(1).cos(), alpha=3),
    "difference with factor": lambda y: torch.sub(y.sin(), y.flip(1), alpha=3),
    "difference, reversed": lambda y: torch.rsub(y, y.sin(), alpha=3) + torch.rsub(y, 2.0, alpha=3),
    "numbers": lambda y: (1 - y) * 3 - 2 / (y.exp() + 2) + y / 4 - (-y) + 5 * (y.sin() - 1) / 2,
    "constant tensors": lambda y: (
        (WEIGHTS[0, :6] - y) * WEIGHTS[1, :6] + WEIGHTS[2, :6] / (2 + y.sin()) - y / WEIGHTS[3, :6]
    ),
    "constants of one element": lambda y: y.sin() * torch.tensor(2) + torch.tensor([3.0]) * y.cos() - torch.tensor(1.5),
    "integers": lambda y: y * torch.arange(6) + y.sin() * torch.arange(6),
    "broadcast": lambda y: y[:, :1] * y + y.mean(1, keepdim=True).sin() + y[:, :1].cos() * WEIGHTS[0, :6],
    "broadcast to more dimensions": lambda y: (y[:, None].sin() * WEIGHTS[:6, :6] + y[:, :, None]).sum(1),
    "of the same stage": lambda y: (h := torch.tanh(y)) * (1 - h) + h - h / 2,
    "of stages of different shapes": lambda y: y[:, :1].sin() * y.cos() - y[:, :2].tanh().repeat(1, 3),
}


@pytest.mark.parametrize("name", ARITHMETIC_CALLS)
def test_arithmetic(name):
    call, y = ARITHMETIC_CALLS[name], state(3, 6)
    chain = traced_function(lambda t, y: call(y), y)
    np.testing.assert_allclose(chain(y.numpy().T), call(y).numpy().T, rtol=1e-12, atol=1e-13)


REWRITTEN_CALLS = {
    "glu": lambda y: F.glu(torch.cat([y, y.flip(1)], dim=1)),
    "addcmul": lambda y: torch.addcmul(y, y, y.sin(), value=0.5),
    "addcdiv": lambda y: torch.addcdiv(y, y, 2 + y.sin(), value=0.5),
    "lerp": lambda y: torch.lerp(y, y.sin(), 0.3) + torch.lerp(y, y.sin(), y.sigmoid()),
    "masked_fill": lambda y: y.masked_fill(y < 0, 0.3) + y.masked_fill(y > 0, torch.tensor(0.1)),
    "clamp": lambda y: y.clamp(WEIGHTS[0, :6], WEIGHTS[0, :6] + 1),
    "native_group_norm": lambda y: F.group_norm(y, 3, WEIGHTS[0, :6]).tanh(),
    "native_layer_norm": lambda y: F.layer_norm(y.view(-1, 2, 3), (2, 3), bias=WEIGHTS[:2, :3]).flatten(1),
    "native_batch_norm": lambda y: F.instance_norm(y.view(-1, 2, 3), eps=0.1).flatten(1),
    "linalg_vector_norm": lambda y: y / y.view(-1, 2, 3).norm(dim=(1, 2)).unsqueeze(1) + y.norm(dim=1, keepdim=True),
    "var": lambda y: y.var(1, keepdim=True) * y.view(-1, 2, 3).var((1, 2), correction=0)[:, None] + y,
    "std": lambda y: y.std(1, keepdim=True) + y,
    "norm": lambda y: y * F.pairwise_distance(y, y.flip(1), keepdim=True),
    "clamp_min": lambda y: y.clamp_min(y.flip(1)),
    "clamp_max": lambda y: y.clamp_max(WEIGHTS[0, :6]),
    "div": lambda y: torch.div(y, 0.3, rounding_mode="floor") - torch.div(y, y.flip(1), rounding_mode="trunc"),
    "floor_divide": lambda y: y // 0.3 + y // y.flip(1),
    "round": lambda y: torch.round(y, decimals=1),
    "bitwise_xor": lambda y: y * ((y > 0) ^ (y > y.flip(1))),
    "logical_xor": lambda y: y * torch.logical_xor(y > 0, y > y.flip(1)),
    "isnan": lambda y: y + torch.isnan(torch.log(y)).double(),
    "isinf": lambda y: y + torch.isinf(torch.exp(1e3 * y)).double(),
    "signbit": lambda y: y + torch.signbit(y).double(),
    "copysign": lambda y: torch.copysign(y, y.flip(1)) + torch.copysign(y, -1.0),
    "angle": lambda y: y + y.angle(),
    "sgn": lambda y: y + y.sgn(),
    "fmax": lambda y: torch.fmax(y.log(), y.flip(1)),
    "fmin": lambda y: torch.fmin(y.log(), y.flip(1).sqrt().nan_to_num()),
    "ldexp": lambda y: torch.ldexp(y, y.flip(1)),
    "bucketize": lambda y: y + torch.bucketize(y, torch.tensor([-0.5, 0.0, 1.0])),
    "searchsorted": lambda y: y + torch.searchsorted(torch.tensor([-0.5, 0.0, 1.0]), y, right=True),
    "any": lambda y: y * (y > 1).any(1, keepdim=True),
    "all": lambda y: y * (y > -1).all(1, keepdim=True),
    "_neg_view": lambda y: torch.complex(y, y.flip(1)).conj().imag + y,
    "_trilinear": lambda y: F.bilinear(y, y.flip(1), WEIGHTS[:6, :6].expand(6, 6, 6)),
    "_sparse_addmm": lambda y: torch.sparse.mm(WEIGHTS[:6, :6].tril().to_sparse(), y.T).T,
}


def test_every_rewritten_operation_is_tried():
    assert {operation.name().split("::")[1].split(".")[0] for operation in REWRITTEN} == set(REWRITTEN_CALLS)


@pytest.mark.parametrize("name", REWRITTEN_CALLS)
def test_rewritten_operation(name):
    call, y = REWRITTEN_CALLS[name], state(3, 6)
    chain = traced_function(lambda t, y: call(y), y)
    np.testing.assert_allclose(chain(y.numpy().T), call(y).numpy().T, rtol=1e-12, atol=1e-13)


def test_support_table_has_every_operation():
    table = support_table()
    for name in (*AFFINE, *COMPONENTWISE):
        assert f"`{name}`" in table


MATRIX_PRODUCT_CALLS = {
    "bmm": lambda y: y.view(-1, 2, 3).tanh() @ y.view(-1, 3, 2),
    "bmm of stages": lambda y: y.view(-1, 3, 2).sin() @ y.view(-1, 2, 3).cos(),
    "bmm with a vector": lambda y: y.view(-1, 2, 3).tanh() @ y[:, :3, None],
    "mm": lambda y: torch.stack([a.view(2, 3) @ (a + 1).view(3, 2) for a in y]),
    "mv": lambda y: torch.stack([a.view(2, 3) @ a[:3].sin() for a in y]),
    "addmm": lambda y: torch.stack([torch.addmm(a[:2], a.view(2, 3), a.view(3, 2)) for a in y]),
    "addmv": lambda y: torch.stack([torch.addmv(a[:2].sin(), a.view(2, 3), a[3:]) for a in y]),
    "baddbmm": lambda y: torch.baddbmm(WEIGHTS[:2, :2], y.view(-1, 2, 3), y.view(-1, 3, 2)),
    "einsum": lambda y: torch.einsum("bij,bj->bi", y.view(-1, 2, 3), y[:, ::2]),
    "product and sum": lambda y: (y.view(-1, 2, 3).tanh() * y[:, None, :3]).sum(2),
}


@pytest.mark.parametrize("name", MATRIX_PRODUCT_CALLS)
def test_matrix_products(name):
    """A product of two matrices that depend on the state is one stage of products, whatever its factors are."""
    call, y = MATRIX_PRODUCT_CALLS[name], state(3, 6)

    def f(t, y):
        value = call(y).flatten(1)
        return F.pad(value, (0, 6))[:, :6]

    chain = traced_function(f, y)
    np.testing.assert_allclose(chain(y.numpy().T), f(0.0, y).numpy().T, rtol=1e-12, atol=1e-13)


def test_every_matrix_product_is_tried():
    assert {name.split()[0] for name in MATRIX_PRODUCT_CALLS} >= MATRIX_PRODUCTS


#: Functions of one or few stages, that would be more if each value became one.
FUSED = {
    "sum, then activated": (lambda y: torch.relu(y + torch.tanh(y.flip(1))), ["relu(a1 + tanh(a2))"]),
    "multiple, then activated": (lambda y: torch.relu(y.tanh() * WEIGHTS[0, :6]), ["relu(tanh(a1) * a2)"]),
    "gate that is a slice": (
        lambda y: (h := y.sigmoid())[:, :3].repeat(1, 2) * y + 0 * h,
        ["sigmoid(a1)", "a1 * a2"],
    ),
    "halves of one": (
        lambda y: (p := y.tanh().chunk(2, 1))[0].repeat(1, 2) + (p[0] * p[1]).repeat(1, 2),
        ["tanh(a1)", "tanh(a1) * tanh(a2)"],
    ),
    "rearranged": (lambda y: y.tanh().view(-1, 2, 3).transpose(1, 2).flatten(1) * y, ["tanh(a1) * a2"]),
    "rearranged, affine": (lambda y: y.tanh().view(-1, 2, 3).transpose(1, 2).flatten(1), ["tanh(a1)"]),
    "parts put together": (lambda y: torch.cat(y.tanh().split(2, 1)[::-1], 1), ["tanh(a1)"]),
    "written twice": (lambda y: torch.tanh(2 * y) + torch.tanh(2 * y).flip(1), ["tanh(a1)"]),
    "written twice, with constants": (
        lambda y: torch.tanh(y @ (2 * torch.eye(6)).double()) + torch.tanh(y @ (2 * torch.eye(6)).double()).flip(1),
        ["tanh(a1)"],
    ),
    "sum of what is there": (lambda y: torch.relu((h := y.tanh()) + h.flip(1).sum(1, True)), ["tanh(a1)", "relu(a1)"]),
    "sum, scaled": (lambda y: 0.5 * (1 - (y.tanh() - y)) + 2, ["tanh(a1)"]),
    "scaled, summed": (lambda y: -y.tanh() * 0.5 + y, ["tanh(a1) * -1 * 0.5"]),
    "multiple of what is there": (lambda y: (h := y.tanh()).flip(1).cumsum(1) - 0.5 * h, ["tanh(a1)"]),
    "normalised, activated": (
        lambda y: F.group_norm(y, 2, WEIGHTS[0, :6], WEIGHTS[1, :6]).tanh(),
        ["a1 * a1", "sqrt(relu(a1) + 1e-05)", "tanh(a1 / a2)"],
    ),
    "normalised by channel": (
        lambda y: F.group_norm(y.view(-1, 2, 3), 2, WEIGHTS[0, :2], WEIGHTS[1, :2]).relu().flatten(1),
        ["a1 * a1", "sqrt(relu(a1) + 1e-05)", "relu(a1 / a2)"],
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_values_are_fused_into_few_stages(name):
    """What only moves, sums or scales componentwise values is no stage, and no reason for one."""
    (call, expected), y = FUSED[name], state(3, 6)
    chain = traced_function(lambda t, y: call(y), y)
    np.testing.assert_allclose(chain(y.numpy().T), call(y).numpy().T, rtol=1e-12, atol=1e-13)
    found = [stage.expression.text([f"a{i + 1}" for i in range(stage.expression.arity)]) for stage in chain.stages]
    assert found == expected


def test_normalisation_of_any_scale():
    """Group and layer normalisation stay exact where the variance is tiny, zero or large."""
    for call in (lambda y: F.layer_norm(y, (6,)), lambda y: F.group_norm(y, 3, WEIGHTS[0, :6], WEIGHTS[1, :6])):
        chain = traced_function(lambda t, y, call=call: call(y))
        for scale in (0.0, 1e-8, 1e-3, 1e6):
            y = 1.0 + scale * state(4, 6)
            np.testing.assert_allclose(chain(y.numpy().T), call(y).numpy().T, rtol=1e-8, atol=1e-8)


# -- the function stays as it was ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["counted, in place", "batch normalisation", "dropout", "time as attribute", "RReLU"])
@pytest.mark.parametrize("training", [True, False])
def test_function_is_unchanged(name, training):
    entry = FUNCTIONS[name]
    f = entry.function().train(training)
    before = {key: value.clone() for key, value in f.state_dict().items()}
    attributes = [set(vars(part)) for part in f.modules()]
    y, u = entry.example()
    y.requires_grad_(True)
    example, random_state = y.detach().clone(), torch.get_rng_state()
    trace(OdeFunction(f), y, u)
    assert torch.equal(y, example) and y.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(part.training == training for part in f.modules())
    assert [set(vars(part)) for part in f.modules()] == attributes
    assert getattr(f, "nfe", 0) == 0
    assert all(torch.equal(value, before[key]) for key, value in f.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float64 for p in f.parameters())


def test_chain_keeps_the_weights_of_its_time():
    entry = FUNCTIONS["dense"]
    f, (y, _) = entry.function(), entry.columns()
    chain = trace(OdeFunction(f), entry.example()[0])
    value = chain(y)
    with torch.no_grad():
        f.A.weight.zero_()
    np.testing.assert_array_equal(chain(y), value)


def test_method_of_a_module_in_training_mode():
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Tanh()).double().train()
    holder = module(lambda self, y: y, net=net, f=None).train()
    type(holder).dynamics = lambda self, t, y: self.net(y)
    chain = traced_function(holder.dynamics)
    assert net.training
    y = state(4, 6)
    np.testing.assert_allclose(chain(y.numpy().T), net.eval()(y).detach().numpy().T, rtol=1e-12, atol=1e-13)


def test_function_in_training_mode_is_traced_in_eval_mode():
    net = FUNCTIONS["batch normalisation"].function().train()
    y = FUNCTIONS["batch normalisation"].example()[0]
    chain = traced_function(net, y)
    np.testing.assert_allclose(chain(y.flatten(1).numpy().T), traced("batch normalisation")(y.flatten(1).numpy().T))


def test_compiled_function():
    entry = FUNCTIONS["residual"]
    chain = trace(OdeFunction(torch.compile(entry.function(), backend="eager")), entry.example()[0])
    y, _ = entry.columns(3)
    np.testing.assert_allclose(chain(y), entry.values(y), rtol=1e-12, atol=1e-13)


def test_sparse_weights():
    weights = torch.eye(6, dtype=torch.float64).roll(1, 0).to_sparse()
    chain = traced_function(lambda t, y: torch.tanh((weights @ y.T).T))
    y = state(3, 6)
    np.testing.assert_allclose(chain(y.numpy().T), torch.tanh(y.roll(1, 1)).numpy().T, rtol=1e-12)


# -- refusals ------------------------------------------------------------------------------------------------------


def hamiltonian(t, y):
    with torch.enable_grad():
        z = y.detach().requires_grad_(True)
        return torch.autograd.grad((z**4).sum(), z)[0]


class Recurrent(nn.Module):
    """Keeps a hidden state."""

    def __init__(self):
        super().__init__()
        self.last = 0.0

    def forward(self, t, y):
        self.last = self.last + y.mean()
        return self.last - y


REFUSALS = {
    "softmax": (lambda t, y: torch.softmax(y, 1), "'_softmax'", "softmax couples all components"),
    "log-softmax": (lambda t, y: F.log_softmax(y, 1), "'_log_softmax'", "couples all components"),
    "dropout": (lambda t, y: F.dropout(y, training=True), "'bernoulli'", "it is random; call eval()"),
    "noise": (lambda t, y: y + torch.randn_like(y), "'randn_like'", "it is random"),
    "noise of its own": (lambda t, y: y + torch.rand(6), "'rand'", "it is random"),
    "random slopes": (lambda t, y: F.rrelu(y, training=True), "rrelu", "it is random in training mode"),
    "maximum pooling": (
        lambda t, y: F.max_pool1d(y[:, None], 3, 1, 1)[:, 0],
        "'max_pool2d_with_indices'",
        "use average pooling",
    ),
    "maximum": (lambda t, y: y - y.amax(1, keepdim=True), "'amax'", "use a mean"),
    "maximum along rows": (lambda t, y: y - y.max(1, keepdim=True).values, "'max'", "use a mean"),
    "product of components": (lambda t, y: y - y.prod(1, keepdim=True), "'prod'", "write the products out"),
    "sort": (lambda t, y: y.sort(1).values, "'sort'", "leave the order as it is"),
    "largest": (lambda t, y: y.topk(6, 1).values, "'topk'", "weigh all of them"),
    "chosen by the largest": (lambda t, y: y + y[:, :1] * y.argmax(1, True), "'argmax'", "weigh all of them"),
    "cumulative product": (lambda t, y: y.cumprod(1), "'cumprod'", "write exp(log(x).cumsum(-1))"),
    "norm": (lambda t, y: y / y.norm(3, 1, True), "'linalg_vector_norm'", "this norm couples all components"),
    "largest so far": (lambda t, y: y.cummax(1).values, "'cummax'", "maximum over several components"),
    "equations": (lambda t, y: torch.linalg.solve(torch.diag_embed(y), y), "'_linalg_solve_ex'", "whose matrix varies"),
    "determinant": (lambda t, y: y * torch.linalg.det(torch.diag_embed(y))[:, None], "'_linalg_det'", "write the det"),
    "special function": (lambda t, y: torch.special.zeta(y, 2.0), "'special_zeta'", "none of the functions that"),
    "distances": (lambda t, y: y + torch.cdist(y.view(-1, 2, 3), y.view(-1, 2, 3)).sum(), "'_cdist_for", "distances"),
    "bits": (lambda t, y: y * (y.view(torch.int64) > 0), "'view_as_dtype'", "it reads the bits"),
    "selection by values": (lambda t, y: y * y[y > 0].sum(), "'index'", "not affine in those arguments"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_unsupported_operation_is_named_with_its_place_and_reason(name):
    f, operation, reason = REFUSALS[name]
    with pytest.raises(UnsupportedOperationError) as raised:
        traced_function(f)
    text = str(raised.value)
    assert operation in text and reason in text and SUPPORTED in text
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number, line = re.search(rf"{HERE}:(\d+) \((.*)\), which cannot be reduced", text).groups()
    assert lines[int(number) - 1].strip() == line
    assert "lambda t, y" in line


def test_place_inside_a_module_of_the_users_own():
    def forward(self, t, y):
        h = self.linear(y)
        return torch.softmax(h, 1)  # here

    with pytest.raises(UnsupportedOperationError, match=rf"{HERE}:\d+ \(return torch.softmax\(h, 1\)  # here\)"):
        traced_function(module(forward, linear=nn.Linear(6, 6)).double())


def test_place_without_code_of_the_user_is_the_module():
    net = nn.Sequential(nn.Linear(6, 6), nn.Softmax(1)).double()
    with pytest.raises(UnsupportedOperationError, match="'_softmax' in Softmax, which cannot be reduced"):
        traced_function(net)


def test_attention():
    attention = nn.MultiheadAttention(3, 1, batch_first=True).double()
    f = module(lambda self, t, y: self.attention(*[y.view(-1, 2, 3)] * 3)[0].flatten(1), attention=attention)
    with pytest.raises(UnsupportedOperationError, match=rf"cannot be reduced.*{SUPPORTED}"):
        traced_function(f)


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: y if y.sum() > 0 else -y,
        lambda t, y: y if t > 0.5 else -y,
        lambda t, y: y * t.item(),
        lambda t, y: y * float(t),
        lambda t, y: y * y[0, 0].item(),
        lambda t, y: y * y.tolist()[0][0],
        lambda t, y: y[:, : int(t) + 6],
    ],
    ids=["if on the state", "if on the time", "item of the time", "float", "item of the state", "tolist", "index"],
)
def test_dependence_through_python(f):
    text = rf"branches on, or reads as a Python number.* at .*{HERE}:\d+ \(lambda t, y.*use torch.where instead of if"
    with pytest.raises(UnsupportedOperationError, match=text):
        traced_function(f)


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: y - y.mean(0, keepdim=True),
        lambda t, y: y.flip(0),
        lambda t, y: y * len(y),
        lambda t, y: torch.tanh(y.float()).double(),
        Recurrent(),
    ],
    ids=["mean over the batch", "batch reversed", "size of the batch", "lower precision", "hidden state"],
)
def test_no_function_of_one_sample(f):
    with pytest.raises(
        UnsupportedOperationError, match=r"differs from the function by .*it mixes the samples of a batch"
    ):
        traced_function(f)


def test_batch_statistics():
    text = rf"normalises by statistics of the batch at .*{HERE}.*use running statistics and eval"
    with pytest.raises(UnsupportedOperationError, match=text):
        traced_function(lambda t, y: F.batch_norm(y, None, None, training=True))
    text = r"differs from the function .*mixes the samples of a batch \(batch normalisation without running"
    with pytest.raises(UnsupportedOperationError, match=text):
        traced_function(lambda t, y: F.batch_norm(y.view(-1, 2, 3), None, None, training=True).flatten(1))


def test_state_changed_in_place():
    with pytest.raises(
        UnsupportedOperationError, match="changes the state, which is the function's argument, in place"
    ):
        traced_function(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)).double())


def test_derivatives_inside():
    with pytest.raises(UnsupportedOperationError, match=f"differentiates inside itself at .*{HERE}"):
        traced_function(hamiltonian)


class Cube(torch.autograd.Function):
    """With a derivative of its own, in the old way."""

    @staticmethod
    def forward(ctx, y):
        return y**3


def test_functions_of_autograd():
    with pytest.raises(UnsupportedOperationError, match=rf"traced .* at .*{HERE}.*override the setup_context"):
        traced_function(lambda t, y: Cube.apply(y))


def test_function_that_cannot_be_copied():
    f = module(lambda self, t, y: y)
    f.kept = torch.ones(3, requires_grad=True) * 2
    with pytest.raises(UnsupportedOperationError, match="detach tensors that it keeps"):
        traced_function(f)


def test_errors_of_the_function_itself_come_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        traced_function(nn.Linear(5, 6).double())
    with pytest.raises(SignatureError, match=r"returned shape \(2, 3\) for a state of shape \(2, 6\)"):
        traced_function(lambda t, y: y[:, :3])
    with pytest.raises(SignatureError, match=r"returned shape \(2, 3\) for a state of shape \(2, 6\)"):
        trace(lambda t, y, u: y[:, :3], state())


# -- size ------------------------------------------------------------------------------------------------------------

LARGE = """
import resource, numpy as np, torch
from torchmor.adapters.tracing.classifier import trace
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Tanh())
state = torch.randn(2, 64, 32, 32)
f = net.double()
chain = trace(lambda t, y, u: f(y), state.double())
dofs = np.random.default_rng(0).choice(chain.state_size, 256, replace=False)
restricted, source_dofs = chain.restrict(dofs)
y = state.double().flatten(1).numpy().T
value = f(state.double()).detach().flatten(1).numpy().T
np.testing.assert_allclose(restricted(y[source_dofs]), value[dofs], rtol=1e-12, atol=1e-12)
np.testing.assert_allclose(chain(y), value, rtol=1e-12, atol=1e-12)
jacobian, v, w = chain.jacobian(y[:, :1]), y[:, 1:], np.cos(y[:, 1:])
h = 1e-5
difference = (chain(y[:, :1] + h * v) - chain(y[:, :1] - h * v)) / (2 * h)
np.testing.assert_allclose(jacobian @ v, difference, atol=1e-8)
np.testing.assert_allclose(w.T @ (jacobian @ v), (jacobian.rmatmat(w)).T @ v, rtol=1e-12)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, before)
"""


@pytest.mark.slow
def test_large_convolution_needs_less_than_one_gibibyte():
    """A state of 64 channels of 32 × 32: as a matrix, the map would take 32 GiB."""
    result = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    peak_bytes, before_bytes = map(int, result.stdout.split())
    assert peak_bytes < 2**30, f"{peak_bytes / 2**20:.0f} MiB, of which {before_bytes / 2**20:.0f} by imports"
