import numpy as np
import pytest
from scipy.special import erfc, exprel

from torchmor.engine.expressions import PARAMETERS, PRIMITIVES, Expression, apply_primitive
from torchmor.engine.functions import DERIVATIVES, VALUES, derivatives, evaluate

PIECEWISE_CONSTANT = {
    "number",
    "sign",
    "floor",
    "ceil",
    "trunc",
    "round",
    "gt",
    "ge",
    "lt",
    "le",
    "eq",
    "ne",
    "logical_and",
    "logical_or",
    "logical_not",
}
TRUTH = {"gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not"}

# Parameters other than the defaults.
VARIANTS = {
    "leaky_relu": [{"negative_slope": 0.3}, {"negative_slope": -0.5}],
    "elu": [{"alpha": 0.7, "scale": 1.3, "input_scale": 0.6}],
    "celu": [{"alpha": 0.4}],
    "gelu": [{"approximate": "tanh"}],
    "softplus": [{"beta": 2.5, "threshold": 30.0}, {"beta": 0.5, "threshold": 1e9}],
    "hardtanh": [{"min_val": -0.3, "max_val": 2.0}],
    "softshrink": [{"lambd": 0.2}],
    "hardshrink": [{"lambd": 0.2}],
    "threshold": [{"threshold": 0.1, "value": -2.0}],
    "clamp": [{"min": -0.3}, {"max": 0.6}, {"min": -0.3, "max": 0.6}],
}
CASES = [(name, {}) for name in PRIMITIVES if name != "clamp"] + [(n, p) for n, ps in VARIANTS.items() for p in ps]
ids = pytest.mark.parametrize(
    ("name", "parameters"), CASES, ids=[" ".join([n, *(f"{k}={v}" for k, v in p.items())]) for n, p in CASES]
)

# Where the functions with singularities are tried: (low, high).
DOMAINS = {
    **dict.fromkeys(("reciprocal", "div", "remainder", "fmod", "atan2", "hypot", "pow"), (0.6, 4.0)),
    **dict.fromkeys(("sqrt", "rsqrt", "log", "log2", "log10"), (0.6, 9.0)),
    **dict.fromkeys(("asin", "acos", "atanh"), (-0.8, 0.8)),
    "tan": (-1.1, 1.1),
    "log1p": (-0.4, 9.0),
    "acosh": (1.6, 9.0),
}

# Where functions jump: at whole values of these.
JUMPS = {
    **dict.fromkeys(("floor", "ceil", "trunc", "round"), lambda x: 2 * x),
    **dict.fromkeys(("remainder", "fmod"), np.divide),
}


def operands(name, count=200):
    low, high = DOMAINS.get(name, (-4.0, 4.0))
    values = np.random.default_rng(0).uniform(low, high, size=(PRIMITIVES[name], count))
    return [values[0] > 0, *values[1:]] if name == "where" else list(values)


def test_tables_cover_the_primitives():
    assert set(VALUES) == set(DERIVATIVES) == set(PRIMITIVES)


@ids
def test_operands_and_parameters_are_those_of_the_registry(name, parameters):
    arguments = operands(name)
    assert set(parameters) <= set(PARAMETERS.get(name, ()))
    assert np.shape(VALUES[name](*arguments, **parameters)) == arguments[0].shape
    assert len(DERIVATIVES[name](*arguments, **parameters)) == PRIMITIVES[name]
    for table in (VALUES, DERIVATIVES):
        with pytest.raises(TypeError):
            table[name](*arguments, **parameters, slope=1.0)
        with pytest.raises((TypeError, ValueError)):
            table[name](*arguments[1:], **parameters)


def test_every_parameter_is_tried():
    assert {n: {k for p in ps for k in p} for n, ps in VARIANTS.items()} == {n: set(p) for n, p in PARAMETERS.items()}


