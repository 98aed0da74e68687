"""ODE functions in torch, as people write them, one of each kind, on few unknowns.

``CATALOGUE[name].function()`` builds one, always with the same float64 weights, in eval mode; ``traced(name)`` is its
stage chain. Each law of a stage chain is one test over all of them, most of them with ``CASES``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters.layers.ode_layer import OdeFunction
from torchmor.adapters.tracing import classifier
from torchmor.engine.stages import StageChain


@dataclass(frozen=True)
class Entry:
    """One kind of ODE function.

    Parameters
    ----------
    make
        Returns a new function f(y), f(t, y) or f(t, y, u).
    shape
        Shape of one sample's state.
    stages
        Number of stages of its chain.
    p
        Number of inputs; 0 without.
    reads_time
        Whether its values depend on t.
    """

    make: Callable[[], Callable[..., Tensor]]
    shape: tuple[int, ...]
    stages: int = 1
    p: int = 0
    reads_time: bool = False

    @property
    def n(self) -> int:
        return prod(self.shape)

    def function(self) -> Callable[..., Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            f = self.make()
        return f.double().eval() if isinstance(f, nn.Module) else f

    def example(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """States (batch, …) and inputs (batch, p)."""
        generator = torch.Generator().manual_seed(seed)
        y = torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64)
        u = torch.randn(batch, self.p, generator=generator, dtype=torch.float64)
        return y, (u if self.p else None)

    def columns(self, k: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
        """The same as columns: states (n, k) and inputs (p, k)."""
        y, u = self.example(k, seed)
        return y.reshape(k, -1).numpy().T, (None if u is None else u.numpy().T)

    def values(self, y: np.ndarray, u: np.ndarray | None = None, t: float = 0.0) -> np.ndarray:
        """f at columns, computed by torch: the reference of all laws."""
        f, u = OdeFunction(self.function()), None if u is None else rows(u).expand(y.shape[1], -1)
        with torch.no_grad():
            value = f(torch.tensor(t, dtype=torch.float64), self.batch(y), u)
        return value.detach().reshape(y.shape[1], -1).numpy().T

    def batch(self, y: np.ndarray) -> Tensor:
        """States as f takes them, (batch, …)."""
        return rows(y).reshape(-1, *self.shape)


def rows(columns: np.ndarray | None) -> Tensor | None:
    return None if columns is None else torch.from_numpy(columns.T.copy())


@cache
def traced(name: str, opaque: bool = False) -> StageChain:
    """Stage chain of an entry, with matrices or with maps that are known by their products only."""
    entry = FUNCTIONS[name]
    with patch.object(classifier, "DENSE_ENTRIES", 0 if opaque else classifier.DENSE_ENTRIES):
        return classifier.trace(OdeFunction(entry.function()), *entry.example())


def module(forward: Callable[..., Tensor], **parts) -> nn.Module:
    """A module with the given parts and forward(self, …)."""
    result = type("Custom", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(result, name, part)
    return result


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


# -- dense -------------------------------------------------------------------------------------------------------------


def rate_network(self, t, y, u):
    return -y + torch.tanh(y) @ self.W.T + u @ self.B.T


def skip_links(self, t, y):
    h = torch.tanh(self.A(y))
    return h + self.B(torch.sigmoid(self.C(h) + y)) - 0.2 * y


def upwind(t, y):
    z = torch.zeros_like(y)
    z[:, 1:] = y[:, :-1] - y[:, 1:]
    z[:, 0] = 1.0 - y[:, 0]
    return z


class Counted(nn.Module):
    """Counts its calls, works in place, and keeps the last time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.nfe = 0
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, t, y):
        self.nfe += 1
        self.calls += 1
        self.t = t
        z = self.net(y)
        z -= y
        return z.mul_(0.5)


def augmented(self, t, y):
    return torch.cat([self.net(y), torch.zeros(y.shape[0], 2, dtype=y.dtype, device=y.device)], dim=1)


def closure() -> Callable[[Tensor, Tensor], Tensor]:
    weight = torch.randn(5, 5, dtype=torch.float64)
    return lambda t, y: torch.tanh(y @ weight) - y


def einsum(self, t, y):
    return torch.einsum("bpc,cd->bpd", y, self.W).tanh() + torch.einsum("pq,bqc->bpc", self.L, y)


