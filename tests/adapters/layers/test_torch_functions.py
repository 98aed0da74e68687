import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchmor.adapters.layers.torch_functions import TORCH_FUNCTIONS, exact_functions
from torchmor.engine.expressions import PARAMETERS, PRIMITIVES, Expression, apply_primitive
from torchmor.engine.functions import derivatives, evaluate

VARIANTS = {
    "leaky_relu": [{"negative_slope": 0.3}, {"negative_slope": -0.5}],
    "elu": [{"alpha": 0.7, "scale": 1.3, "input_scale": 0.6}],
    "celu": [{"alpha": 0.4}],
    "gelu": [{"approximate": "tanh"}],
    "softplus": [{"beta": 2.5, "threshold": 30.0}],
    "hardtanh": [{"min_val": -0.5, "max_val": 3.0}],
    "softshrink": [{"lambd": 1.0}],
    "hardshrink": [{"lambd": 1.0}],
    "threshold": [{"threshold": 0.5, "value": -2.0}],
    "clamp": [{"min": -0.5}, {"max": 1.0}, {"min": -0.5, "max": 1.0}, {"min": 1.0, "max": -0.5}],
}
CASES = [(name, {}) for name in PRIMITIVES if name != "clamp"] + [(n, p) for n, ps in VARIANTS.items() for p in ps]
every_case = pytest.mark.parametrize(
    ("name", "parameters"), CASES, ids=[" ".join([n, *(f"{k}={v}" for k, v in p.items())]) for n, p in CASES]
)

# Kinks, their neighbourhoods, the far ends, and ordinary numbers.
KINKS = np.array([0.0, 0.5, 1.0, 3.0, 6.0, 20.0])
POINTS = np.concatenate([s * (KINKS + d) for s in (1, -1) for d in (0, 1e-8, -1e-8)] + [[50.0, -50, 700, -700]])
POINTS = np.concatenate([POINTS, np.random.default_rng(0).normal(size=300) * 3])
OF_TRUTH = {
    "logical_and": 2,
    "logical_or": 2,
    "logical_not": 1,
    "where": 1,
}  # name -> leading operands that are

COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}


def arguments(name):
    rng = np.random.default_rng(1)
    a = [POINTS, *(rng.permutation(POINTS) for _ in range(PRIMITIVES[name] - 1))]
    return [x > 0 if i < OF_TRUTH.get(name, 0) else x for i, x in enumerate(a)]


def tensors(arrays):
    return [torch.tensor(a, requires_grad=a.dtype != bool) for a in arrays]


@every_case
def test_functions_with_numbers_as_tensors(name, parameters):
    """Law: ``exact_functions`` have the same values; constants among operands, and bounds, reach torch as tensors."""
    made = []

    def constant(number):
        made.append(number)
        return torch.tensor(number, dtype=torch.float64)

    x, *others = arguments(name)
    expected = TORCH_FUNCTIONS[name](torch.from_numpy(x), *(torch.from_numpy(o) for o in others), **parameters)
    value = exact_functions(constant)[name](torch.from_numpy(x), *map(torch.from_numpy, others), **parameters)
    torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
    if parameters:
        assert made == (list(parameters.values()) if name in ("clamp", "hardtanh") else [])
    if PRIMITIVES[name] == 2 and name not in OF_TRUTH:
        made.clear()
        for operands in ((torch.from_numpy(x), 0.3), (0.3, torch.from_numpy(x))):
            expected = TORCH_FUNCTIONS[name](*operands)
            value = exact_functions(constant)[name](*operands)
            torch.testing.assert_close(value, expected, rtol=1e-15, atol=1e-300, equal_nan=True)
        assert made == [0.3, 0.3]


def gradients(value, inputs):
    """Derivatives by each input, zero for truth values and what the value does not depend on."""
    needed = [x for x in inputs if x.requires_grad]
    computed = (
        iter(torch.autograd.grad(value.sum(), needed, materialize_grads=True))
        if value.requires_grad
        else iter(torch.zeros_like(x) for x in needed)
    )
    return [next(computed).numpy() if x.requires_grad else np.zeros(x.shape) for x in inputs]


def test_table_covers_the_primitives():
    assert set(TORCH_FUNCTIONS) == set(PRIMITIVES)
    assert {n: {k for p in ps for k in p} for n, ps in VARIANTS.items()} == {n: set(p) for n, p in PARAMETERS.items()}


