"""What a layer of an ODE function does to its values besides the usual: (layer, h, t) → h.

h is (batch, channels, …); layers have buffers `order`, `counts`, `shift` and `place`, and the dtype of the
user's network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def by_channel(values: Tensor, h: Tensor) -> Tensor:
    """One value for each channel, in a form that multiplies h (batch, channels, …)."""
    return values.reshape(-1, *(1 for _ in h.shape[2:]))


def precision(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def tensor_without_dtype(self, h, t):
    return h * torch.tensor(0.7) + torch.tensor([0.3])


def range_without_dtype(self, h, t):
    return h + by_channel(torch.linspace(0, 1, h.shape[1]), h)


def integers(self, h, t):
    return h * by_channel(torch.arange(1, h.shape[1] + 1), h) / h.shape[1]


def range_with_dtype(self, h, t):
    return h + by_channel(torch.arange(h.shape[1], dtype=min(self.dtype, h.dtype, key=precision)) / 7, h)


def range_in_single_precision(self, h, t):
    return h + by_channel(torch.arange(h.shape[1], dtype=torch.float32) / 8, h)


def zeros_without_dtype(self, h, t):
    return torch.cat([h[:, :-1], torch.zeros(len(h), 1, *h.shape[2:])], 1)


def ones_of_time(self, h, t):
    return h + torch.ones(h.shape[1:], dtype=h.dtype) * t


def full_like(self, h, t):
    return h - torch.full_like(h, 0.1) + h.new_full((1,), 0.3)


def permuted(self, h, t):
    return h[:, self.order]


def counted_weights(self, h, t):
    return h * by_channel(self.counts, h) / 2


def masked(self, h, t):
    return torch.where(by_channel(self.order > 1, h), h, 0.25 * h)


def in_place(self, h, t):
    h = h * 0.9
    h -= 0.1
    h[:, 0] = 0.5
    return h.mul_(1.1)


def half_in_place(self, h, t):
    h = h.clone()
    h[:, 1:] += 0.3 * h[:, :-1]
    return h


def shared(self, h, t):
    squared = h.square()
    return squared / (1 + squared) + 0.1 * squared


def detached(self, h, t):
    return h + 0.5 * torch.tanh(h.detach())


def rolled(self, h, t):
    return h - 0.5 * h.roll(1, 1) + 0.1 * h.flip(1)


def centred(self, h, t):
    return h - h.mean(1, keepdim=True)


def summed(self, h, t):
    return h.cumsum(1) / h.shape[1]


def split(self, h, t):
    return torch.cat([part * (1 + i) for i, part in enumerate(h.split(2, 1))], 1)


def stacked(self, h, t):
    return torch.stack([h, torch.tanh(h)], 1).sum(1)


def outer(self, h, t):
    flat = h.flatten(1)
    return (torch.einsum("bi,bj->bij", flat, torch.tanh(flat)) @ self.vector(h)).view_as(h)


def own_training_flag(self, h, t):
    return F.dropout(h, 0.4, self.training) if self.training else 0.9 * h


def read_buffer(self, h, t):
    return h + by_channel(self.shift, h)


def time_decay(self, h, t):
    return h * torch.exp(-t) + torch.cos(3 * t)


def softmax(self, h, t):
    return h.softmax(1)


def maximum(self, h, t):
    return h - h.amax(1, keepdim=True)


def batch_statistics(self, h, t):
    return h - h.mean(0)


def fourier(self, h, t):
    return torch.fft.irfft(torch.fft.rfft(h, dim=1) * 0.5, n=h.shape[1], dim=1)


def lower_precision(self, h, t):
    return torch.tanh(h.float() if self.dtype == torch.float64 else h).to(h.dtype)


QUIRKS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "tensor without dtype": tensor_without_dtype,
    "range without dtype": range_without_dtype,
    "range of integers": integers,
    "range with dtype": range_with_dtype,
    "range in single precision": range_in_single_precision,
    "zeros without dtype": zeros_without_dtype,
    "ones times t": ones_of_time,
    "full_like": full_like,
    "integer buffer as index": permuted,
    "integer buffer as weights": counted_weights,
    "mask": masked,
    "in place": in_place,
    "assigned slices": half_in_place,
    "shared subexpression": shared,
    "detached": detached,
    "rolled": rolled,
    "centred": centred,
    "cumulative sum": summed,
    "split": split,
    "stacked": stacked,
    "outer product": outer,
    "reads its training flag": own_training_flag,
    "shift": read_buffer,
    "decay in time": time_decay,
}

#: Those that are drawn seldom.
RARE_QUIRKS = {
    "softmax": softmax,
    "maximum": maximum,
    "batch statistics": batch_statistics,
    "Fourier": fourier,
    "lower precision": lower_precision,
}

#: Those that may be refused, with the reason: they couple components or samples, or leave float64.
REFUSED = {"softmax", "maximum", "batch statistics", "lower precision"}
