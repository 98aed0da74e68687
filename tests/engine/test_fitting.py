"""Fitted operators: regression, its laws, and what it shares with interpolation."""

import numpy as np
import pytest
import torch
from torch import nn

from catalogue import module
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.bases import pod
from torchmor.engine.fitting import Training, fit_chain
from torchmor.engine.held_out import held_out_columns
from torchmor.engine.points import interpolate
from torchmor.engine.regression import RIDGES, regress, regress_nonnegative

rng = np.random.default_rng(0)


def test_regression_is_ridge_regression_with_a_free_constant():
    features, target = rng.normal(size=(6, 50)) + 3.0, rng.normal(size=(2, 50))
    for ridge in (0.0, 1e-3, 1.0):
        matrix, shift, _ = regress(features, target, ridge)
        centered = features - features.mean(axis=1, keepdims=True)
        weight = ridge * np.diag(np.sum(centered**2, axis=1))
        expected = (
            (target - target.mean(axis=1, keepdims=True)) @ centered.T @ np.linalg.inv(centered @ centered.T + weight)
        )
        np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(shift, (target - matrix @ features).mean(axis=1), atol=1e-12)


def test_chosen_ridge_is_one_of_the_candidates_and_resists_noise():
    features = rng.normal(size=(40, 60))
    target = rng.normal(size=(3, 5)) @ features[:5] + rng.normal(size=(3, 60))
    chosen, _, _ = regress(features, target)
    assert any(np.array_equal(chosen, regress(features, target, ridge)[0]) for ridge in RIDGES)
    assert np.linalg.norm(chosen) < np.linalg.norm(regress(features, target, 0.0)[0])


def test_units_of_features_do_not_matter():
    """Law: ``N features`` is the same; so is the chosen ridge, and what is never negative."""
    features, target = rng.normal(size=(6, 60)) + 2.0, rng.normal(size=(3, 60))
    units = 10.0 ** rng.uniform(-4, 4, size=(6, 1))
    for ridge in (None, 0.0, 1e-2):
        matrix, shift, error = regress(features, target, ridge)
        scaled = regress(features * units, target, ridge)
        np.testing.assert_allclose(scaled.matrix * units.T, matrix, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(scaled.shift, shift, rtol=1e-8)
        assert scaled.held_out_error == (None if ridge is not None else pytest.approx(error, rel=1e-9))
    exact = np.abs(rng.normal(size=(2, 6))) @ features**2
    for size in (1e-20, 1.0, 1e20):  # of the target, too
        found = regress_nonnegative(features**2 * units, size * exact)
        np.testing.assert_allclose(found.matrix * units.T, size * regress_nonnegative(features**2, exact).matrix)


def test_constant_features_are_left_out():
    """Rounding of their means is no feature, however its unit makes it look."""
    features, target = rng.normal(size=(4, 50)), rng.normal(size=(2, 50))
    matrix = regress(np.vstack([features, np.full((1, 50), 0.1)]), target, 0.0).matrix
    np.testing.assert_array_equal(matrix[:, 4], 0.0)
    np.testing.assert_allclose(matrix[:, :4], regress(features, target, 0.0).matrix)
    nothing = regress(np.zeros((0, 50)), target)
    assert nothing.matrix.shape == (2, 0)
    np.testing.assert_allclose(nothing.shift, target.mean(axis=1))


def test_whole_samples_are_held_out_whatever_their_order():
    """Class-sorted samples: the error is not that of a class that the fit has never seen."""
    classes = np.repeat([0.0, 4.0, -4.0, 9.0], 500)
    order, noise = rng.permutation(2000), rng.normal(size=(3, 2000))
    features = noise + classes
    target = np.tanh(features[:1]) + 0.1 * np.abs(features[1:2])
    orders = np.arange(2000), np.arange(2000)[::-1], order
    errors = [regress(features[:, one], target[:, one]).held_out_error for one in orders]
    assert max(errors) < 1.2 * min(errors)


def test_a_sample_is_held_out_as_a_whole_and_none_of_one():
    samples = np.repeat(np.arange(10), 7)
    mask = held_out_columns(samples)
    assert mask.sum() == 14 and len(set(samples[mask])) == 2 and not set(samples[mask]) & set(samples[~mask])
    assert not held_out_columns(np.zeros(30)).any()
    features, target = rng.normal(size=(3, 30)), rng.normal(size=(2, 30))
    for fit in (regress, regress_nonnegative):
        assert fit(features**2, target**2, held_out=np.zeros(30, dtype=bool)).held_out_error is None
        assert fit(features[:, :3] ** 2, target[:, :3]).held_out_error > 0


@pytest.mark.parametrize("columns", [3, 40])
def test_dependent_features(columns):
    """The least-norm solution, also for fewer columns than features."""
    some = rng.normal(size=(3, columns))
    features, target = np.vstack([some, some[:2]]), some[:1] - 2 * some[1:2] + 1
    matrix, shift, _ = regress(features, target, 0.0)
    np.testing.assert_allclose(matrix @ features + shift[:, None], target, atol=1e-9)
    assert np.linalg.norm(matrix) < 5


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 12))

    def forward(self, t, y):
        return self.net(y) - y + torch.sin(y)


