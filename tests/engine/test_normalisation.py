"""Normalisations in fits: which stages are absorbed, what stands for them, and that it is the best of its kind."""

import numpy as np
import pytest
import torch
from torch import nn

from catalogue import CATALOGUE, traced
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine import functions
from torchmor.engine.expressions import Expression, apply_primitive
from torchmor.engine.fitting import Training, fit_chain
from torchmor.engine.models import ode_layer_model
from torchmor.engine.normalisation import absorbed_stages, of_quotients, quotients_of, sources_read
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

FITTED = {"selection": "omp", "fit": "least_squares"}
#: The functions with a normalisation, and their quotients.
QUOTIENTS = {
    "group normalisation": ["g3", "g6", "g9"],
    "layer normalisation": ["g3"],
    "layer normalisation of images": ["g3"],
    "instance normalisation": ["g4"],
    "on a sphere": ["g3"],
}
rng = np.random.default_rng(0)


def chain_of(*layers, n=12, seed=0):
    torch.manual_seed(seed)
    f = nn.Sequential(*layers).double()
    for layer in f:
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return trace(lambda t, y, u: f(y), torch.randn(2, n, dtype=torch.float64))


def normalised():
    """Squares g1, deviation g2, quotient with ReLU g3; squares g4, deviation g5, quotient g6."""
    return chain_of(nn.Linear(12, 24), nn.GroupNorm(3, 24), nn.ReLU(), nn.Linear(24, 12), nn.GroupNorm(2, 12))


A, B, C, D = (Expression.argument(i, 4) for i in range(4))


def of(name, *operands, **parameters):
    return apply_primitive(name, operands, parameters)


def check(expression, form, arity):
    arguments = rng.normal(size=(arity, 3, 5)) + 3
    quotients = [functions.evaluate(quotient, arguments) for quotient in form.quotients]
    value = functions.evaluate(form.psi, [*quotients, *(arguments[i] for i in form.others)])
    np.testing.assert_allclose(value, functions.evaluate(expression, arguments), rtol=1e-12)


@pytest.mark.parametrize("name", CATALOGUE)
def test_quotients_are_functions_of_the_quotient(name):
    chain = traced(name)
    found = {stage.name: (stage.expression, quotients_of(chain, stage)) for stage in chain.stages}
    found = {stage: pair for stage, pair in found.items() if pair[1] is not None}
    for expression, form in found.values():
        check(expression, form, expression.arity)
    assert set(QUOTIENTS.get(name, [])) <= set(found)


QUOTIENT = of("div", A, B)
GATED = of("mul", QUOTIENT, of("sigmoid", C))


@pytest.mark.parametrize(
    ("expression", "others", "divisors"),
    [
        (QUOTIENT, (), {1}),
        (of("tanh", GATED), (2,), {1}),
        (of("mul", of("sigmoid", C), QUOTIENT), (2,), {1}),
        (of("add", GATED, D), (2, 3), {1}),
        (of("div", of("tanh", QUOTIENT), of("add", 1.0, of("abs", C))), (2,), {1}),
        (of("mul", QUOTIENT, of("div", C, D)), (), {1, 3}),
        (of("mul", QUOTIENT, of("div", C, B)), (), {1}),
        (of("mul", QUOTIENT, A), (0,), {1}),
        (of("div", A, of("sqrt", of("add", B, 1e-5))), (), {1}),
        (of("mul", of("mul", of("rsqrt", of("add", B, 1e-5)), A), C), (2,), {1}),
        (of("mul", A, of("pow", of("maximum", B, 1e-5), -0.5)), (), {1}),
        (of("div", of("div", A, B), C), (), {1, 2}),
    ],
)
def test_quotients(expression, others, divisors):
    form = of_quotients(expression)
    assert (form.others, form.divisors) == (others, divisors)
    check(expression, form, 4)


@pytest.mark.parametrize(
    "expression",
    [
        of("mul", A, B),
        of("tanh", A),
        of("div", 1.0, A),
        of("add", QUOTIENT, B),
        of("sub", of("div", A, B), of("div", B, A)),
        of("div", A, of("add", 1.0, of("exp", B))),
        of("mul", A, of("sigmoid", B)),
        of("div", A, of("add", A, B)),
        B,
    ],
    ids=[
        "product",
        "one argument",
        "reciprocal",
        "divisor read again",
        "both ways round",
        "sigmoid",
        "gate",
        "divisor with numerator",
        "no instruction",
    ],
)
def test_no_quotients(expression):
    assert of_quotients(expression) is None


def test_statistics_and_plain_quotients_are_absorbed():
    chain = normalised()
    assert absorbed_stages(chain) == {"g1", "g2", "g4", "g5", "g6"}
    assert absorbed_stages(chain, {"g1", "g2"}) == {"g4", "g5", "g6"}, "exact statistics stay"
    assert absorbed_stages(chain, {"g1", "g2", "g6"}) == set(), "so do those of a stage that is kept"
    assert sources_read(chain, chain.output, absorbed_stages(chain)) == ("g3",)
    assert sources_read(chain, chain.stages[2].argument, absorbed_stages(chain)) == ("y",)