@ids
def test_derivatives_against_differences(name, parameters):
    """``φ(a + h e_i) - φ(a - h e_i) == 2 h derivatives(φ, a)[i] + O(h³)``, here of fourth order."""
    expression, a, h = Expression.of(name, **parameters), operands(name), 1e-3
    computed = derivatives(expression, a)
    kinks = [k for ks in ((0, 0.5, 1, 3), parameters.values()) for k in ks if not isinstance(k, str)]
    for i, argument in enumerate(a):
        if argument.dtype == bool:
            assert not computed[i].any()
            continue

        def moved(step, i=i):
            return evaluate(expression, [*a[:i], a[i] + step, *a[i + 1 :]]).astype(float)

        difference = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
        smooth = np.min([abs(abs(argument) - abs(k)) for k in kinks], axis=0) > 3 * h
        if PRIMITIVES[name] == 2:
            smooth &= abs(a[0] - a[1]) > 3 * h
        if name in JUMPS:
            smooth &= abs(JUMPS[name](*a) - np.round(JUMPS[name](*a))) > 0.02
        assert smooth.sum() > 100
        scale = 1 + abs(difference[smooth])
        assert np.max(abs(computed[i] - difference)[smooth] / scale) < 1e-9
        assert name in PIECEWISE_CONSTANT or computed[i].any()


@ids
def test_float64_and_no_warning_anywhere(name, parameters):
    x = np.array([0.0, -0.0, 1e-300, 1e-8, 0.5, 1, 3, 20, 50, 700, 1e5, 1e155, 1e308, np.inf, np.nan])
    x = np.concatenate([x, -x])
    a = [g.ravel() for g in np.meshgrid(*[x] * PRIMITIVES[name])]
    expression = Expression.of(name, **parameters)
    assert evaluate(expression, a).dtype == (bool if name in TRUTH else float)
    assert all(d.dtype == float for d in derivatives(expression, a))


# The functions of one operand that are not finite for every finite argument.
UNBOUNDED = {"reciprocal", "square", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p"}
UNBOUNDED |= {"tan", "sinh", "cosh", "asin", "acos", "acosh", "atanh"}
ONE_OPERAND = [c for c in CASES if PRIMITIVES[c[0]] == 1 and c[0] not in {"identity", "logical_not"}]


@pytest.mark.parametrize("case", [c for c in ONE_OPERAND if c[0] not in UNBOUNDED], ids=str)
def test_finite_at_any_argument(case):
    name, parameters = case
    x = np.array([50.0, 700, 800, 1e5, 1e100, 1e155, 1e200, 1e300])
    x = np.concatenate([x, -x])
    expression = Expression.of(name, **parameters)
    value, (derivative,) = evaluate(expression, [x]), derivatives(expression, [x])
    assert np.all(abs(value) <= 1.3 * abs(x))
    assert np.all(abs(derivative) <= 1.1 + (name == "elu"))


@pytest.mark.parametrize("case", ONE_OPERAND, ids=str)
def test_nan_stays_nan(case):
    """A solution that diverged must not come back from a stage as an ordinary number."""
    assert np.isnan(evaluate(Expression.of(case[0], **case[1]), [np.array([np.nan])])).all()


@pytest.mark.parametrize(
    ("name", "x", "value", "derivative"),
    [
        ("sigmoid", -700.0, np.exp(-700), np.exp(-700)),
        ("sigmoid", 40.0, 1.0, np.exp(-40)),
        ("log_sigmoid", -700.0, -700.0, 1.0),
        ("log_sigmoid", 700.0, -np.exp(-700), np.exp(-700)),
        ("softplus", -700.0, np.exp(-700), np.exp(-700)),
        ("silu", -600.0, -600 * np.exp(-600), -599 * np.exp(-600)),
        ("mish", -600.0, -600 * np.exp(-600), -599 * np.exp(-600)),
        ("mish", 0.0, 0.0, 0.6),
        ("gelu", -20.0, -10 * erfc(20 / np.sqrt(2)), None),
        ("elu", -1e-12, -1e-12 * exprel(-1e-12), 1.0),
        ("tanhshrink", 1e-3, 1e-9 / 3, 1e-6),
        ("log1p", 1e-20, 1e-20, 1.0),
        ("expm1", 1e-20, 1e-20, 1.0),
    ],
)
def test_accurate_in_the_tails(name, x, value, derivative):
    expression = Expression.of(name)
    rtol = 1e-6 if name == "tanhshrink" else 1e-13
    np.testing.assert_allclose(evaluate(expression, [np.array(x)]), value, rtol=rtol)
    if derivative is not None:
        np.testing.assert_allclose(derivatives(expression, [np.array(x)])[0], derivative, rtol=rtol * 10)


def test_derivatives_of_a_composition():
    a, b = Expression.argument(0, 3), Expression.argument(1, 3)
    gate = apply_primitive("sigmoid", [b])
    expression = apply_primitive("mul", [apply_primitive("mul", [a, gate]), apply_primitive("sub", [2.0, gate])])
    x, y, z = np.random.default_rng(0).normal(size=(3, 20))
    s = 1 / (1 + np.exp(-y))
    by_a, by_b, by_c = derivatives(expression, [x, y, z])
    np.testing.assert_allclose(by_a, s * (2 - s), rtol=1e-14)
    np.testing.assert_allclose(by_b, x * (2 - 2 * s) * s * (1 - s), rtol=1e-13)
    assert not by_c.any()


@pytest.mark.parametrize("expression", [Expression.argument(1, 2), Expression.argument(0, 2)])
def test_derivatives_of_a_projection(expression):
    by = derivatives(expression, [np.ones(3), np.ones(3)])
    assert [d.tolist() for d in by] == [
        [float(expression.instructions != ())] * 3,
        [float(not expression.instructions)] * 3,
    ]


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 1), (1, 4)), ((), (5,)), ((0, 2), (0, 2)), ((), ())])
def test_shapes_broadcast(shapes):
    arguments = [np.full(shape, 2.0) for shape in shapes]
    expression = Expression.of("pow")
    shape = np.broadcast_shapes(*shapes)
    assert evaluate(expression, arguments).shape == shape
    for derivative, value in zip(derivatives(expression, arguments), (4.0, 4 * np.log(2)), strict=True):
        assert derivative.shape == shape
        np.testing.assert_allclose(derivative, value, rtol=1e-15)