def setting(f, n=12, k=300, dimensions=4):
    torch.manual_seed(0)
    chain = trace(lambda t, y, u: f.double()(t, y), torch.randn(2, n, dtype=torch.float64))
    V = np.linalg.qr(rng.normal(size=(n, dimensions)))[0]
    c = rng.normal(size=n)
    y = c[:, None] + V @ rng.normal(size=(dimensions, k))
    return chain, V, c, Training(y, None, np.zeros(k), chain.evaluate(y))


def test_states_and_stages_within_their_spans_give_the_interpolation():
    """Law: with ridge 0, y = ŷ and g in span U, the values are those of DEIM."""
    f = module(lambda self, t, y: self.b(torch.tanh(self.a(y))), a=nn.Linear(12, 20), b=nn.Linear(20, 12))
    chain, V, c, training = setting(f)
    some = Training(training.y[:, :6], None, np.zeros(6), {k: v[:, :6] for k, v in training.values.items()})
    basis = interpolate(some.values["g1"], pod(some.values["g1"]), 6)
    fitted = fit_chain(chain, V, V, c, {"g1": basis.points}, some, 0.0).chain
    z = V.T @ (some.y - c[:, None])
    expected = chain.reduce(V, V, c, {"g1": basis})(z)
    np.testing.assert_allclose(fitted(z), expected, atol=1e-8)


@pytest.mark.parametrize("m", [4, 8, 14])
def test_residual_is_never_above_that_of_interpolation(m):
    """Law: with ridge 0, on the training states, also where these are outside the trial space."""
    f = module(lambda self, t, y: self.b(torch.tanh(self.a(y))) - y, a=nn.Linear(12, 20), b=nn.Linear(20, 12))
    chain, V, c, training = setting(f, dimensions=12)
    V = V[:, :5]
    basis = interpolate(training.values["g1"], pod(training.values["g1"]), m)
    z, exact = V.T @ (training.y - c[:, None]), V.T @ training.values["output"]
    errors = [
        np.linalg.norm(reduced(z) - exact)
        for reduced in (
            fit_chain(chain, V, V, c, {"g1": basis.points}, training, 0.0).chain,
            chain.reduce(V, V, c, {"g1": basis}),
        )
    ]
    assert errors[0] < 0.999 * errors[1]


