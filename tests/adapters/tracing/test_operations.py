"""Every operation of torch is known: kept exactly if it is affine, bilinear or componentwise, else refused by name."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchmor.adapters.models.conversion import chain_to_module
from torchmor.adapters.tracing.classifier import trace
from torchmor.adapters.tracing.operations import KNOWN, REFUSED, REWRITTEN, SHAPE_ONLY, operation_name
from torchmor.engine.errors import SignatureError, UnsupportedOperationError

GENERATOR = torch.Generator().manual_seed(0)
W = torch.randn(6, 6, 6, generator=GENERATOR, dtype=torch.float64)
COMPLEX = torch.complex(W[0], W[1])
ORDER = torch.tensor([3, 0, 5, 2, 1, 4])


def state(*shape, dtype=torch.float64):
    return torch.randn(*(shape or (3, 6)), generator=GENERATOR, dtype=torch.float64).to(dtype)


def assert_traced(f, y=None, u=None, t=0.3, rtol=1e-12, stages=None):
    """The chain is f, also at other states, inputs and times than those of the example; returns it."""
    y = state() if y is None else y
    chain = trace(f, y, u, t)
    for scale, time in ((1.0, t), (-1.7, t + 0.4)):
        at = (torch.tensor(time, dtype=y.dtype), scale * y, None if u is None else scale * u)
        expected = f(*at).double().flatten(1).numpy().T
        columns = [None if part is None else part.double().flatten(1).numpy().T for part in at[1:]]
        value = chain(columns[0], columns[1], time)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    if stages is not None:
        assert [stage.expression.text(["a", "b"][: stage.expression.arity]) for stage in chain.stages] == stages
    return chain


# -- tensors that are made inside ------------------------------------------------------------------------------------


def written(y, d):
    d[:, 0] = y[:, 1]
    d[:, 1:] = torch.sin(y[:, 1:])
    return d


MADE_INSIDE = {
    "zeros": lambda y: written(y, torch.zeros(len(y), 6)),
    "zeros of float32": lambda y: written(y, torch.zeros(len(y), 6, dtype=torch.float32)),
    "empty": lambda y: written(y, torch.empty(len(y), 6)),
    "integers": lambda y: written(y, torch.zeros(len(y), 6, dtype=torch.long)) * y,
    "like the state": lambda y: written(y, torch.zeros_like(y)) + y.new_ones(6) + torch.full_like(y, 0.1),
    "full": lambda y: y @ torch.full((6, 6), 0.1),
    "ones": lambda y: (torch.ones(6, 6).cumsum(0) @ y.T).T,
    "eye": lambda y: y @ torch.eye(6).roll(1, 0),
    "arange": lambda y: y @ torch.outer(torch.arange(6.0), torch.arange(0, 3, 0.5)),
    "linspace": lambda y: y @ torch.diag(torch.linspace(0, 1, 6)),
    "tensor": lambda y: y @ torch.tensor([[0.1] * 6] * 6),
    "complex": lambda y: (y.cfloat() @ torch.full((6, 6), 0.1 + 1j)).imag,
    "mesh": lambda y: y @ torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")[0],
    "float()": lambda y: torch.tanh(y.float()) @ torch.eye(6),
    "to(float32)": lambda y: torch.tanh(y.to(torch.float32)) @ torch.eye(6).to(torch.float32),
    "truth times a number": lambda y: ((y > 0) * 0.3) @ torch.eye(6),
    "counted in place": lambda y: y @ torch.ones(6, 6).mul_(0.1).add_(1),
}


@pytest.mark.parametrize("name", MADE_INSIDE)
def test_tensors_made_inside_a_function_of_single_precision(name):
    """Their dtype is the default one, whatever precision the chain is computed in."""
    call = MADE_INSIDE[name]
    assert_traced(lambda t, y, u: call(y), state(dtype=torch.float32), rtol=1e-5)


def test_constants_are_those_of_the_function_s_own_precision():
    """A tenth of single precision is no tenth of double precision; the function has the former."""
    assert_traced(lambda t, y, u: y * torch.full((6,), 0.1) + torch.linspace(0, 1, 6) / 3 + torch.tensor([0.1]))


class Galerkin(nn.Module):
    """As torchdyn's Galerkin layers: weights that are a Fourier series in the time, whose basis is made inside."""

    def __init__(self, n, degree):
        super().__init__()
        self.n, self.degree = n, degree
        self.coefficients = nn.Parameter(torch.randn((n + 1) * n, degree, 2, generator=GENERATOR))

    def forward(self, t, y):
        harmonics = torch.linspace(0, self.degree, self.degree)
        parts = []
        for part in (torch.cos(t * harmonics), torch.sin(t * harmonics)):
            diagonal = torch.eye(self.degree)
            diagonal[range(self.degree), range(self.degree)] = part
            parts.append(diagonal)
        basis = torch.cat(parts, 1)
        coefficients = torch.cat([self.coefficients[..., 0], self.coefficients[..., 1]], -1)
        weights = (coefficients[:, :, None].squeeze(-1) @ basis.T).sum(-1)
        matrix, shift = weights[: self.n**2].view(self.n, self.n), weights[self.n**2 :]
        return F.linear(y, matrix, shift)


