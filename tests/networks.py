"""Small networks with ODE layers, as people build them, with arguments to call them.

``NETWORKS[name].network()`` builds one, always with the same float64 weights, in eval mode. Each law of
`reduce_network` and of files is one test over all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters import ODELayer

DOUBLE = {"dtype": torch.float64}


@dataclass(frozen=True)
class Entry:
    """One network.

    Parameters
    ----------
    make
        Returns a new network.
    arguments
        Batch size → arguments of a call.
    layer
        Name of the ODE layer.
    sizes
        Sizes that reduce it, as arguments of `reduce_network`.
    """

    make: Callable[[], nn.Module]
    arguments: Callable[[int], tuple[Tensor, ...]]
    layer: str = "ode"
    sizes: dict[str, Any] = field(default_factory=lambda: {"state_dim": 4, "points": 5})

    def network(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.make().double().eval()

    def batch(self, size: int = 40, seed: int = 0) -> tuple[Tensor, ...]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return tuple(argument.double() for argument in self.arguments(size))


class Tanh(nn.Module):
    """y' = tanh(A y + b), which counts its evaluations."""

    def __init__(self, n):
        super().__init__()
        self.linear = nn.Linear(n, n)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return torch.tanh(self.linear(y))


class Rate(nn.Module):
    """A rate network, y' = −y + W tanh(y) + B u."""

    def __init__(self, n, p):
        super().__init__()
        self.recurrent, self.read = nn.Linear(n, n), nn.Linear(p, n, bias=False)

    def forward(self, t, y, u):
        return self.recurrent(torch.tanh(y)) - y + self.read(u)


class Gated(nn.Module):
    """Two stages, the second a product, and the time: y' = tanh(A g + c t) σ(B g) − y with g = ELU(C y)."""

    def __init__(self, n):
        super().__init__()
        self.first, self.value, self.gate = nn.Linear(n, 14), nn.Linear(14 + 1, n), nn.Linear(14, n)

    def forward(self, t, y):
        g = nn.functional.elu(self.first(y))
        channel = t.expand(len(y), 1)
        return torch.tanh(self.value(torch.cat([g, channel], 1))) * torch.sigmoid(self.gate(g)) - y


class Parts(nn.Module):
    """A network of parts and forward(self, …)."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *arguments):
        return self.run(self, *arguments)


def dense(n=10, **settings) -> nn.Module:
    """The classic: a stem, tanh(A y + b), a head."""
    ode = ODELayer(Tanh(n), **{"method": "rk4", **settings})
    return chain(stem=nn.Linear(5, n), ode=ode, head=nn.Linear(n, 3))


def chain(**parts) -> nn.Module:
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    return network


def convolutional() -> nn.Module:
    f = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Softplus())
    body = chain(norm=nn.BatchNorm2d(2), ode=ODELayer(f, method="midpoint", options={"step_size": 0.25}))
    stem, head = nn.Conv2d(1, 2, 3, 2, 1), nn.Linear(32, 3)
    return chain(stem=stem, body=body, drop=nn.Dropout(0.5), flat=nn.Flatten(), head=head)


def sampled() -> nn.Module:
    samples = {"input_times": (0.0, 0.25, 0.5, 1.0), "interpolation": "previous"}
    ode = ODELayer(Rate(10, 2), method="euler", options={"step_size": 0.1}, **samples)
    parts = {"stem": nn.Linear(5, 10), "ode": ode, "head": nn.Linear(10, 3)}
    return Parts(lambda self, y, u: self.head(self.ode(self.stem(y), u)), **parts)


def driven() -> nn.Module:
    def forward(self, x):
        return self.ode(self.stem(x), lambda t: torch.stack([x[:, 0] * t, torch.cos(x[:, 1] + t)], dim=1))

    return Parts(forward, stem=nn.Linear(5, 10), ode=ODELayer(Rate(10, 2), method="dopri5", rtol=1e-6, atol=1e-8))


def trajectories() -> nn.Module:
    ode = ODELayer(Gated(10), t=(1.0, 0.7, -0.5), method="heun3", output="trajectory")
    parts = {"stem": nn.Linear(5, 10), "ode": ode, "head": nn.Linear(10, 3)}
    return Parts(lambda self, x: self.head(self.ode(self.stem(x))).transpose(0, 1), **parts)


def repeated() -> nn.Module:
    """The layer is called twice, under two names."""
    parts = {"stem": nn.Linear(5, 10), "mid": nn.Linear(10, 10)}
    network = Parts(lambda self, x: self.again(self.mid(self.ode(self.stem(x)))), **parts)
    network.ode = network.again = ODELayer(Tanh(10), method="rk4")
    return network


def tied() -> nn.Module:
    """The stem and the head share a weight; a buffer comes along."""
    parts = {"stem": nn.Linear(5, 10), "ode": ODELayer(Tanh(10))}
    network = Parts(lambda self, x: self.ode(self.stem(x)) @ self.head.weight + self.shift, **parts)
    network.head = network.stem
    network.register_buffer("shift", torch.arange(5.0))
    return network


def vectors(*shape):
    return lambda batch: (torch.randn(batch, *shape),)


NETWORKS = {
    "dense": Entry(dense, vectors(5)),
    "dense, adaptive": Entry(lambda: dense(method="dopri5"), vectors(5)),
    "state kept": Entry(dense, vectors(5), sizes={"state_dim": "full", "points": 4}),
    "layer alone": Entry(lambda: ODELayer(Tanh(10), method="rk4"), vectors(10), ""),
    "convolutional": Entry(convolutional, vectors(1, 8, 8), "body.ode", {"state_dim": 6, "points": 12}),
    "sampled input": Entry(sampled, lambda batch: (torch.randn(batch, 5), torch.randn(batch, 4, 2))),
    "callable input": Entry(driven, vectors(5)),
    "trajectories": Entry(trajectories, vectors(5), sizes={"state_dim": 5, "points": [6, 7]}),
    "called twice": Entry(repeated, vectors(5)),
    "tied weights": Entry(tied, vectors(5)),
}
