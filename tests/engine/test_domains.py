"""What a sampled stage feeds stays within the domains of functions that divide, and take roots and logarithms."""

import numpy as np
import pytest
import torch
from torch import nn

from torchmor.adapters.tracing.classifier import trace
from torchmor.engine import functions
from torchmor.engine.affine import AffineMap
from torchmor.engine.domains import bounded
from torchmor.engine.expressions import Expression, apply_primitive
from torchmor.engine.models import ode_layer_model
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.stages import Stage, StageChain
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

N, HIDDEN, RANK = 16, 24, 6


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def inverse_rms(x):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def gated(normalise):
    """y' = W2 tanh(normalise(W1 y) σ(W3 y))"""

    def build(a, b, c):
        return lambda y: c(torch.tanh(normalise(a(y)) * torch.sigmoid(b(y))))

    return build


def instance(x):
    return nn.InstanceNorm1d(4)(x.reshape(-1, 4, HIDDEN // 4)).flatten(1)


FUNCTIONS = {
    "group normalisation, gate": gated(nn.GroupNorm(4, HIDDEN).double()),
    "layer normalisation, gate": gated(nn.LayerNorm(HIDDEN).double()),
    "instance normalisation, gate": gated(instance),
    "root mean square, gate": gated(rms),
    "inverse root mean square, gate": gated(inverse_rms),
    "product of a gate": lambda a, b, c: lambda y: c(torch.sigmoid(b(y)) * nn.functional.group_norm(a(y), 4)),
    "product of two": lambda a, b, c: lambda y: c(torch.tanh(rms(a(y)) * nn.functional.group_norm(b(y), 4))),
    "logarithm": lambda a, b, c: lambda y: c(torch.tanh(a(y)) * torch.log(b(y).cosh().mean(-1, keepdim=True))),
    "root": lambda a, b, c: lambda y: c(torch.tanh(a(y)) * b(y).tanh().square().mean(-1, keepdim=True).sqrt()),
    "one and more": lambda a, b, c: lambda y: c(torch.tanh(a(y)) / (1 + b(y).abs().mean(-1, keepdim=True))),
}


def chain_of(name):
    torch.manual_seed(0)
    f = FUNCTIONS[name](*(nn.Linear(*size).double() for size in ((N, HIDDEN), (N, HIDDEN), (HIDDEN, N))))
    return trace(lambda t, y, u: f(y), torch.randn(2, N, dtype=torch.float64))


def states(count, seed):
    """States of heavy tails, near a subspace."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(1).normal(size=(N, RANK))
    return basis @ rng.standard_t(4, size=(RANK, count)) + 0.02 * rng.normal(size=(N, count))


def reduced(chain, y, **options):
    stepper = RungeKuttaTimeStepper("midpoint", (0.0, 0.5, 1.0))
    reductor = SnapshotReductor(ode_layer_model(chain, stepper), y, None, np.zeros(y.shape[1]))
    return reductor.reduce(state_dim=RANK, **options)


def errors(chain, reduction, y):
    """Relative error of the projected derivative without its mean, and its largest of a state."""
    basis, f = reduction.bases["state"], -reduction.rom.operator.chain
    true = basis.T @ chain(y)
    error = np.linalg.norm(f(basis.T @ y) - true, axis=0)
    return (
        np.linalg.norm(error) / np.linalg.norm(true - true.mean(axis=1, keepdims=True)),
        error.max() / np.linalg.norm(true, axis=0).mean(),
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_stated_errors_are_measured_on_fresh_samples(name):
    """Of 4,000 samples, whether statistics are absorbed or fitted."""
    chain, fresh = chain_of(name), states(4000, 3)
    each = [min(12, stage.size) for stage in chain.stages]
    for points in (12, each):
        found = reduced(chain, states(600, 2), selection="omp", fit="least_squares", points=points)
        total, largest = errors(chain, found, fresh)
        assert total < 2 * found.parts[0].error and largest < 10


@pytest.mark.parametrize("name", FUNCTIONS)
def test_interpolation_does_not_explode(name):
    chain = chain_of(name)
    found = reduced(chain, states(600, 2), points=12)
    known, _ = errors(chain, found, states(600, 2))
    total, largest = errors(chain, found, states(4000, 3))
    assert total < 2 * known and largest < 20


def stage(expression, *sources, size=2):
    rows = expression.arity * size
    blocks = {source: np.eye(rows, size, -i * size) for i, source in enumerate(sources)}
    return Stage("g2", expression, AffineMap.from_blocks(blocks))


def chain_with(expression, *sources):
    """g1 = |y| of 2 components, then a function of the given sources."""
    identity = np.eye(2)
    first = Stage("g1", Expression.of("abs"), AffineMap.from_blocks({"y": identity}))
    return StageChain(2, 0, (first, stage(expression, *sources)), AffineMap.from_blocks({"g2": identity}))


A, B = Expression.argument(0, 2), Expression.argument(1, 2)
SEEN = np.array([[0.25, 0.5, -0.75], [0.5, -0.375, 0.875]])


def bound(chain, y=SEEN, sampled="g1"):
    values = {"y": y, **chain.evaluate(y)}
    return bounded(chain, values, {sampled: np.arange(2)} if sampled else {})


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (Expression.of("div"), "a / clamp(b, min=0.125)"),
        (apply_primitive("div", [A, apply_primitive("neg", [B])]), "a / clamp(-b, max=-0.125)"),
        (apply_primitive("mul", [A, apply_primitive("rsqrt", [B])]), "a * rsqrt(clamp(b, min=0.125))"),
        (apply_primitive("mul", [A, apply_primitive("log", [B])]), "a * log(clamp(b, min=0.125))"),
        (apply_primitive("mul", [A, apply_primitive("pow", [B, -2.0])]), "a * clamp(b, min=0.125) ** -2"),
        (apply_primitive("mul", [A, apply_primitive("pow", [B, 0.5])]), "a * clamp(b, min=0.125) ** 0.5"),
        (apply_primitive("mul", [A, apply_primitive("atanh", [B])]), "a * atanh(clamp(b, max=0.9375, min=-0.375))"),
        (apply_primitive("mul", [A, apply_primitive("acosh", [apply_primitive("add", [B, 1.0])])]), None),
        (apply_primitive("mul", [A, apply_primitive("log1p", [apply_primitive("sub", [B, 1.0])])]), None),
        (apply_primitive("mul", [A, apply_primitive("pow", [B, 2.0])]), "a * b ** 2"),
        (apply_primitive("div", [A, apply_primitive("sub", [B, 0.4])]), "a / (b - 0.4)"),
        (apply_primitive("div", [B, A]), "b / a"),
        (Expression.of("mul"), "a * b"),
    ],
)
def test_what_is_clamped(expression, text):
    """Law: the values on the calibration data stay the same, and are finite for any values of the sampled stage."""
    chain = chain_with(expression, "y", "g1")
    found = bound(chain)
    np.testing.assert_array_equal(found(SEEN), chain(SEEN))
    function = found.stages[1].expression
    if text is None:
        assert "clamp" in function.text(["a", "b"])
    else:
        assert function.text(["a", "b"]) == text
    assert (found is chain) == (function == expression)
    if "clamp" in function.text(["a", "b"]):
        with np.errstate(all="ignore"):
            value = functions.evaluate(function, [np.ones(5), np.array([-3.0, -1.0, 0.0, 1e-9, 0.2])])
        assert np.isfinite(value).all()


def test_what_is_exact_stays_as_it_is():
    for chain in (chain_with(Expression.of("div"), "y", "g1"), chain_with(Expression.of("div"), "g1", "y")):
        assert bound(chain, sampled=None) is chain
    assert bound(chain_with(Expression.of("div"), "g1", "y")).stages[1].expression == Expression.of("div")
    assert bound(chain_with(Expression.of("div"), "y", "g1"), np.zeros((2, 3))).stages[1].expression.text(
        ["a", "b"]
    ) == ("a / b"), "zero on calibration data"


def test_a_kept_stage_of_a_sampled_one_is_inexact_too():
    chain = chain_with(Expression.of("sqrt"), "g1")
    last = Stage("g3", Expression.of("div"), AffineMap.from_blocks({"y": np.eye(4, 2), "g2": np.eye(4, 2, -2)}))
    chain = StageChain(2, 0, (*chain.stages, last), AffineMap.from_blocks({"g3": np.eye(2)}))
    assert ["clamp" in str(one.expression) for one in bound(chain).stages] == [False, True, True]