def test_galerkin_layer():
    layer = Galerkin(6, 3).requires_grad_(False)
    chain = assert_traced(lambda t, y, u: torch.tanh(layer(t, y)), state(dtype=torch.float32), rtol=1e-4)
    assert chain.time_stages


@pytest.mark.parametrize("name", ["state", "input", "value"])
def test_complex_numbers_outside_are_told(name):
    y, u = (state(3, 6), state(3, 2))
    y, u = (y + 0j if name == "state" else y), (u + 0j if name == "input" else u)
    with pytest.raises(SignatureError, match="real and imaginary parts as components"):
        trace(lambda t, y, u: y * 1j, y, u)


def test_lower_precision_inside_is_told_with_the_way_out():
    with pytest.raises(
        UnsupportedOperationError, match=r"returned torch.float32: make tensors inside it with dtype=y.d"
    ):
        trace(lambda t, y, u: written(y, torch.zeros(len(y), 6)), state())


def test_operations_on_constants_are_no_concern():
    """Whatever they are: what they give is evaluated once."""
    assert_traced(
        lambda t, y, u: y @ torch.linalg.inv(W[0]).softmax(1) * torch.linalg.svd(W[0])[1].sort()[0], stages=[]
    )


# -- complex numbers -------------------------------------------------------------------------------------------------


def pairs(y):
    return torch.view_as_complex(y.reshape(-1, 3, 2))


def unpaired(z):
    return torch.view_as_real(z).flatten(1)


AFFINE_COMPLEX = {
    "fft": lambda y: torch.fft.fft(y).real + torch.fft.ifft(y).imag,
    "rfft": lambda y: torch.fft.irfft(torch.fft.rfft(y) * COMPLEX[0, :4], n=6),
    "fft in two dimensions": lambda y: torch.fft.ifft2(torch.fft.fft2(y.view(-1, 2, 3)) * COMPLEX[:2, :3]).real.flatten(
        1
    ),
    "derivative": lambda y: torch.fft.ifft(1j * torch.fft.fftfreq(6, dtype=torch.float64) * torch.fft.fft(y)).real,
    "Fourier layer": lambda y: torch.fft.irfft(torch.einsum("bi,io->bo", torch.fft.rfft(y), COMPLEX[:4, :4]), n=6),
    "conjugate": lambda y: unpaired(pairs(y).conj() * (1 + 2j) - 1j),
    "matrix": lambda y: unpaired(torch.addmm(COMPLEX[0, :3], pairs(y), COMPLEX[:3, :3])),
    "rotation": lambda y: unpaired(pairs(y) * torch.exp(1j * W[0, 0, :3])),
    "slices": lambda y: (
        unpaired(torch.cat([pairs(y)[:, 1:], 2 - pairs(y)[:, :1]], 1).flip(1)) + pairs(y).sum(1).real[:, None]
    ),
    "quotient": lambda y: unpaired(pairs(y) / COMPLEX[0, :3] - pairs(y)),
    "selected": lambda y: unpaired(torch.where(W[0, 0, :3] > 0, pairs(y), -1j * pairs(y))),
    "to complex": lambda y: (y.to(torch.complex128) * COMPLEX[0]).real,
}
FUNCTIONS_OF_COMPLEX = {
    "product": lambda z: z * z.flip(1),
    "square": lambda z: z**2 - z.square(),
    "powers": lambda z: z**-2 + z**0.5 + (0.3 + 1j) ** z,
    "reciprocal": lambda z: 1 / z + z.reciprocal(),
    "quotient": lambda z: z.flip(1) / z,
    "modulus": lambda z: z * z.abs(),
    "angle": lambda z: z * z.angle(),
    "sign": torch.sgn,
    "conjugate": lambda z: z * z.conj(),
    "polar": lambda z: torch.polar(z.real.exp(), z.imag),
    "parts": lambda z: torch.complex(z.real.tanh(), z.imag * z.real),
    "matrices": lambda z: (
        (z[:, :, None] @ z[:, None, :]) @ COMPLEX[0, :3] + (z[:, None] @ COMPLEX[:3, :3] @ z[:, :, None])[:, 0]
    ),
    "matrix of tanh": lambda z: z.real.tanh().to(z.dtype) @ COMPLEX[:3, :3],
    "comparison": lambda z: torch.where(z == z.flip(1), z, -z),
    "real times imaginary unit": lambda z: z.real.sin() * 1j + 2 - z,
    **{
        name: lambda z, name=name: getattr(torch, name)(z)
        for name in "exp log sqrt rsqrt sin cos tan sinh cosh tanh sigmoid".split()
    },
}