def test_arguments_are_not_changed_and_not_returned():
    x = np.array([-1.0, 2.0])
    for derivative in derivatives(Expression.of("mul"), [x, x]):
        derivative += 1
    np.testing.assert_array_equal(x, [-1.0, 2.0])


def test_a_masked_singularity_has_no_derivative():
    x = Expression.argument(0)
    root = apply_primitive("where", [apply_primitive("gt", [x, 0.0]), apply_primitive("sqrt", [x]), 0.0])
    np.testing.assert_array_equal(derivatives(root, [np.array([-1.0, 0.0, 4.0])])[0], [0, 0, 0.25])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0])
def test_constant_powers_of_any_base(exponent):
    expression = apply_primitive("pow", [Expression.argument(0), exponent])
    x = np.array([-2.0, 0.5, 3.0] + [0.0] * (exponent >= 0))
    np.testing.assert_allclose(evaluate(expression, [x]), x**exponent, rtol=1e-15)
    expected = exponent * x ** (exponent - 1) if exponent else 0 * x
    np.testing.assert_allclose(derivatives(expression, [x])[0], expected, rtol=1e-15)


def test_truth_values_are_numbers_of_double_precision():
    x = Expression.argument(0)
    step = apply_primitive("exp", [apply_primitive("gt", [x, 0.0])])
    np.testing.assert_array_equal(evaluate(step, [np.array([-1.0, 1.0])]), [1.0, np.e])
    masked = apply_primitive("mul", [x, apply_primitive("gt", [x, 0.0])])
    np.testing.assert_array_equal(evaluate(masked, [np.array([-1.0, 2.0])]), [0.0, 2.0])
    np.testing.assert_array_equal(derivatives(masked, [np.array([-1.0, 2.0])])[0], [0.0, 1.0])