def test_deep_function_is_fitted_stage_after_stage():
    chain, V, c, training = setting(Deep())
    names = [stage.name for stage in chain.stages]
    z, exact = V.T @ (training.y - c[:, None]), V.T @ training.values["output"]
    errors = []
    for m in (3, 6, 10):
        points = {name: np.arange(m) for name in names}
        reduced = fit_chain(chain, V, V, c, points, training, 0.0).chain
        assert [stage.size for stage in reduced.stages] == [m] * len(names) and reduced.state_size == 4
        errors.append(np.linalg.norm(reduced(z) - exact) / np.linalg.norm(exact))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_linear_parts_stay_exact():
    """A function without sampled stages is the plain projection."""
    f = module(lambda self, t, y: self.a(y) + torch.tanh(y), a=nn.Linear(12, 12))
    chain, V, c, training = setting(f)
    reduced = fit_chain(chain, V, V, c, {}, training).chain
    z = rng.normal(size=(4, 7))
    np.testing.assert_allclose(reduced(z), chain.reduce(V, V, c)(z), atol=1e-13)
    kept = fit_chain(chain, None, None, None, {"g1": np.arange(12)}, training, 0.0).chain
    np.testing.assert_allclose(kept(training.y), training.values["output"], atol=1e-8)


def test_inputs_and_times_are_read():
    """What depends on u and t alone is not fitted away."""
    f = module(lambda self, t, y, u: torch.tanh(self.a(y)) + self.b(u) + t, a=nn.Linear(8, 8), b=nn.Linear(2, 8))
    chain = trace(f.double(), torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64))
    y, u, t = rng.normal(size=(8, 200)), rng.normal(size=(2, 200)), rng.normal(size=200)
    training = Training(y, u, t, chain.evaluate(y, u, t))
    reduced = fit_chain(chain, np.eye(8), np.eye(8), None, {"g1": np.arange(8)}, training, 0.0).chain
    u, t = rng.normal(size=(2, 200)) * 10, t + 5
    np.testing.assert_allclose(reduced(y, u, t), chain(y, u, t), atol=1e-8)


def test_weights_that_are_not_negative():
    """Exact where the truth is such a sum, and otherwise the best of those: no other is nearer."""
    features = rng.normal(size=(6, 80)) ** 2
    weights = np.array([[0.0, 1.0, 0.0, 2.0, 0.5, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    matrix, shift, error = regress_nonnegative(features, weights @ features + [[0.0], [4.0]])
    np.testing.assert_allclose(matrix, weights, atol=1e-10)
    np.testing.assert_allclose(shift, [0.0, 4.0], atol=1e-9)
    assert error < 1e-8
    target = weights[:1] @ features - 0.3 * features[:1] + rng.normal(size=(1, 80))
    matrix, shift, error = regress_nonnegative(features, target)
    assert matrix.min() >= 0 and shift.min() >= 0 and error > 0

    def residual(matrix, shift):
        return np.linalg.norm(target - matrix @ features - shift[:, None])

    for step in (1e-5, 1e-3, 0.05):
        for _ in range(50):
            moved = step * rng.normal(size=matrix.shape), step * rng.normal(size=shift.shape)
            for sign in (1, -1):
                other = np.maximum(matrix + sign * moved[0], 0), np.maximum(shift + sign * moved[1], 0)
                assert residual(*other) >= residual(matrix, shift)
    left = target - matrix @ features - shift[:, None]
    for value, slope in ((matrix, left @ features.T), (shift, left.sum(axis=1))):  # what more of each would gain
        np.testing.assert_allclose(slope[value > 0], 0.0, atol=1e-9)
        assert np.all(slope < 1e-9)


def test_fitted_variances_are_never_negative():
    """Wherever the state is: fitted from few squares, at states that vary in few directions."""
    net = nn.Sequential(nn.Linear(12, 24), nn.GroupNorm(3, 24), nn.Tanh(), nn.Linear(24, 12))
    f = module(lambda self, t, y: self.net(y), net=net)
    chain, V, c, training = setting(f)
    points = {"g1": np.arange(0, 24, 3)}
    for ridge in (None, 0.0):
        fitted = fit_chain(chain, V, V, c, points, training, ridge)
        second = fitted.chain.stages[1].argument
        assert second.linear.min() >= 0 and second.shift.min() >= 0
        z = V.T @ (training.y - c[:, None])
        exact = chain.stages[1].argument.apply(training.values)
        assert np.linalg.norm(second.apply(fitted.chain.evaluate(z)) - exact) < 0.3 * np.linalg.norm(exact)
    assert 0 < fit_chain(chain, V, V, c, points, training).errors["g2"] < 1