@every_case
def test_values_agree(name, parameters):
    a = arguments(name)
    expression = Expression.of(name, **parameters)
    ours, theirs = evaluate(expression, a), expression.evaluate(TORCH_FUNCTIONS, tensors(a)).detach().numpy()
    assert ours.dtype == theirs.dtype
    # torch's 1 + erf and x - tanh(x) cancel; the tail of erfc at x is as sensitive as 2 x²
    cancels = {"gelu": abs(POINTS), "tanhshrink": 1.0, "erfc": 1.0}.get(name, 0.0)
    with np.errstate(invalid="ignore"):
        wrong = ~(abs(ours ^ theirs if ours.dtype == bool else ours - theirs) <= 1e-14 * (abs(theirs) + cancels))
    wrong &= ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    assert not wrong.any(), [x[wrong] for x in (*a, ours, theirs)]


@every_case
def test_derivatives_agree_also_at_kinks(name, parameters):
    a = arguments(name)
    expression = Expression.of(name, **parameters)
    inputs = tensors(a)
    value = expression.evaluate(TORCH_FUNCTIONS, inputs)
    # torch takes 1 / 6 and 1 / alpha of these two in single precision, and its 1 - x² cancels at ±1
    tolerance = 1e-7 if name in ("hardsigmoid", "celu") else 1e-12
    regular = np.isfinite(value.detach().numpy())
    if name in ("asin", "acos", "atanh", "acosh"):
        regular &= abs(abs(a[0]) - 1) > 1e-3
    for ours, theirs in zip(derivatives(expression, a), gradients(value, inputs), strict=True):
        assert regular.sum() > 50
        infinite = regular & np.isinf(theirs)
        np.testing.assert_array_equal(ours[infinite], theirs[infinite])
        finite = regular & ~infinite & ~np.isnan(theirs)
        ours, theirs = ours[finite], theirs[finite]
        assert np.all(abs(ours - theirs) <= tolerance * (1 + abs(theirs)))


@pytest.mark.parametrize("name", [n for n, arity in PRIMITIVES.items() if arity > 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_as_operands(name, dtype):
    x = torch.tensor([-1.0, 0.25, 0.5, 2.0], dtype=dtype)
    first = [x > 0] if name == "where" else []
    full = torch.full_like(x, 0.1)
    for a, b in [(x, 0.1), (0.1, x)]:
        value = TORCH_FUNCTIONS[name](*first, a, b)
        expected = TORCH_FUNCTIONS[name](*first, *(full if o is not x else x for o in (a, b)))
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0, equal_nan=True)


# --- torch.nn

MODULES = [
    (nn.CELU(0.7), Expression.of("celu", alpha=0.7)),
    (nn.ELU(0.7), Expression.of("elu", alpha=0.7)),
    (nn.GELU(), Expression.of("gelu")),
    (nn.GELU("tanh"), Expression.of("gelu", approximate="tanh")),
    (nn.Hardshrink(), Expression.of("hardshrink")),
    (nn.Hardsigmoid(), Expression.of("hardsigmoid")),
    (nn.Hardswish(), Expression.of("hardswish")),
    (nn.Hardtanh(-2, 0.5), Expression.of("hardtanh", min_val=-2, max_val=0.5)),
    (nn.LeakyReLU(), Expression.of("leaky_relu")),
    (nn.LogSigmoid(), Expression.of("log_sigmoid")),
    (nn.Mish(), Expression.of("mish")),
    (nn.PReLU(), apply_primitive("prelu", [Expression.argument(0), 0.25])),
    (nn.RReLU(0.1, 0.3).eval(), Expression.of("leaky_relu", negative_slope=0.2)),
    (nn.ReLU(), Expression.of("relu")),
    (nn.ReLU6(), Expression.of("hardtanh", min_val=0, max_val=6)),
    (nn.SELU(), Expression.of("selu")),
    (nn.SiLU(), Expression.of("silu")),
    (nn.Sigmoid(), Expression.of("sigmoid")),
    (nn.Softplus(2.0), Expression.of("softplus", beta=2)),
    (nn.Softshrink(), Expression.of("softshrink")),
    (nn.Softsign(), Expression.of("softsign")),
    (nn.Tanh(), Expression.of("tanh")),
    (nn.Tanhshrink(), Expression.of("tanhshrink")),
    (nn.Threshold(0.1, 20), Expression.of("threshold", threshold=0.1, value=20)),
    (nn.Identity(), Expression.argument(0)),
]
NOT_COMPONENTWISE = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}


@pytest.mark.parametrize(("module", "expression"), MODULES, ids=[str(m) for m, _ in MODULES])
def test_modules_of_torch_are_expressions(module, expression):
    x = torch.tensor(POINTS)
    expected = module.double()(x).detach()
    torch.testing.assert_close(expression.evaluate(TORCH_FUNCTIONS, [x]), expected, rtol=1e-14, atol=0)
    np.testing.assert_allclose(evaluate(expression, [POINTS]), expected.numpy(), rtol=1e-14, atol=1e-13)


