"""POD: orthonormal modes, the projection error, and the rank rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmor.engine import bases
from torchmor.engine.bases import PodBasis, compress, pod
from torchmor.engine.errors import NonFiniteError


def snapshots(n, k, spectrum, seed=0):
    """Snapshots (n, k) with the given singular values, their left singular vectors and themselves."""
    rng = np.random.default_rng([seed, n, k])
    left = np.linalg.qr(rng.normal(size=(n, len(spectrum))))[0]
    right = np.linalg.qr(rng.normal(size=(k, len(spectrum))))[0]
    return (left * spectrum) @ right.T, left


def check_pod(X, basis, spectrum, tolerance=1e-9):
    V, s = basis.modes, basis.singular_values
    np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-10)
    np.testing.assert_allclose(s, spectrum, rtol=tolerance)
    assert basis.energy == pytest.approx(np.sum(X**2), rel=1e-12)
    for r in range(len(s) + 1):
        error = np.linalg.norm(X - V[:, :r] @ (V[:, :r].T @ X)) ** 2
        assert error == pytest.approx(np.sum(s[r:] ** 2), abs=1e-10 * basis.energy)
        assert basis.dropped_energy(r) == pytest.approx(error / basis.energy, abs=1e-10)


SPECTRUM = np.array([4.0, 3.0, 2.0, 1.0])


@pytest.mark.parametrize(("n", "k"), [(30, 8), (8, 30), (4, 4), (4, 50), (50, 4)])
def test_squared_projection_error_is_the_sum_of_dropped_squares(n, k):
    """``‖X − V Vᵀ X‖² = Σ_{i>r} σ_i²`` and ``Vᵀ V = I``, for few and for many snapshots."""
    X, left = snapshots(n, k, SPECTRUM)
    basis = pod(X)
    check_pod(X, basis, SPECTRUM)
    for r in range(1, 5):  # the modes are the singular vectors, up to their sign
        projector = basis.modes[:, :r] @ basis.modes[:, :r].T
        np.testing.assert_allclose(projector, left[:, :r] @ left[:, :r].T, atol=1e-9)


@given(n=st.integers(1, 12), k=st.integers(1, 25), rank=st.integers(1, 12), seed=st.integers(0, 20))
def test_any_shape_and_rank(n, k, rank, seed):
    rank = min(rank, n, k)
    spectrum = np.sort(np.random.default_rng(seed).uniform(0.1, 1.0, rank))[::-1]
    X, _ = snapshots(n, k, spectrum, seed)
    basis = pod(X)
    assert basis.rank == rank
    check_pod(X, basis, spectrum)


#: Squares 16, 9, 4, 1 of 30: tails 30, 14, 5, 1, 0.
BOUNDARIES = {1: 14 / 30, 2: 5 / 30, 3: 1 / 30}


@pytest.mark.parametrize("r", BOUNDARIES)
def test_rank_rule_at_its_boundaries(r):
    """The smallest r with ``Σ_{i>r} σ_i² ≤ rtol² Σ σ_i²``."""
    basis = PodBasis(np.eye(4), SPECTRUM, 30.0)
    rtol = np.sqrt(BOUNDARIES[r])
    assert basis.energy_rank(rtol * (1 + 1e-12)) == r
    assert basis.energy_rank(rtol * (1 - 1e-12)) == r + 1
    assert basis.dropped_energy(r) == pytest.approx(BOUNDARIES[r], rel=1e-12)


def test_rank_rule_at_its_ends():
    basis = PodBasis(np.eye(4), SPECTRUM, 30.0)
    assert basis.energy_rank(0.0) == 4
    assert basis.energy_rank(1 - 1e-15) == 1
    assert [PodBasis(np.eye(4), np.ones(4), 4.0).energy_rank(x) for x in (0.5, 0.4999)] == [3, 4]  # ≤, not <


def test_rank_rule_counts_what_was_not_computed():
    """Of the spectrum (4, 3, 2, 1) only two values were computed."""
    basis = PodBasis(np.eye(4)[:, :2], SPECTRUM[:2], 30.0)
    assert basis.energy_rank(np.sqrt(14 / 30) + 1e-12) == 1
    assert basis.energy_rank(np.sqrt(10 / 30)) == 2  # 9 of the tail of 14 were computed
    assert basis.energy_rank(np.sqrt(5 / 30) + 1e-12) == 2
    assert basis.dropped_energy(2) == pytest.approx(5 / 30)


def test_small_tails_are_not_lost_in_rounding():
    basis = PodBasis(np.eye(3), np.array([1.0, 1e-7, 1e-9]), 1.0 + 1e-14 + 1e-18)
    assert basis.energy_rank(1e-8) == 2
    assert basis.energy_rank(0.9e-9) == 3
    assert basis.energy_rank(2e-7) == 1


@pytest.mark.parametrize("k", [6, 40])
def test_enough_modes_for_the_tolerance(k, monkeypatch):
    """Where the first few modes do not reach the tolerance, more are computed."""
    monkeypatch.setattr(bases, "SPECTRUM", 2)
    X, _ = snapshots(12, k, SPECTRUM)
    full = pod(X)
    for rtol in (0.9, 0.5, 0.3, 0.1, 0.0):
        basis = pod(X, energy_rtol=rtol)
        r = basis.energy_rank(rtol)
        assert r == full.energy_rank(rtol) <= basis.rank
        assert np.sum(SPECTRUM[r:] ** 2) <= rtol**2 * 30 + 1e-12
    assert pod(X, energy_rtol=0.9).rank == 2
    assert pod(X, modes=3).rank == 3
    np.testing.assert_allclose(pod(X, modes=3).singular_values, SPECTRUM[:3])


@pytest.mark.parametrize("modes", [None, 2])
def test_compression_keeps_the_gramian(modes):
    """At most n columns with the same ``X Xᵀ``, up to the modes asked for."""
    X, left = snapshots(9, 40, SPECTRUM)
    Y = compress(X, modes)
    assert Y.shape[1] <= 9
    kept = slice(None) if modes is None else slice(0, modes)
    expected = (left[:, kept] * SPECTRUM[kept] ** 2) @ left[:, kept].T
    np.testing.assert_allclose(Y @ Y.T, expected, atol=1e-12)


def test_compression_leaves_few_snapshots_alone():
    X, _ = snapshots(9, 9, SPECTRUM)
    assert compress(X) is X


def test_compressed_pod_is_that_of_the_singular_value_decomposition():
    X = np.random.default_rng(0).normal(size=(20, 300))
    left, spectrum, _ = np.linalg.svd(X, full_matrices=False)
    basis = pod(X)
    np.testing.assert_allclose(basis.singular_values, spectrum, rtol=1e-12)
    for r in (1, 5, 19):
        projector = left[:, :r] @ left[:, :r].T
        np.testing.assert_allclose(basis.modes[:, :r] @ basis.modes[:, :r].T, projector, atol=1e-10)


def test_one_snapshot():
    x = np.array([[3.0], [4.0]])
    basis = pod(x)
    assert basis.rank == 1 and basis.energy_rank(0.0) == 1
    np.testing.assert_allclose(basis.singular_values, [5.0])
    np.testing.assert_allclose(np.abs(basis.modes), x / 5)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_snapshots_that_are_all_zero(shape):
    basis = pod(np.zeros(shape))
    assert (basis.rank, basis.modes.shape, basis.energy) == (0, (shape[0], 0), 0.0)
    assert basis.dropped_energy(0) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_snapshots_that_are_not_finite(bad):
    X = np.ones((3, 4))
    X[1, 2] = bad
    with pytest.raises(NonFiniteError, match="expected finite snapshots, got NaN or infinity"):
        pod(X)
