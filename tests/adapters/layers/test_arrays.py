"""The transposes and casts between torch batches and NumPy columns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchmor.adapters.layers.arrays import to_array, to_batch, to_columns, to_tensor

shapes = st.tuples(st.integers(0, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))


@given(shapes)
def test_there_and_back(shape):
    """Law: ``to_batch(to_columns(batch), batch, shape) == batch``; sample i is column i, its state in C order."""
    batch, state = shape
    y = torch.randn(batch, *state)
    columns = to_columns(y)
    assert columns.shape == (int(np.prod(state)), batch) and columns.dtype == np.float64
    assert torch.equal(to_batch(columns, y, state), y)
    for i in range(batch):
        assert columns[:, i].tolist() == y[i].flatten().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    y = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    assert to_columns(y).dtype == to_array(y).dtype == np.float64
    assert to_batch(to_columns(y), y).dtype == to_tensor(to_array(y), dtype).dtype == dtype
    assert torch.equal(to_batch(to_columns(y), y), y) and torch.equal(to_tensor(to_array(y), dtype), y)


def test_batch_of_strided_columns():
    columns = np.arange(12.0).reshape(3, 4)
    assert to_batch(columns[:, ::2], torch.zeros(())).tolist() == [[0, 4, 8], [2, 6, 10]]
    assert to_batch(columns.T[::-1].T, torch.zeros(()), (3, 1)).shape == (4, 3, 1)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1][::-1]])
def test_tensors_keep_the_layout_and_own_their_memory(layout):
    array = layout(np.arange(6.0).reshape(2, 3))
    tensor = to_tensor(array, torch.float64)
    assert tensor.tolist() == array.tolist() and tensor.is_contiguous()
    tensor[0, 0] = 7.0
    assert array[0, 0] == 0.0
    back = to_array(tensor)
    back[0, 0] = 8.0
    assert tensor[0, 0] == 7.0


def test_integers_become_floats():
    assert to_tensor(np.eye(2, dtype=int), torch.float32).dtype == torch.float32


@pytest.mark.gpu
def test_devices():
    y = torch.randn(2, 3, device="cuda")
    assert to_batch(to_columns(y), y).device == y.device
    assert to_tensor(to_array(y), torch.float32, "cuda").is_cuda