def test_some_nonlinearity_stays():
    """Of a layer norm between linear layers nothing else would be left than a linear function."""
    chain = chain_of(nn.LayerNorm(12), nn.Linear(12, 12))
    assert absorbed_stages(chain) == {"g1", "g2"}
    assert absorbed_stages(chain_of(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12))) == set()


def test_other_divisors_are_none():
    """What divides by a function of the state, of the time or of shared stages is no normalisation."""
    for name in ("physics and network", "rational", "mixture of experts", "GRU", "time, embedded"):
        assert absorbed_stages(traced(name)) == set()
    chain = trace(lambda t, y, u: y.tanh() / (1 + y * y), torch.randn(2, 4, dtype=torch.float64))
    assert absorbed_stages(chain) == set()


def test_exact_where_the_statistic_is_constant():
    """Law: a quotient by a constant is affine, and the fit finds it."""
    chain = chain_of(nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 12))
    y = rng.normal(size=(12, 200))
    y -= y.mean(axis=0)
    y *= np.sqrt(12) / np.linalg.norm(y, axis=0)  # mean 0, variance 1
    training = Training(y, None, np.zeros(200), chain.evaluate(y))
    absorbed = absorbed_stages(chain)
    assert absorbed == {"g1", "g2"}
    fitted = fit_chain(chain, None, None, None, {"g3": np.arange(12)}, training, 0.0, absorbed).chain
    assert [stage.name for stage in fitted.stages] == ["g3"] and fitted.stages[0].expression.arity == 1
    np.testing.assert_allclose(fitted(y), chain(y), rtol=1e-8, atol=1e-8)


def test_nothing_of_its_kind_is_nearer():
    """Law: with ridge 0, on the training data."""
    chain = normalised()
    y = rng.normal(size=(12, 400))
    training = Training(y, None, np.zeros(400), chain.evaluate(y))
    points = {"g3": np.arange(0, 24, 2)}
    fitted = fit_chain(chain, None, None, None, points, training, 0.0, absorbed_stages(chain)).chain
    stage, output = fitted.stages[0], fitted.output
    a1, a2 = chain.stages[2].split(chain.stages[2].argument.apply(training.sources))
    wanted = {"argument": (a1 / a2)[points["g3"]], "output": training.values["output"]}
    values = fitted.evaluate(y)
    for name, affine, source in (("argument", stage.argument, "y"), ("output", output, "g3")):

        def residual(matrix, shift, name=name, source=source):
            return np.linalg.norm(wanted[name] - matrix @ values[source] - shift[:, None])

        best = residual(affine.linear, affine.shift)
        for _ in range(20):
            moved = 1e-3 * rng.normal(size=affine.linear.shape), 1e-3 * rng.normal(size=affine.shift.shape)
            for sign in (1, -1):
                assert residual(affine.linear + sign * moved[0], affine.shift + sign * moved[1]) > best


def reductor(chain, y):
    times = tuple(np.linspace(0.0, 1.0, 3))
    return SnapshotReductor(
        ode_layer_model(chain, RungeKuttaTimeStepper("midpoint", times)), y, None, np.zeros(y.shape[1])
    )


def test_one_number_of_points_absorbs_and_one_for_each_does_not():
    chain = normalised()
    y = rng.normal(size=(12, 8)) @ rng.normal(size=(8, 400)) + 0.1 * rng.normal(size=(12, 400))
    of = reductor(chain, y)
    reduced = of.reduce(state_dim=8, points=10, **FITTED)
    assert [part.reduced for part in reduced.parts] == [8, 0, 0, 10, 0, 0, 0]
    assert [part.fate for part in reduced.parts] == [
        "reduced" if part.reduced else "absorbed" for part in reduced.parts
    ]
    assert list(reduced.points) == ["g3"]
    assert [stage.expression for stage in reduced.rom.operator.chain.stages] == [Expression.of("relu")]
    each = of.reduce(state_dim=8, points=[10, "full", 10, 10, "full", 10], **FITTED)
    assert [part.reduced for part in each.parts] == [8, 10, 3, 10, 10, 2, 10]
    interpolated = of.reduce(state_dim=8, points=10, selection="deim", fit="interpolation")
    assert all(part.reduced for part in interpolated.parts)
    kept = of.reduce(state_dim=8, points="full", **FITTED)
    assert all(part.fate == "kept" for part in kept.parts[1:])


def test_points_serve_the_quotient():
    """A component that only the normalised quotient of another layer depends on is chosen before all others."""
    torch.manual_seed(0)
    first, second = nn.Linear(12, 24).double(), nn.Linear(24, 12).double()
    with torch.no_grad():
        second.weight[:, 5] *= 300.0
    chain = chain_of(first, nn.Tanh(), second, nn.LayerNorm(12))
    y = rng.normal(size=(12, 300))
    assert absorbed_stages(chain) == {"g2", "g3", "g4"}
    assert 5 in reductor(chain, y).reduce(state_dim="full", points=3, **FITTED).points["g1"]
