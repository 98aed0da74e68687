"""Empirical interpolation of stages: exact where it must be, and bounded elsewhere."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmor.engine import points as points_module
from torchmor.engine.bases import pod
from torchmor.engine.errors import SizeError
from torchmor.engine.points import INTERPOLATING, collateral_basis, interpolate, oversample
from torchmor.engine.thinning import thinned

over_selections = pytest.mark.parametrize("selection", INTERPOLATING)


def stage_values(n=40, k=60):
    """Values of a nonlinear stage: bumps that move, whose singular values decay."""
    x, centre = np.linspace(0, 1, n)[:, np.newaxis], np.linspace(0, 1, k)
    return np.exp(-20 * (x - centre) ** 2) + 0.1 * np.tanh(5 * x)


def interpolated(m=6, selection="deim", values=None):
    values = stage_values() if values is None else values
    return interpolate(values, pod(values), m, selection), values


@over_selections
@pytest.mark.parametrize("m", [1, 2, 6, 12])
def test_exact_at_the_points_and_on_the_span(selection, m):
    """``lift[points] = I`` and ``lift @ U[points] = U``."""
    sampled, values = interpolated(m, selection)
    assert sampled.points.shape == (m,) and len(set(sampled.points)) == m
    assert sampled.lift.shape == sampled.basis.shape == (len(values), m)
    np.testing.assert_allclose(sampled.lift[sampled.points], np.eye(m), atol=1e-9)
    np.testing.assert_allclose(sampled.lift @ sampled.basis[sampled.points], sampled.basis, atol=1e-9)


@over_selections
@given(m=st.integers(1, 10), seed=st.integers(0, 50))
def test_error_is_bounded_by_the_best_error(selection, m, seed):
    """``‖g − lift g[points]‖ ≤ constant · min_c ‖g − U c‖`` for any g."""
    sampled, _ = interpolated(m, selection)
    g = np.random.default_rng(seed).normal(size=40)
    error = np.linalg.norm(g - sampled.lift @ g[sampled.points])
    best = np.linalg.norm(g - sampled.basis @ np.linalg.lstsq(sampled.basis, g)[0])
    assert error <= sampled.constant * best * (1 + 1e-9)
    assert sampled.constant >= 1 - 1e-12


@pytest.mark.parametrize("selection", ["deim", "qdeim"])
def test_constant_and_condition_for_an_orthonormal_basis(selection):
    """The constant is ‖(U[points])⁻¹‖₂, and U are the POD modes of the values."""
    sampled, values = interpolated(8, selection)
    np.testing.assert_allclose(sampled.basis.T @ sampled.basis, np.eye(8), atol=1e-10)
    modes = pod(values).modes[:, :8]
    np.testing.assert_allclose(sampled.basis @ sampled.basis.T, modes @ modes.T, atol=1e-9)
    singular_values = np.linalg.svd(sampled.basis[sampled.points], compute_uv=False)
    assert sampled.constant == pytest.approx(1 / singular_values[-1], rel=1e-9)
    assert sampled.condition == pytest.approx(singular_values[0] / singular_values[-1], rel=1e-9)


def test_greedy_points_of_deim():
    """The first point is the largest entry of the first mode; each next one that of the interpolation residual."""
    sampled, values = interpolated(5, "deim")
    modes, chosen = pod(values).modes[:, :5], []
    for i in range(5):
        residual = modes[:, i].copy()
        if chosen:
            residual -= modes[:, :i] @ np.linalg.solve(modes[chosen, :i], modes[chosen, i])
        chosen.append(int(np.argmax(np.abs(residual))))
    assert sampled.points.tolist() == chosen


@over_selections
def test_accuracy_on_its_own_data(selection):
    sampled, values = interpolated(15, selection)
    error = np.linalg.norm(values - sampled.lift @ values[sampled.points]) / np.linalg.norm(values)
    assert error < 1e-6


@over_selections
def test_all_points_are_exact(selection):
    values = np.random.default_rng(0).normal(size=(5, 9))
    sampled, _ = interpolated(5, selection, values)
    assert sorted(sampled.points) == list(range(5))
    np.testing.assert_allclose(sampled.lift @ values[sampled.points], values, atol=1e-10)


@over_selections
def test_more_points_than_the_values_span(selection):
    values = np.random.default_rng(0).normal(size=(12, 3)) @ np.random.default_rng(1).normal(size=(3, 20))
    text = r"at most as many points as the calibration values .* numerically 3; got 4: ask for points=3 or fewer"
    with pytest.raises(SizeError, match=text):
        interpolated(4, selection, values)
    assert len(interpolated(3, selection, values)[0].points) == 3


@over_selections
def test_values_that_are_all_zero(selection):
    with pytest.raises(SizeError, match=r"not all zero on the calibration data.* points=\"full\""):
        interpolated(1, selection, np.zeros((5, 4)))


def test_greedy_selection_works_on_thinned_snapshots(monkeypatch):
    monkeypatch.setattr(points_module, "GREEDY_SNAPSHOTS", 20)
    sampled, values = interpolated(8, "ei_greedy")
    chosen = values[:, thinned(60, 20)]
    few, _ = interpolated(8, "ei_greedy", chosen)
    np.testing.assert_array_equal(sampled.points, few.points)
    np.testing.assert_allclose(sampled.lift @ values[sampled.points], values, atol=0.1)


def test_oversampling():
    """Law: the first points stay, no point is taken twice, and ‖U[points]⁺‖ does not grow; m = size gives 1."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(30, 8)) @ rng.normal(size=(8, 50))
    square = interpolate(values, pod(values), 5, "deim")
    constants = []
    for m in (5, 6, 10, 29, 30):
        more = oversample(square, m)
        assert len(set(more.points)) == m and more.points[:5].tolist() == square.points.tolist()
        np.testing.assert_allclose(more.lift @ more.basis[more.points], more.basis, atol=1e-10)
        constants.append(more.constant)
    assert constants[0] == pytest.approx(square.constant)
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(constants)) and constants[-1] == pytest.approx(1.0)


def test_oversampling_helps_more_than_other_points():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(60, 60)) @ np.diag(0.8 ** np.arange(60)) @ rng.normal(size=(60, 90))
    square = interpolate(values, pod(values), 10, "deim")
    chosen = oversample(square, 14).constant
    others = []
    for _ in range(20):
        free = np.setdiff1d(np.arange(60), square.points)
        others.append(collateral_basis(np.append(square.points, rng.choice(free, 4, False)), square.basis).constant)
    assert chosen < np.median(others)


def test_points_that_do_not_determine_the_coefficients():
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(10, 3)))[0]
    basis[:3] = 0.0
    with pytest.raises(SizeError, match="points that tell 3 basis vectors apart, got 3 that do not"):
        collateral_basis(np.arange(3), basis)
    with pytest.raises(SizeError, match="points that tell 3 basis vectors apart, got 4 that do not"):
        collateral_basis(np.arange(4), basis)
