"""Balanced bases: the SVD formula, its optimality, changes of coordinates, padding."""

import numpy as np
import pytest

from torchmor.engine.balancing import balance
from torchmor.engine.bases import pod


def data(n=30, k=60, gradients=45, seed=0):
    rng = np.random.default_rng(seed)
    decay = 0.7 ** np.arange(n)
    X = rng.permutation(np.eye(n)) @ (decay[:, None] * rng.normal(size=(n, k)))
    return X, rng.normal(size=(n, n)) @ (decay[:, None] * rng.normal(size=(n, gradients)))


def by_svd(X, G, r):
    """The formula: ``Gᵀ X = S Σ Tᵀ``, ``V = X T Σ^{-1/2}``, ``W = G S Σ^{-1/2}``."""
    S, sigma, T = np.linalg.svd(G.T @ X, full_matrices=False)
    return X @ T[:r].T / np.sqrt(sigma[:r]), G @ S[:, :r] / np.sqrt(sigma[:r]), sigma


def projector(basis, r):
    return basis.trial[:, :r] @ basis.test[:, :r].T


@pytest.mark.parametrize("r", [1, 3, 6])
def test_projector_is_that_of_the_formula(r):
    X, G = data()
    basis = balance(pod(X), G, r)
    V, W, sigma = by_svd(X, G, r)
    np.testing.assert_allclose(projector(basis, r), V @ W.T, atol=1e-6 * np.abs(V @ W.T).max())
    np.testing.assert_allclose(basis.singular_values[:r], sigma[:r], rtol=1e-6)
    np.testing.assert_allclose(basis.test.T @ basis.trial, np.eye(r), atol=1e-10)


def test_both_bases_take_half_of_the_singular_values():
    """Up to one factor: ‖V‖ and ‖W‖ scale alike with σ, so that neither is ill-scaled."""
    X, G = data()
    basis = balance(pod(X), G, 5)
    V, W, _ = by_svd(X, G, 5)
    scale = np.linalg.norm(V, axis=0) / np.linalg.norm(basis.trial, axis=0)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(basis.test, axis=0) / np.linalg.norm(W, axis=0), scale, rtol=1e-6)


def test_change_of_coordinates():
    """Law: with y = M ỹ the projector becomes M⁻¹ V Wᵀ M; POD has no such law."""
    X, G = data()
    rng = np.random.default_rng(1)
    M = np.eye(30) + 0.2 * rng.normal(size=(30, 30))
    basis, changed = balance(pod(X), G, 4), balance(pod(np.linalg.solve(M, X)), M.T @ G, 4)
    expected = np.linalg.solve(M, projector(basis, 4) @ M)
    np.testing.assert_allclose(projector(changed, 4), expected, atol=1e-6 * np.abs(expected).max())


def test_keeps_what_the_output_sees():
    """A direction that varies little but decides the output comes first; POD takes it last."""
    rng = np.random.default_rng(0)
    X = np.diag([10.0, 5.0, 0.1]) @ rng.normal(size=(3, 50))
    G = np.diag([1e-6, 1e-6, 1.0]) @ rng.normal(size=(3, 40))
    W = balance(pod(X), G, 1).test[:, 0]
    assert abs(W[2]) > 0.99 * np.linalg.norm(W)
    assert abs(pod(X).modes[2, 0]) < 0.1


@pytest.mark.parametrize("r", [3, 6])
def test_short_spectrum_is_padded_by_pod_modes(r):
    X, G = data(gradients=2)
    basis = balance(pod(X), G, r)
    assert len(basis.singular_values) == 2 and basis.rank == r
    np.testing.assert_allclose(basis.test.T @ basis.trial, np.eye(r), atol=1e-8)
    np.testing.assert_allclose(projector(basis, 2), projector(balance(pod(X), G, 2), 2), atol=1e-8)
    missed = X - projector(basis, 2) @ X
    left = np.linalg.norm(X - projector(basis, r) @ X)
    assert left == pytest.approx(np.linalg.norm(pod(missed).singular_values[r - 2 :]), rel=1e-6)


def test_energy_rule():
    X, G = data()
    basis = balance(pod(X), G, 30)
    squares = basis.singular_values**2
    for rtol in (0.5, 0.1, 0.01):
        r = basis.energy_rank(rtol)
        assert squares[r:].sum() <= rtol**2 * squares.sum() < squares[r - 1 :].sum()
        assert basis.dropped_energy(r) == pytest.approx(squares[r:].sum() / squares.sum())


def test_no_gradient_at_all():
    """An output that sees nothing leaves the POD modes."""
    X, _ = data()
    basis = balance(pod(X), np.zeros((30, 5)), 4)
    np.testing.assert_allclose(projector(basis, 4), pod(X).modes[:, :4] @ pod(X).modes[:, :4].T, atol=1e-8)


def test_padding_stops_at_the_rank_of_the_states():
    """Rounding is no direction: with states of rank 5 and gradients of rank 3 there are five basis vectors."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(10, 5)) @ rng.normal(size=(5, 80))
    G = rng.normal(size=(10, 3)) @ rng.normal(size=(3, 40))
    basis = balance(pod(X), G, 9)
    assert basis.rank == 5
    np.testing.assert_allclose(basis.test.T @ basis.trial, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(projector(basis, 5) @ X, X, atol=1e-9)