def test_no_module_of_torch_is_forgotten():
    assert {type(m).__name__ for m, _ in MODULES} - {"Identity"} == set(
        nn.modules.activation.__all__
    ) - NOT_COMPONENTWISE


def test_a_gated_linear_unit_is_an_expression_of_two_arguments():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64)
    gate = apply_primitive("mul", [Expression.argument(0, 2), Expression.of("sigmoid").with_arguments([1], 2)])
    torch.testing.assert_close(gate.evaluate(TORCH_FUNCTIONS, [a, b]), nn.GLU()(torch.cat([a, b], 1)))


# --- compositions

# Each of these maps bounded numbers to bounded numbers with bounded derivatives, so errors do not grow.
TAME = [
    "tanh",
    "sin",
    "sigmoid",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "erf",
    "atan",
    "softsign",
    "elu",
    "asinh",
    "neg",
]
TAME += [
    "relu",
    "leaky_relu",
    "hardswish",
    "softshrink",
    "abs",
    "add",
    "sub",
    "mul",
    "maximum",
    "logaddexp",
    "where",
]


@st.composite
def expressions(draw):
    """An expression of two arguments; products and branches are squashed."""
    known = [Expression.argument(i, 2) for i in range(2)]
    for name in draw(st.lists(st.sampled_from(TAME), min_size=1, max_size=8)):
        number = st.sampled_from(known)
        operands = [draw(number) for _ in range(PRIMITIVES[name])]
        if name == "where":
            operands[0] = apply_primitive("gt", [operands[0], 0.3])
        elif len(operands) == 2:
            operands[1] = draw(st.sampled_from([*known, 0.3, -1.7]))
        parameters = draw(st.sampled_from([{}, *VARIANTS.get(name, [])]))
        expression = apply_primitive(name, operands, parameters)
        known.append(apply_primitive("atan", [expression]) if name in ("mul", "add", "sub") else expression)
    return known[-1]


@given(expression=expressions())
def test_compositions_agree(expression):
    a = list(np.random.default_rng(0).normal(size=(2, 30)) * 2)
    inputs = tensors(a)
    value = expression.evaluate(TORCH_FUNCTIONS, inputs)
    np.testing.assert_allclose(evaluate(expression, a), value.detach().numpy(), rtol=0, atol=1e-13)
    for ours, theirs in zip(derivatives(expression, a), gradients(value, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


# --- torch's own machinery


class Everything(nn.Module):
    """All primitives of floating point values, those of two operands also with a number."""

    def __init__(self):
        super().__init__()
        a, b = Expression.argument(0, 2), Expression.argument(1, 2)
        self.expressions = [
            apply_primitive(name, operands, parameters)
            for name, parameters in CASES
            if name not in OF_TRUTH
            for operands in ([[a]] if PRIMITIVES[name] == 1 else [[a, b], [a, 0.5], [0.5, b]])
        ]
        self.expressions.append(
            apply_primitive("where", [apply_primitive("logical_not", [apply_primitive("gt", [a, b])]), a, 0.5])
        )

    def forward(self, a, b):
        return torch.stack([e.evaluate(TORCH_FUNCTIONS, [a, b]).to(a.dtype) for e in self.expressions])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow
def test_compiles_and_exports_without_breaking_the_graph(dtype):
    network, example = Everything(), tuple(2 * torch.randn(2, 4, 3, dtype=dtype))
    expected = network(*example)
    compiled = torch.compile(network, backend="eager", fullgraph=True)(*example)
    torch.testing.assert_close(compiled, expected, equal_nan=True)
    exported = torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim("batch")},) * 2)
    larger = tuple(2 * torch.randn(2, 7, 3, dtype=dtype))
    torch.testing.assert_close(exported.module()(*larger), network(*larger), equal_nan=True)


def test_batches_with_vmap():
    a, b = 2 * torch.randn(2, 4, 3, dtype=torch.float64)
    network = Everything()
    torch.testing.assert_close(torch.vmap(network, out_dims=1)(a, b), network(a, b), equal_nan=True)


@pytest.mark.parametrize("name", [n for n in PRIMITIVES if n not in OF_TRUTH and n != "clamp"])
def test_dtype_of_the_operands_is_kept(name):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.rand(3, dtype=dtype)
        value = TORCH_FUNCTIONS[name](*[x] * PRIMITIVES[name])
        assert value.dtype == (torch.bool if name in COMPARISONS else dtype)


@pytest.mark.gpu
@every_case
def test_values_agree_on_the_gpu(name, parameters):
    inputs = [torch.tensor(a, device="cuda") for a in arguments(name)]
    expression = Expression.of(name, **parameters)
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            value = expression.evaluate(TORCH_FUNCTIONS, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    expected = expression.evaluate(TORCH_FUNCTIONS, [x.cpu() for x in inputs])
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-12, atol=1e-14, equal_nan=True)
