"""Stage chains and chain modules are the same thing twice."""

import numpy as np
import pytest
import scipy.sparse as sps
import torch
from scipy.sparse.linalg import aslinearoperator

from catalogue import CATALOGUE, traced
from torchmor.adapters.models.conversion import MAX_ENTRIES, chain_to_module, module_to_chain
from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import SizeError
from torchmor.engine.expressions import Expression
from torchmor.engine.stages import Stage, StageChain

catalogue = pytest.mark.parametrize("name", CATALOGUE)
MATRIX = np.arange(6.0).reshape(2, 3)


@catalogue
def test_there_and_back(name):
    """Law: ``module_to_chain(chain_to_module(chain))`` has the same maps, functions and values."""
    chain = traced(name)
    back = module_to_chain(chain_to_module(chain))
    columns = CATALOGUE[name].columns(3)
    np.testing.assert_allclose(back(*columns, 0.3), chain(*columns, 0.3), rtol=1e-13, atol=1e-13)
    assert [stage.expression for stage in back.stages] == [stage.expression for stage in chain.stages]
    assert [affine.size for affine in back.maps] == [affine.size for affine in chain.maps]
    assert back.input_size == chain.input_size and back.reads("t") == chain.reads("t")


@pytest.mark.parametrize("kind", [np.asarray, sps.csr_array, sps.coo_array, aslinearoperator])
def test_linear_parts_of_any_kind_become_dense(kind):
    chain = StageChain(3, 0, (), AffineMap(("y",), (3,), kind(MATRIX), np.array([1.0, -1.0])))
    module = chain_to_module(chain, torch.float32)
    assert module.output.weight.tolist() == MATRIX.tolist() and module.output.bias.tolist() == [1.0, -1.0]
    assert module.output.weight.dtype == torch.float32 and module.output.weight.requires_grad


def test_stages_are_renamed_to_their_numbers():
    first = Stage("late", Expression.of("tanh"), AffineMap(("y",), (3,), MATRIX, np.zeros(2)))
    second = Stage("g1", Expression.of("sin"), AffineMap(("late",), (2,), np.eye(2), np.zeros(2)))
    chain = StageChain(3, 0, (first, second), AffineMap(("g1", "late"), (2, 2), np.eye(2, 4), np.zeros(2)))
    module = chain_to_module(chain)
    assert [m.sources for m in (*module.stages, module.output)] == [{"y": 3}, {"g1": 2}, {"g2": 2, "g1": 2}]
    y = np.ones((3, 1))
    np.testing.assert_allclose(module(torch.ones(1, 3, dtype=torch.float64)).detach().T, chain(y), rtol=1e-14)


def test_module_has_tensors_of_its_own():
    chain = StageChain(3, 0, (), AffineMap(("y",), (3,), MATRIX.copy(), np.zeros(2)))
    module = chain_to_module(chain)
    back = module_to_chain(module)
    with torch.no_grad():
        module.output.weight.zero_()
    for each in (chain, back):
        np.testing.assert_array_equal(each.output.linear, MATRIX)


def test_too_large_maps_are_refused():
    n = 2**14
    opaque = aslinearoperator(sps.eye_array(n))
    assert n * n > MAX_ENTRIES
    with pytest.raises(SizeError, match=f"got one of {n} × {n}: reduce the state, or the points of the stages"):
        chain_to_module(StageChain(n, 0, (), AffineMap(("y",), (n,), opaque, np.zeros(n))))
