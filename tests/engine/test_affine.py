"""Affine maps: matrices, sparse matrices and products only are the same map."""

import numpy as np
import pytest
import scipy.sparse as sps
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from torchmor.engine import affine
from torchmor.engine.affine import AffineMap, Lift
from torchmor.engine.errors import ShapeError

FORMS = ("dense", "sparse", "opaque")


@st.composite
def maps(draw):
    """A map in one of its forms, and its dense blocks by source."""
    sizes = draw(st.dictionaries(st.sampled_from("yutgh"), st.integers(1, 4), max_size=3))
    rows, form = draw(st.integers(1, 6)), draw(st.sampled_from(FORMS))
    return example(rows, sizes, form, draw(st.integers(0, 99)))


def example(rows=5, sizes=None, form="dense", seed=0):
    sizes = {"y": 4, "u": 2} if sizes is None else sizes
    rng = np.random.default_rng(seed)
    blocks = {s: rng.normal(size=(rows, n)) * (rng.random((rows, n)) < 0.6) for s, n in sizes.items()}
    shift = rng.normal(size=rows)
    linear = np.hstack([np.zeros((rows, 0)), *blocks.values()])
    wrap = {"dense": lambda a: a, "sparse": sps.csr_array, "opaque": aslinearoperator}[form if sizes else "dense"]
    return AffineMap(tuple(sizes), tuple(sizes.values()), wrap(linear), shift), blocks


def values(blocks, k=3, seed=1):
    rng = np.random.default_rng(seed)
    return {s: rng.normal(size=(block.shape[1], k)) for s, block in blocks.items()}


def reference(blocks, shift, at):
    return sum((block @ at[s] for s, block in blocks.items()), np.zeros((len(shift), 1))) + shift[:, np.newaxis]


def dense(matrix):
    return matrix.toarray() if sps.issparse(matrix) else matrix


@given(maps(), st.integers(0, 3))
def test_apply_is_the_sum_over_the_sources(pair, k):
    mapping, blocks = pair
    at = values(blocks, k)
    np.testing.assert_allclose(mapping.apply(at), reference(blocks, mapping.shift, at), atol=1e-13)


@given(maps())
def test_one_column_of_a_source_stands_for_all(pair):
    mapping, blocks = pair
    at = values(blocks)
    for source in blocks:
        at[source] = at[source][:, :1]
        wide = {s: np.broadcast_to(v, (len(v), 3)) for s, v in at.items()}
        expected = np.broadcast_to(mapping.apply(at), (mapping.size, 3))
        np.testing.assert_allclose(mapping.apply(wide), expected, atol=1e-13)


@given(maps(), st.sets(st.sampled_from("yutgh")))
def test_derivative_and_adjoint_are_transposed(pair, subset):
    """``⟨w, L v⟩ == ⟨Lᵀ w, v⟩``, for the tangents of some sources."""
    mapping, blocks = pair
    tangents = {s: v for s, v in values(blocks).items() if s in subset}
    w = np.random.default_rng(2).normal(size=(mapping.size, 3))
    product, adjoint = mapping.derivative(tangents), mapping.adjoint(w)
    expected = sum((blocks[s] @ v for s, v in tangents.items()), np.zeros((mapping.size, 3 if tangents else 1)))
    np.testing.assert_allclose(product, expected, atol=1e-13)
    assert {s: a.shape for s, a in adjoint.items()} == {s: (b.shape[1], 3) for s, b in blocks.items()}
    for s, block in blocks.items():
        np.testing.assert_allclose(adjoint[s], block.T @ w, atol=1e-13)


@given(maps(), st.data())
def test_restrict_keeps_rows_in_the_order_asked_for(pair, data):
    mapping, blocks = pair
    dofs = np.array(data.draw(st.lists(st.integers(0, mapping.size - 1), max_size=8)), dtype=np.int64)
    at = values(blocks)
    restricted = mapping.restrict(dofs)
    expected = reference(blocks, mapping.shift, at)[dofs]
    np.testing.assert_allclose(restricted.apply(at), expected, atol=1e-13)
    assert not restricted.is_opaque


@given(maps())
def test_blocks_and_used(pair):
    mapping, blocks = pair
    found = mapping.blocks()
    assert list(found) == list(blocks)
    for s, block in blocks.items():
        np.testing.assert_allclose(dense(found[s]), block, atol=1e-13)
        np.testing.assert_array_equal(mapping.used(s), np.flatnonzero(np.any(block != 0, axis=0)))
    assert mapping.used("unknown").size == 0