# -- time --------------------------------------------------------------------------------------------------------------


class TimeChannelConv(nn.Module):
    """torchdiffeq's example: the time is one more channel of a convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t, y):
        return self.conv(torch.cat([torch.ones_like(y[:, :1]) * t, y], dim=1))


class TimeAttribute(nn.Module):
    """Gets the time as an attribute."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 6)

    def forward(self, y):
        t = self.t * torch.ones(y.shape[0], 1, dtype=y.dtype)
        return self.linear(torch.cat([y, t], dim=1)).tanh()


def set_time(self, t, y):
    self.layer.t = t
    return self.layer(y)


def embedded_time(self, t, y):
    phases = t * torch.arange(1, 4, dtype=y.dtype, device=y.device)
    embedding = self.embed(torch.cat([phases.sin(), phases.cos()])[None])
    return self.out(torch.tanh(self.into(y) + embedding))


class ConcatSquash(nn.Module):
    """A linear layer with a gate and a bias that depend on the time."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer, self.gate = nn.Linear(inputs, outputs), nn.Linear(1, outputs)
        self.bias = nn.Linear(1, outputs, bias=False)

    def forward(self, t, y):
        t = t.reshape(1, 1).to(y)
        return self.layer(y) * torch.sigmoid(self.gate(t)) + self.bias(t)


# -- convolutions ------------------------------------------------------------------------------------------------------


def conv(**options) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(4, 4, 3, **{"padding": 1} | options), nn.Tanh())


def batch_norm() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 1))
    for _ in range(3):
        net(torch.randn(5, 2, 4, 4) + 0.3)  # statistics that are not trivial
    return net


def functional(self, t, y):
    h = F.conv2d(y, self.k, self.b, padding=1)
    return F.linear(torch.tanh(h.flatten(1)), self.W).view_as(y)


# -- normalisation -----------------------------------------------------------------------------------------------------


def varied(net: nn.Module) -> nn.Module:
    """Give all normalisations a scale and shift that are not trivial."""
    for part in net.modules():
        for name, p in part.named_parameters(recurse=False):
            if "Norm" in type(part).__name__:
                nn.init.normal_(p, float(name == "weight"), 0.3)
    return net


class GroupNormalised(nn.Module):
    """torchdiffeq's example in full: group normalisation, and convolutions with a time channel."""

    def __init__(self, channels, groups):
        super().__init__()
        self.conv1, self.conv2 = TimeChannelConv(channels), TimeChannelConv(channels)
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(groups, channels) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        out = self.conv1(t, self.relu(self.norm1(y)))
        return self.norm3(self.conv2(t, self.relu(self.norm2(out))))


def u_net(self, t, y):
    fine = torch.relu(self.fine(y))
    coarse = torch.relu(self.down(fine))
    return self.out(torch.cat([fine, self.up(coarse)], dim=1))


# -- products and gates ------------------------------------------------------------------------------------------------


def lotka_volterra(self, t, y):
    hare, lynx = y[:, 0::2], y[:, 1::2]
    eaten = hare * lynx
    return torch.stack([self.a * hare - eaten, eaten - self.b * lynx], dim=2).flatten(1)


def gru(self, t, y, u):
    r = torch.sigmoid(self.wr(u) + self.ur(y))
    z = torch.sigmoid(self.wz(u) + self.uz(y))
    h = torch.tanh(self.wh(u) + self.uh(r * y))
    return (1 - z) * (h - y)


def gru_parts() -> dict[str, nn.Module]:
    return {f"{kind}{gate}": nn.Linear(3 if kind == "w" else 6, 6) for kind in "wu" for gate in "rzh"}


def second_order(self, t, y):
    x, v = y.chunk(2, dim=1)
    return torch.cat([v, -torch.sin(x) - 0.1 * v + self.force(x)], dim=1)


def controlled(self, t, y, u):
    """A Neural CDE: a matrix of the state times the derivative of its control."""
    return (self.F(y).view(-1, 5, 3) @ u[:, :, None])[:, :, 0]


def hypernetwork(self, t, y):
    """Weights that are functions of the time."""
    W, b = self.weights(t.reshape(1, 1)).split((24, 4), dim=1)
    return torch.einsum("bi,wi->bw", y, W.view(4, 6)).add(b).tanh() @ self.V


