"""Rows and columns: the only transposes and casts between torch batches and NumPy columns.

torch batches are rows (batch, …) in the network's dtype and device; pyMOR arrays are columns (n, k) in float64.
"""

import numpy as np
import torch


def to_columns(batch: torch.Tensor) -> np.ndarray:
    """Return a batch (batch, …) as float64 columns (n, batch), the state flattened."""
    return batch.detach().resolve_neg().flatten(1).to("cpu", torch.float64).numpy().T


def to_batch(
    columns: np.ndarray, like: torch.Tensor | None = None, shape: tuple[int, ...] | None = None
) -> torch.Tensor:
    """Return columns (n, batch) as a batch (batch, *shape), by default (batch, n).

    Its dtype and device are those of `like`, by default float64 on the CPU.
    """
    n, batch = columns.shape
    rows = torch.from_numpy(np.ascontiguousarray(columns.T, dtype=np.float64))
    rows = rows.reshape(batch, *((n,) if shape is None else shape))
    return rows if like is None else rows.to(like.device, like.dtype)


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return an array as a contiguous tensor of its own, in the same layout."""
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C")).to(device, dtype)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a float64 array of its own, in the same layout."""
    return tensor.detach().to("cpu", torch.float64, copy=True).numpy()