@pytest.mark.parametrize("name", AFFINE_COMPLEX)
def test_affine_with_complex_numbers_inside(name):
    call = AFFINE_COMPLEX[name]
    assert_traced(lambda t, y, u: call(y), stages=[])


@pytest.mark.parametrize("name", FUNCTIONS_OF_COMPLEX)
def test_function_of_complex_numbers(name):
    call = FUNCTIONS_OF_COMPLEX[name]
    chain = assert_traced(lambda t, y, u: unpaired(call(pairs(y))), rtol=1e-11)
    assert chain.stages


def test_transposed_products_with_complex_numbers_inside(monkeypatch):
    """Large maps stay opaque; their rows are vector–Jacobian products."""
    monkeypatch.setattr("torchmor.adapters.tracing.classifier.DENSE_ENTRIES", 0)
    call = AFFINE_COMPLEX["Fourier layer"]
    y = state()
    chain = trace(lambda t, y, u: call(y), y)
    restricted, dofs = chain.restrict(np.array([4, 1]))
    np.testing.assert_allclose(restricted(y.numpy().T[dofs]), call(y).numpy().T[[4, 1]], rtol=1e-12, atol=1e-13)


def test_nonlinear_function_of_complex_numbers_that_is_not_written_out():
    with pytest.raises(UnsupportedOperationError, match=r"'acos' at .*write it with their real and imaginary parts"):
        trace(lambda t, y, u: torch.acos(pairs(y)).abs().repeat(1, 2), state())


# -- affine and bilinear, whatever it is called ----------------------------------------------------------------------

SPARSE = torch.eye(6, dtype=torch.float64).roll(1, 0).to_sparse()
BILINEAR = nn.Bilinear(6, 6, 6).double().requires_grad_(False)