def mixture(self, t, y):
    """Two experts, weighed by a softmax that is written out."""
    weights = torch.exp(self.gate(y))
    weights = weights / weights.sum(1, keepdim=True)
    return (weights[:, :, None] * torch.stack([self.a(y), torch.tanh(self.b(y))], dim=1)).sum(1)


def predator_prey(self, t, y):
    """Known physics, and a network for the rest."""
    x, v = y[:, :1], y[:, 1:]
    known = torch.cat([1.5 * x - x * v, x * v - 3 * v], dim=1)
    return known + self.rest(y)


CATALOGUE = {
    "dense": Entry(lambda: module(lambda self, t, y: torch.tanh(self.A(y)), A=nn.Linear(9, 9)), (9,)),
    "sequential": Entry(lambda: nn.Sequential(nn.Linear(9, 9), nn.Tanh()), (9,)),
    "scaled": Entry(
        lambda: module(lambda self, t, y: 1 - 0.5 * torch.tanh(2 * self.A(y) / 3) / 7, A=nn.Linear(6, 6)), (6,)
    ),
    "one hidden layer": Entry(lambda: nn.Sequential(nn.Linear(6, 14), nn.Softplus(), nn.Linear(14, 6)), (6,)),
    "two hidden layers": Entry(
        lambda: nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 8), nn.SiLU(), nn.Linear(8, 5)), (5,), 2
    ),
    "three layers": Entry(
        lambda: nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(6, 6), nn.ELU()))), (6,), 3
    ),
    "classic": Entry(
        lambda: module(
            lambda self, t, y, u: torch.tanh(self.A(y)) + self.Z(u),
            A=nn.Linear(10, 10),
            Z=nn.Linear(3, 10, bias=False),
        ),
        (10,),
        p=3,
    ),
    "rate network": Entry(lambda: module(rate_network, W=parameter(8, 8), B=parameter(8, 2)), (8,), p=2),
    "skip links": Entry(lambda: module(skip_links, **{name: nn.Linear(6, 6) for name in "ABC"}), (6,), 2),
    "scalar": Entry(lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), (1,)),
    "points and channels": Entry(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), (3, 4)),
    "counted, in place": Entry(Counted, (8,)),
    "augmented": Entry(lambda: module(augmented, net=nn.Sequential(nn.Linear(6, 4), nn.Tanh())), (6,)),
    "einsum": Entry(lambda: module(einsum, W=parameter(4, 4), L=parameter(3, 3)), (3, 4)),
    "closure": Entry(closure, (5,)),
    "dropout": Entry(lambda: nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Tanh()), (5,)),
    "weight normalised": Entry(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh()), (5,)
    ),
    # affine
    "linear": Entry(lambda: nn.Linear(7, 7, bias=False), (7,), 0),
    "affine": Entry(
        lambda: module(lambda self, t, y, u: self.A(y) + t * self.b + u, A=nn.Linear(4, 4), b=parameter(4)),
        (4,),
        0,
        p=4,
        reads_time=True,
    ),
    "decay": Entry(lambda: lambda t, y: -0.5 * y, (5,), 0),
    "mean field": Entry(
        lambda: module(lambda self, t, y: self.A(y - y.mean(1, keepdim=True)), A=nn.Linear(6, 6)), (6,), 0
    ),
    "constant": Entry(lambda: module(lambda self, t, y: self.b.expand_as(y), b=parameter(6)), (6,), 0),
    "zero": Entry(lambda: lambda t, y: torch.zeros_like(y), (3,), 0),
    "assigned in place": Entry(lambda: upwind, (6,), 0),
    # time
    "forcing": Entry(
        lambda: module(lambda self, t, y: torch.sin(t) * self.b + t * y - y, b=parameter(5)),
        (5,),
        2,
        reads_time=True,
    ),
    "time channel": Entry(lambda: TimeChannelConv(3), (3, 4, 4), 0, reads_time=True),
    "time channels": Entry(
        lambda: module(
            lambda self, t, y: self.b(t, torch.relu(self.a(t, torch.relu(y)))),
            a=TimeChannelConv(2),
            b=TimeChannelConv(2),
        ),
        (2, 4, 3),
        2,
        reads_time=True,
    ),
    "time as attribute": Entry(lambda: module(set_time, layer=TimeAttribute()), (6,), reads_time=True),
    "time, embedded": Entry(
        lambda: module(
            embedded_time,
            embed=nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 7)),
            into=nn.Linear(5, 7),
            out=nn.Linear(7, 5),
        ),
        (5,),
        4,
        reads_time=True,
    ),
    "concat-squash": Entry(
        lambda: module(
            lambda self, t, y: self.b(t, torch.tanh(self.a(t, y))), a=ConcatSquash(5, 8), b=ConcatSquash(8, 5)
        ),
        (5,),
        2,
        reads_time=True,
    ),
    # convolutions
    "convolution": Entry(conv(), (4, 5, 4)),
    "convolution, dilated": Entry(conv(dilation=2, padding=2), (4, 5, 6)),
    "convolution, grouped": Entry(conv(groups=2), (4, 4, 4)),
    "convolution, circular": Entry(conv(padding_mode="circular"), (4, 4, 5)),
    "convolution, reflected": Entry(conv(padding_mode="reflect"), (4, 4, 5)),
    "convolution, replicated": Entry(conv(padding_mode="replicate"), (4, 4, 5)),
    "convolution, padded on one side": Entry(
        lambda: nn.Sequential(nn.ZeroPad2d((2, 0, 1, 1)), nn.Conv2d(2, 2, 3), nn.ReLU()), (2, 4, 5)
    ),
    "convolution in 1d": Entry(
        lambda: nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.GELU(), nn.Conv1d(5, 3, 1)), (3, 8)
    ),
    "convolution in 3d": Entry(lambda: nn.Sequential(nn.Conv3d(2, 2, 3, padding="same"), nn.Tanh()), (2, 3, 3, 3)),
    "residual": Entry(
        lambda: module(
            lambda self, t, y: self.b(torch.relu(self.a(y))) - y,
            a=nn.Conv2d(2, 3, 3, padding=1),
            b=nn.Conv2d(3, 2, 3, padding=1),
        ),
        (2, 4, 4),
    ),
    "bottleneck": Entry(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(4, 2, 4, 2, 1)), (2, 6, 4)
    ),
    "pooling": Entry(
        lambda: nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Upsample(scale_factor=2, mode="bilinear")
        ),
        (2, 4, 6),
    ),
    "pooling, nearest": Entry(
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Sigmoid(), nn.UpsamplingNearest2d(scale_factor=2)),
        (2, 4, 4),
    ),
    "batch normalisation": Entry(batch_norm, (2, 4, 4)),
    "flattened": Entry(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 18), nn.Tanh(), nn.Unflatten(1, (2, 3, 3))), (2, 3, 3)
    ),
    "functional": Entry(
        lambda: module(functional, k=parameter(2, 2, 3, 3), b=parameter(2), W=parameter(18, 18)), (2, 3, 3)
    ),
    "residual, activated": Entry(
        lambda: module(
            lambda self, t, y: torch.relu(y + 0.5 * torch.tanh(self.a(y)).flip(1)), a=nn.Conv2d(2, 2, 3, padding=1)
        ),
        (2, 3, 4),
    ),
    "U-net": Entry(
        lambda: module(
            u_net,
            fine=nn.Conv2d(2, 3, 3, padding=1),
            down=nn.Conv2d(3, 4, 4, 2, 1),
            up=nn.ConvTranspose2d(4, 3, 4, 2, 1),
            out=nn.Conv2d(6, 2, 1),
        ),
        (2, 4, 4),
        2,
    ),
    # normalisation
    "group normalisation": Entry(lambda: varied(GroupNormalised(4, 2)), (4, 3, 3), 9, reads_time=True),
    "layer normalisation": Entry(
        lambda: varied(nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 6))), (6,), 3
    ),
    "layer normalisation of images": Entry(
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.LayerNorm((2, 3, 3), elementwise_affine=False)),
        (2, 3, 3),
        3,
    ),
    "instance normalisation": Entry(
        lambda: varied(
            nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.InstanceNorm2d(3, affine=True), nn.Conv2d(3, 2, 1)
            )
        ),
        (2, 3, 4),
        4,
    ),
    "RMS normalisation": Entry(lambda: varied(nn.Sequential(nn.Linear(5, 5), nn.RMSNorm(5, 1e-5), nn.SiLU())), (5,), 3),
    "on a sphere": Entry(
        lambda: module(lambda self, t, y: self.A(F.normalize(y, dim=1)) - y, A=nn.Linear(6, 6)), (6,), 3
    ),
    # products and gates
    "square": Entry(lambda: lambda t, y: y * y - y, (5,)),
    "logistic": Entry(lambda: lambda t, y: 2.0 * y * (1 - y / 3), (5,)),
    "rational": Entry(lambda: lambda t, y: -y / (1 + y**2), (5,)),
    "piecewise": Entry(lambda: lambda t, y: torch.where(y > 0, -y, torch.sin(y)), (5,)),
    "Burgers": Entry(lambda: lambda t, y: -y * (y - y.roll(1, 1)), (8,)),
    "Lotka-Volterra": Entry(lambda: module(lotka_volterra, a=parameter(3), b=parameter(3)), (6,)),
    "gate": Entry(lambda: module(lambda self, t, y: y * torch.sigmoid(self.W(y)), W=nn.Linear(7, 7)), (7,)),
    "gated linear unit": Entry(lambda: nn.Sequential(nn.Linear(5, 10), nn.GLU()), (5,)),
    "GRU": Entry(lambda: module(gru, **gru_parts()), (6,), 2, p=3),
    "GRU cell": Entry(lambda: module(lambda self, t, y, u: self.cell(u, y) - y, cell=nn.GRUCell(3, 6)), (6,), 2, p=3),
    "controlled": Entry(
        lambda: module(controlled, F=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 15), nn.Tanh())),
        (5,),
        2,
        p=3,
    ),
    "hypernetwork": Entry(
        lambda: module(
            hypernetwork, weights=nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 28)), V=parameter(4, 6)
        ),
        (6,),
        3,
        reads_time=True,
    ),
    "mixture of experts": Entry(
        lambda: module(mixture, gate=nn.Linear(4, 2), a=nn.Linear(4, 4), b=nn.Linear(4, 4)), (4,), 4
    ),
    "physics and network": Entry(
        lambda: module(predator_prey, rest=nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 2))), (2,), 2
    ),
    "second order": Entry(lambda: module(second_order, force=nn.Sequential(nn.Linear(4, 4), nn.Tanh())), (8,), 2),
}