@given(maps(), st.data())
def test_select_keeps_entries_of_sources(pair, data):
    mapping, blocks = pair
    at = values(blocks)
    columns = {
        s: np.array(data.draw(st.lists(st.integers(0, b.shape[1] - 1), unique=True)), dtype=np.int64)
        for s, b in blocks.items()
        if data.draw(st.booleans())
    }
    selected = mapping.select(columns)
    kept = {s: b[:, columns[s]] if s in columns else b for s, b in blocks.items()}
    kept = {s: b for s, b in kept.items() if b.shape[1]}  # a source of which none is left is dropped
    kept_at = {s: v[columns[s]] if s in columns else v for s, v in at.items()}
    np.testing.assert_allclose(selected.apply(kept_at), reference(kept, mapping.shift, kept_at), atol=1e-13)
    assert selected.sources == tuple(kept)


@given(maps(), st.integers(1, 3))
def test_project_is_the_product_with_the_test_basis(pair, r):
    mapping, blocks = pair
    test = np.random.default_rng(3).normal(size=(mapping.size, r))
    at = values(blocks)
    projected = mapping.project(test)
    np.testing.assert_allclose(projected.apply(at), test.T @ reference(blocks, mapping.shift, at), atol=1e-13)
    assert isinstance(projected.linear, np.ndarray)


@given(maps(), st.data())
def test_substitute_writes_sources_in_new_coordinates(pair, data):
    """``map.substitute(lifts).apply(new) == map.apply({s: offset + matrix @ new[s]})``."""
    mapping, blocks = pair
    rng = np.random.default_rng(4)
    lifts, new, old = {}, {}, {}
    for s, block in blocks.items():
        new[s] = rng.normal(size=(block.shape[1], 3))
        old[s] = new[s]
        if data.draw(st.booleans()):
            lifts[s] = Lift(rng.normal(size=(block.shape[1], 2)), data.draw(st.sampled_from([None, 0.5])))
            if lifts[s].offset is not None:
                lifts[s] = Lift(lifts[s].matrix, rng.normal(size=block.shape[1]))
            new[s] = rng.normal(size=(2, 3))
            old[s] = lifts[s].matrix @ new[s] + (0 if lifts[s].offset is None else lifts[s].offset[:, np.newaxis])
    substituted = mapping.substitute(lifts)
    np.testing.assert_allclose(substituted.apply(new), reference(blocks, mapping.shift, old), atol=1e-12)
    if not lifts:
        assert substituted is mapping


@given(maps())
def test_negation(pair):
    mapping, blocks = pair
    at = values(blocks)
    np.testing.assert_allclose((-mapping).apply(at), -mapping.apply(at), atol=1e-13)
    w = np.ones((mapping.size, 1))
    for s, a in (-mapping).adjoint(w).items():
        np.testing.assert_allclose(a, -blocks[s].T @ w, atol=1e-13)


def test_rows_of_an_opaque_map_come_in_chunks(monkeypatch):
    """No more rows are computed than asked for, and they are kept sparse."""
    widths = []

    class Counting(LinearOperator):
        def __init__(self, matrix):
            super().__init__(np.dtype(float), matrix.shape)
            self.matrix = matrix

        def _matmat(self, X):
            raise AssertionError("rows are transposed products")

        def _rmatmat(self, X):
            widths.append(X.shape[1])
            return self.matrix.T @ X

    mapping, blocks = example(40, {"y": 30}, "sparse")
    opaque = AffineMap(mapping.sources, mapping.sizes, Counting(mapping.linear), mapping.shift)
    monkeypatch.setattr(affine, "CHUNK_BYTES", 8 * 70 * 4)
    restricted = opaque.restrict(np.array([7, 3, 7, 39, 0, 1, 2, 3, 4, 20]))
    assert widths == [4, 4]  # of eight different rows
    expected = blocks["y"][[7, 3, 7, 39, 0, 1, 2, 3, 4, 20]]
    np.testing.assert_array_equal(restricted.linear, expected)  # dense, as many entries are not zero
    monkeypatch.setattr(affine, "DENSE_SHARE", 1.0)
    restricted = opaque.restrict(np.array([7, 3, 7, 39, 0, 1, 2, 3, 4, 20]))
    assert sps.issparse(restricted.linear)
    np.testing.assert_array_equal(restricted.linear.toarray(), expected)


def test_from_blocks():
    sparse, full = sps.csr_array(np.eye(2)), np.ones((2, 3))
    assert sps.issparse(AffineMap.from_blocks({"y": sparse, "u": sparse}).linear)
    mapping = AffineMap.from_blocks({"y": sparse, "u": full}, [1.0, 2.0])
    np.testing.assert_array_equal(mapping.linear, np.hstack([np.eye(2), full]))
    np.testing.assert_array_equal(mapping.shift, [1.0, 2.0])
    assert AffineMap.from_blocks({}, np.ones(3)).linear.shape == (3, 0)


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 5)])
def test_linear_part_of_another_shape(shape):
    with pytest.raises(ShapeError, match=r"an affine map of \{'y': 4, 'u': 2\} with 5 rows needs .* \(5, 6\), got"):
        AffineMap(("y", "u"), (4, 2), np.zeros(shape), np.zeros(5))