AFFINE_CALLS = {
    "sparse": lambda y: torch.sparse.mm(SPARSE, y.T).T + (SPARSE @ y.T).T,
    "diag_embed": lambda y: (torch.diag_embed(y) @ W[0]).sum(1),
    "cross with constants": lambda y: torch.linalg.cross(y.view(-1, 2, 3), W[0, :1, :3].expand(1, 1, 3)).flatten(1),
    "embedding": lambda y: F.embedding(ORDER.expand(len(y), 6), W[0])[:, :, 0] + y,
    "solve": lambda y: torch.linalg.solve(W[0], y.T).T,
    "triangular": lambda y: torch.linalg.solve_triangular(W[0].tril(), y.T, upper=False).T,
    "scatter": lambda y: (
        y.scatter(1, ORDER.expand(len(y), 6)[:, :2], y[:, 2:4]) + y.scatter(1, ORDER.expand(len(y), 6)[:, :1], 2.0)
    ),
    "scatter_reduce": lambda y: (
        torch.zeros(len(y), 6).double().scatter_reduce(1, ORDER.expand(len(y), 6) // 2, y, "sum")
    ),
    "masked_scatter": lambda y: y - y.masked_fill(W[0, 0] > 0, 2.0),
    "grid_sample": lambda y: F.grid_sample(
        y.view(-1, 1, 2, 3), W[:2, :3, :2].expand(len(y), 2, 3, 2), align_corners=False
    ).flatten(1),
    "trace": lambda y: y * 2 + y.view(-1, 2, 3)[:, :, :2].diagonal(dim1=1, dim2=2).sum(1, keepdim=True),
    "differences": lambda y: F.pad(torch.diff(y), (0, 1)) + torch.gradient(y, dim=1)[0] + torch.trapezoid(y)[:, None],
    "kronecker": lambda y: torch.kron(y.contiguous(), W[0, :1, :2])[:, :6],
    "scaled": lambda y: torch.deg2rad(y) + torch.rad2deg(y) + torch.positive(y),
    "softmax of one": lambda y: y + torch.softmax(y[:, :, None], 2)[:, :, 0],
}
BILINEAR_CALLS = {
    "nn.Bilinear": lambda y: BILINEAR(y, y.tanh()),
    "F.bilinear": lambda y: F.bilinear(y, y.flip(1), W, W[0, 0]),
    "einsum": lambda y: torch.einsum("bi,oij,bj->bo", y, W, y.sin()),
    "cross": lambda y: torch.linalg.cross(y.view(-1, 2, 3), y.view(-1, 2, 3).flip(1)).flatten(1),
    "cross, as of old": lambda y: torch.cross(y.view(-1, 2, 3), y.view(-1, 2, 3).tanh().flip(2), dim=2).flatten(1),
    "dot": lambda y: torch.stack([a * torch.dot(a, a.sin()) for a in y]),
    "outer": lambda y: torch.einsum("bi,bj->bij", y[:, :2], y[:, 3:]).flatten(1),
    "convolution of the state with itself": lambda y: torch.stack(
        [F.conv1d(a[None, None], a[None, None, :3].cos(), padding=1)[0, 0] for a in y]
    ),
    "weights of the state": lambda y: F.conv1d(y[None], y[:, None, :3], padding=1, groups=len(y))[0],
    "scaled product of matrices": lambda y: torch.baddbmm(
        y[:, :, None], y[:, :, None], y[:, :1, None], beta=0.5, alpha=3
    )[:, :, 0],
    "squares by Fourier transforms": lambda y: torch.fft.ifft(torch.fft.fft(y) * torch.fft.fft(y.tanh())).real,
    "kronecker": lambda y: torch.stack([torch.kron(a[:2], a[2:5]) for a in y]),
}


@pytest.mark.parametrize("name", AFFINE_CALLS)
def test_affine_operation_of_no_table(name):
    call = AFFINE_CALLS[name]
    assert_traced(lambda t, y, u: call(y), stages=[])


@pytest.mark.parametrize("name", BILINEAR_CALLS)
def test_bilinear_operation(name):
    """Products of two components each, exactly; nothing else becomes a stage."""
    call = BILINEAR_CALLS[name]
    chain = assert_traced(lambda t, y, u: call(y))
    texts = {stage.expression.text(["a", "b", "c", "d"][: stage.expression.arity]) for stage in chain.stages}
    assert any("*" in text for text in texts)


def test_bilinear_operation_that_is_too_large_to_tabulate(monkeypatch):
    monkeypatch.setattr("torchmor.adapters.tracing.linearity.TABULATED_ENTRIES", 10)
    call = BILINEAR_CALLS["convolution of the state with itself"]
    with pytest.raises(UnsupportedOperationError, match=r"'convolution' .*multiplies 6 components with 3, too many"):
        trace(lambda t, y, u: call(y), state())


# -- componentwise functions -----------------------------------------------------------------------------------------

COMPONENTWISE_CALLS = {
    "round": lambda y: torch.round(y * 3) + torch.round(y, decimals=1),
    "floor": lambda y: torch.floor(y) - torch.ceil(y * 2) + torch.trunc(y * 3) + torch.frac(y),
    "remainder": lambda y: (
        y % 0.7 + torch.remainder(y, y.flip(1)) + torch.fmod(y, 0.7) + torch.fmod(2.0 * y, y.flip(1))
    ),
    "rounding division": lambda y: (
        y // 0.1 + torch.div(y, 0.3, rounding_mode="floor") + torch.div(y, y.flip(1), rounding_mode="trunc")
    ),
    "exact division": lambda y: (y * 0 + 1) // 0.1 + (y * 0 + 1) % 0.1,
    "integers": lambda y: y.long() + (3 * y).int() // 2 + (y.long() > 0).long(),
    "truth": lambda y: (
        y.bool() * y + (y > 0).double() + (y > 1).double() + ((y > 0) | (y < -1)).float() - (y > 0.5).long()
    ),
    "sums of truth": lambda y: ((y > 0).double() + (y > 0.5).double()).exp() + (y > 0).sum(1, keepdim=True),
    "truth, rearranged": lambda y: torch.where((y > 0)[:, ORDER], y, -y) * ~(y > 1)[:, ORDER],
    "any": lambda y: y * (y > 1.5).any(1, keepdim=True) + (y < 3).all(1, keepdim=True),
    "signs": lambda y: (
        torch.sgn(y) + torch.copysign(y, y.flip(1)) + torch.signbit(y).double() + torch.heaviside(y, y.new_ones(()))
    ),
    "buckets": lambda y: (
        y * torch.bucketize(y, torch.tensor([-1.0, 0, 0.5])) + torch.bucketize(y, W[0, 0].sort()[0], right=True)
    ),
    "losses": lambda y: F.huber_loss(y, 0 * y, reduction="none") + F.mse_loss(y, y.flip(1), reduction="none"),
    "not numbers": lambda y: torch.nan_to_num(y.log()) + torch.isnan(y.log()) * y + y.log().isinf(),
    "losing": lambda y: (
        torch.logit(y.sigmoid()) + torch.sinc(y) + torch.xlogy(y, y.exp()) + torch.float_power(y, 2).double()
    ),
    "derivative": lambda y: torch.func.grad(lambda z: (torch.sigmoid(z) * torch.tanh(z)).sum())(y),
}


def test_bits_of_integers_are_refused():
    with pytest.raises(UnsupportedOperationError, match=r"'bitwise_and' at .*the bits of integers"):
        trace(lambda t, y, u: y * (y.long() & 1), state())


@pytest.mark.parametrize("name", COMPONENTWISE_CALLS)
def test_componentwise_function(name):
    call = COMPONENTWISE_CALLS[name]
    y = state()
    chain = assert_traced(lambda t, y, u: call(y), y)
    with torch.no_grad():
        value = chain_to_module(chain)(y, None, torch.tensor(0.3).double())
    np.testing.assert_allclose(value.numpy(), call(y).numpy(), rtol=1e-12, atol=1e-13)


# -- what does not depend on the state -------------------------------------------------------------------------------

COUPLED = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log-softmax": lambda x: torch.log_softmax(x, -1),
    "logsumexp": lambda x: x - torch.logsumexp(x, -1, keepdim=True),
    "norm": lambda x: x / x.norm(3, -1, keepdim=True) + x.norm(float("inf"), -1, keepdim=True),
    "other norms": lambda x: x * torch.linalg.vector_norm(x, 0) + torch.linalg.vector_norm(x, -float("inf")),
    "largest": lambda x: (
        x * x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True) + x.max(-1).values[..., None] + x.min()
    ),
    "sort": lambda x: x.sort(-1).values + x.sort(-1, descending=True).values.cumsum(-1),
    "largest few": lambda x: (
        x.topk(2, -1).values.sum(-1, keepdim=True) * x + x.topk(2, -1, largest=False).values[..., :1]
    ),
    "median": lambda x: x - x.median(-1, keepdim=True).values + x.kthvalue(2, -1).values[..., None],
    "product": lambda x: x - x.prod(-1, keepdim=True) + x.cumprod(-1),
    "largest so far": lambda x: x.cummax(-1).values - x.cummin(-1).values,
    "layers": lambda x: F.layer_norm(x, (5,)) + F.softmin(x, -1),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_function_of_the_time_alone(name):
    call, weights = COUPLED[name], W[0, 0, :5] + 0.1 * W[1, 1, :5]
    chain = assert_traced(lambda t, y, u: y.tanh() + F.pad(call(torch.cos(t * weights) + weights), (0, 1)))
    assert {stage.name for stage in chain.stages if "y" not in stage.argument.sources} >= chain.time_stages
    assert len(chain.time_stages) >= len(chain.stages) - 1


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_function_of_the_input_alone(name):
    call = COUPLED[name]
    if name == "other norms":  # of the whole batch
        return
    if name == "largest":
        call = lambda x: x * x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True) + x.max(-1).values[..., None]  # noqa: E731
    assert_traced(lambda t, y, u: y.tanh() * F.pad(call(u), (0, 1)) + y, state(), state(3, 5))


