"""Indices that depend on the time, the input or the state: of samples of controls, tables and embeddings."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.planning import unsampled_stages

GENERATOR = torch.Generator().manual_seed(0)
TIMES = torch.linspace(0, 1, 11, dtype=torch.float64)
TABLE = torch.randn(11, 6, generator=GENERATOR, dtype=torch.float64)


def samples(u):
    return u.reshape(-1, 11, 2)


def linear(i, t, u):
    share = (t - TIMES[i - 1]) / (TIMES[i] - TIMES[i - 1])
    return (1 - share) * samples(u)[:, i - 1] + share * samples(u)[:, i]


def slot(t):
    return (t * 10).long()


def driven(value):
    return lambda t, y, u: torch.tanh(y + value(t, u).repeat(1, 3))


FUNCTIONS = {
    "searchsorted": driven(lambda t, u: linear(torch.searchsorted(TIMES, t).clamp(1, 10), t, u)),
    "searchsorted, right": driven(lambda t, u: linear(torch.searchsorted(TIMES, t, right=True).clamp(1, 10), t, u)),
    "searchsorted, side": driven(lambda t, u: samples(u)[:, torch.searchsorted(TIMES, t, side="right") - 1]),
    "bucketize": driven(lambda t, u: linear(torch.bucketize(t, TIMES).clamp(1, 10), t, u)),
    "index_select": driven(lambda t, u: samples(u).index_select(1, slot(t).reshape(1))[:, 0]),
    "gather": driven(lambda t, u: samples(u).gather(1, slot(t).expand(len(u), 1, 2))[:, 0]),
    "ellipsis": driven(lambda t, u: samples(u).transpose(1, 2)[..., slot(t)]),
    "from the end": driven(lambda t, u: samples(u)[:, -slot(t) - 1, None][:, 0]),
    "several": driven(lambda t, u: samples(u)[:, torch.stack([slot(t) // 2, slot(t) // 3])].sum(1)),
    "two numbers": lambda t, y, u: y.tanh() + samples(u)[:, slot(t), (t * 2).long()][:, None],
    "int32": driven(lambda t, u: samples(u)[:, (t * 10).int()]),
    "table": lambda t, y, u: y * TABLE[slot(t)],
    "take_along_dim": lambda t, y, u: y.tanh() + TABLE.take_along_dim(slot(t).reshape(1, 1), 0),
    "embedding of t": lambda t, y, u: y * F.embedding(slot(t), TABLE),
    "embedding of u": lambda t, y, u: y.tanh() + F.embedding((u[:, 0].abs() * 3).long().clamp(0, 10), TABLE),
    "table of u": lambda t, y, u: y + TABLE[(u[:, 0].abs() * 3).long().clamp(0, 10)],
    "table of y": lambda t, y, u: y.tanh() + TABLE[(y[:, 0].abs() * 3).long().clamp(0, 10)],
    "component of y": lambda t, y, u: y.tanh() + y[:, (t * 5).long(), None],
    "state among boundaries": lambda t, y, u: 0.1 * torch.searchsorted(TIMES, y).to(y.dtype) - y,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_exact(name):
    f = FUNCTIONS[name]
    y, u = (torch.randn(3, size, generator=GENERATOR, dtype=torch.float64) for size in (6, 22))
    chain = trace(f, y, u, 0.31)
    for t in (0.02, 0.27, 0.52, 0.77, 0.93):
        y, u = (torch.randn(5, size, generator=GENERATOR, dtype=torch.float64) for size in (6, 22))
        expected = f(torch.tensor(t, dtype=torch.float64), y, u).numpy().T
        np.testing.assert_allclose(chain(y.numpy().T, u.numpy().T, t), expected, rtol=1e-12, atol=1e-13)


def test_choices_of_samples_are_not_sampled_themselves():
    y, u = (torch.randn(3, size, generator=GENERATOR, dtype=torch.float64) for size in (6, 22))
    chain = trace(FUNCTIONS["index_select"], y, u, 0.31)
    (product,) = (name for name, why in unsampled_stages(chain).items() if "samples of the input" in why)
    assert next(stage for stage in chain.stages if stage.name == product).size == 22