#: Every componentwise activation of torch.nn.
ACTIVATIONS = {
    "CELU": lambda: nn.CELU(0.7),
    "ELU": lambda: nn.ELU(0.8),
    "GELU": nn.GELU,
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "Hardshrink": nn.Hardshrink,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardswish": nn.Hardswish,
    "Hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "LogSigmoid": nn.LogSigmoid,
    "Mish": nn.Mish,
    "PReLU": nn.PReLU,
    "PReLU per channel": lambda: nn.PReLU(3),
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6,
    "RReLU": nn.RReLU,
    "SELU": nn.SELU,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "Softplus": lambda: nn.Softplus(2.0, 5.0),
    "Softshrink": nn.Softshrink,
    "Softsign": nn.Softsign,
    "Tanh": nn.Tanh,
    "Tanhshrink": nn.Tanhshrink,
    "Threshold": lambda: nn.Threshold(0.1, -0.3),
}


def _activated(make: Callable[[], nn.Module]) -> Entry:
    return Entry(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), make()), (3, 2, 2))


#: The catalogue, and one function for each activation.
FUNCTIONS = CATALOGUE | {name: _activated(make) for name, make in ACTIVATIONS.items()}

#: Entries whose maps are also tried as opaque ones, known by their products only.
OPAQUE = (
    "rate network",
    "two hidden layers",
    "skip links",
    "affine",
    "constant",
    "assigned in place",
    "forcing",
    "time channels",
    "convolution, circular",
    "convolution, grouped",
    "residual",
    "bottleneck",
    "pooling",
    "flattened",
    "group normalisation",
    "instance normalisation",
    "controlled",
    "gate",
    "GRU",
    "second order",
)
CASES = [(name, False) for name in CATALOGUE] + [(name, True) for name in OPAQUE]
CASE_NAMES = [f"{name}, opaque" if opaque else name for name, opaque in CASES]