def test_indices_of_sorted_inputs_are_refused():
    with pytest.raises(UnsupportedOperationError, match=r"'sort' .*chooses components by their values"):
        trace(lambda t, y, u: y * u.sort(1).indices, state(), state())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 12])
def test_sorting_of_any_size(size):
    u = state(3, size)
    assert_traced(lambda t, y, u: F.pad(u.sort(1).values, (0, 12 - size)) + y, state(3, 12), u)


# -- none is unknown -------------------------------------------------------------------------------------------------


def operations(tag):
    names = {name.removeprefix("aten::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    packets = [getattr(torch.ops.aten, name, None) for name in sorted(names) if name.isidentifier()]
    found = [getattr(p, o) for p in packets if hasattr(p, "overloads") for o in p.overloads()]
    return [o for o in found if tag in o.tags and not o._schema.is_mutable and "out" not in o._overloadname.split("_")]


POINTWISE = {operation_name(operation): operation for operation in operations(torch.Tag.pointwise)}
del POINTWISE["equal"]  # whether two tensors are equal, one truth value
INTEGER = set(
    "gcd lcm __lshift__ __rshift__ bitwise_left_shift bitwise_right_shift".split()
)  # of integers only, which no state is


def called(operation, y, truth=False):
    """Call an operation with states that are moved, or with comparisons of them; numbers are 0.7 and 2."""
    tensors = iter(0.9**i * y.roll(i, 1) for i in range(9))
    args, kwargs = [], {}
    for argument in operation._schema.arguments:
        kind = str(argument.type)
        if kind == "Tensor":
            x = next(tensors)
            value = x > 0.5 if truth else x
        elif argument.has_default_value() and "cl" not in operation_name(operation):
            continue
        elif "number" in kind:
            value = True if truth else 0.7
        elif "Optional" in kind:
            value = next(tensors) if "Tensor" in kind else None
        else:
            value = {"float": 0.7, "int": 2, "bool": False}[kind]
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    value = operation(*args, **kwargs)
    return (value if isinstance(value, torch.Tensor) else value[0]).to(y.dtype)


#: Componentwise functions that chains do not know, and which no operations that they know make up.
UNKNOWN_FUNCTIONS = set(
    "digamma erfinv frexp i0 igamma igammac lgamma mvlgamma nextafter polygamma special_airy_ai special_erfcx "
    "special_i0e special_i1 special_i1e special_log_ndtr special_ndtri special_zeta".split()
)
WRITTEN = {operation_name(operation) for operation in REWRITTEN}  # see test_classifier.py
FAMILIES = ("bessel", "polynomial")
EXACT = sorted(
    name
    for name in POINTWISE
    if name not in KNOWN | INTEGER | UNKNOWN_FUNCTIONS | WRITTEN and not any(family in name for family in FAMILIES)
)


@pytest.mark.parametrize("names", [EXACT[i : i + 6] for i in range(0, len(EXACT), 6)], ids=" ".join)
def test_every_pointwise_operation_is_exact(names):
    def f(t, y, u):
        values = [called(POINTWISE[name], y, truth=name == "__xor__") for name in names]
        return sum((i + 1) * value for i, value in enumerate(values)) + 0 * y

    y = 0.2 + 0.6 * torch.rand(3, 6, generator=GENERATOR, dtype=torch.float64)
    np.testing.assert_allclose(trace(f, y)(y.numpy().T), f(0.0, y, None).numpy().T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "name", ["lgamma", "frexp", "special_zeta", "special_bessel_j0", "special_legendre_polynomial_p"]
)
def test_pointwise_operation_of_a_function_that_chains_do_not_know(name):
    with pytest.raises(
        UnsupportedOperationError, match=f"'{name}' at .*none of the functions that reduced layers know"
    ):
        trace(lambda t, y, u: called(POINTWISE[name], y), 1 + state().abs())


def image(y):
    return y[:, :4].reshape(-1, 1, 2, 2)


CORE_CALLS = {
    "_adaptive_avg_pool2d_backward": lambda y: torch.ops.aten._adaptive_avg_pool2d_backward(
        image(y), y.new_ones(len(y), 1, 4, 4)
    ),
    "_cdist_forward": lambda y: torch.cdist(y.view(-1, 2, 3), y.view(-1, 2, 3)),
    "_embedding_bag": lambda y: torch.stack(
        [torch.ops.aten._embedding_bag(a.view(3, 2), ORDER // 2, torch.tensor([0, 2, 4]))[0] for a in y]
    ),
    "_fft_c2r": lambda y: torch.fft.irfft(pairs(y), n=4),
    "_fft_r2c": lambda y: torch.fft.rfft(y).real,
    "_native_batch_norm_legit": lambda y: torch.stack([F.instance_norm(a.view(1, 2, 3))[0] for a in y]),
    "_pdist_forward": lambda y: torch.stack([torch.pdist(a.view(3, 2)) for a in y]),
    "adaptive_avg_pool1d": lambda y: F.adaptive_avg_pool1d(y[:, None], 3),
    "any": lambda y: y * (y > 1).any(1, keepdim=True),
    "argmin": lambda y: y * y.argmin(1, keepdim=True),
    "as_strided": lambda y: y.contiguous().as_strided((len(y), 3), (6, 2), 1),
    "avg_pool1d": lambda y: F.avg_pool1d(y[:, None], 2),
    "avg_pool2d_backward": lambda y: torch.ops.aten.avg_pool2d_backward(
        image(y)[:, :, :1, :1], image(y.new_ones(y.shape)), [2, 2], [2, 2], [0, 0], False, True, None
    ),
    "convolution_backward": lambda y: torch.ops.aten.convolution_backward(
        y[:, None],
        torch.ones_like(y)[:, None],
        W[0, :1, None, :1],
        [0],
        [1],
        [0],
        [1],
        False,
        [0],
        1,
        [True, False, False],
    )[0],
    "copy": lambda y: torch.ops.aten.copy(torch.ones_like(y), y),
    "embedding": lambda y: torch.stack([F.embedding(ORDER, a[:, None]) for a in y]),
    "embedding_dense_backward": lambda y: torch.stack(
        [torch.ops.aten.embedding_dense_backward(a[:, None], ORDER // 2, 6, -1, False) for a in y]
    ),
    "fill": lambda y: y + torch.ops.aten.fill(y, 2.0),
    "grid_sampler_2d": lambda y: F.grid_sample(image(y), W[:2, :2, :2].expand(len(y), 2, 2, 2), align_corners=True),
    "masked_scatter": lambda y: torch.stack([torch.ops.aten.masked_scatter(a, W[0, 0] > 0, 2 * a) for a in y]),
    "native_group_norm_backward": lambda y: torch.func.grad(lambda x: (F.group_norm(x, 2) ** 3).sum())(y),
    "native_layer_norm_backward": lambda y: torch.func.grad(lambda x: (F.layer_norm(x, (6,)) ** 3).sum())(y),
    "max_pool2d_with_indices_backward": lambda y: torch.func.grad(lambda x: F.max_pool2d(x, 2).sum())(image(y)),
    "scatter": lambda y: y.scatter(1, ORDER.expand(len(y), 6)[:, :2], y[:, 2:4]),
    "scatter_reduce": lambda y: y.scatter_reduce(1, ORDER.expand(len(y), 6), y, "amax"),
}
CORE_REFUSED = {
    "_cdist_forward": "distances couples",
    "_pdist_forward": "distances couples",
    "argmin": "chooses components",
    "max_pool2d_with_indices_backward": "maximum over several",
    "scatter_reduce": "couples components with each other nonlinearly",
}
#: What gives no tensor of the state's values, is random, or reads values as Python numbers; see test_classifier.py.
NO_FUNCTION_OF_THE_STATE = set(
    "_local_scalar_dense arange empty empty_strided full scalar_tensor rand randn randperm native_dropout "
    "sym_is_contiguous sym_numel sym_storage_offset sym_stride".split()
)


def test_every_core_operation_is_known():
    core = {operation_name(operation) for operation in operations(torch.Tag.core)}
    assert core - KNOWN - set(POINTWISE) - WRITTEN - NO_FUNCTION_OF_THE_STATE - set(CORE_CALLS) == set()


@pytest.mark.parametrize("name", CORE_CALLS)
def test_core_operation_is_exact_or_refused_with_its_reason(name):
    def f(t, y, u):
        value = CORE_CALLS[name](y).flatten(1)
        return F.pad(value, (0, max(0, 6 - value.shape[1])))[:, :6]

    if name not in CORE_REFUSED:
        assert_traced(f)
        return
    with pytest.raises(UnsupportedOperationError, match=f"which cannot be reduced: .*{CORE_REFUSED[name]}"):
        trace(f, state())


def test_no_operation_is_in_two_tables():
    assert not set(REFUSED) & (KNOWN - set(REFUSED)) and not SHAPE_ONLY & set(REFUSED)
