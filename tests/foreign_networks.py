"""Networks with ODE layers as people write them without torchmor: modules that call torchdiffeq in their forward.

``FOREIGN[name].network()`` builds one, always with the same float64 weights, in eval mode. Each law of recognised
layers is one test over all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from networks import Parts, chain


@dataclass(frozen=True)
class Entry:
    """One network.

    Parameters
    ----------
    make
        Returns a new network.
    arguments
        Batch size → arguments of a call.
    n
        Size of the state as the solver has it.
    layer
        Name of the module that solves.
    reduced
        Name of the reduced layer.
    output
        What the module returns, in the words of `find_ode_layers`.
    input_attribute
        Where the input of the ODE function is.
    sizes
        Sizes that reduce it.
    """

    make: Callable[[], nn.Module]
    arguments: Callable[[int], tuple[Any, ...]]
    n: int
    layer: str = "block"
    reduced: str = "block"
    output: str = "final"
    input_attribute: str | None = None
    sizes: dict[str, Any] = field(default_factory=lambda: {"state_dim": 4, "points": 6})

    def network(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.make().double().eval()

    def batch(self, size: int = 12, seed: int = 0) -> tuple[Any, ...]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return tuple(a.double() if isinstance(a, Tensor) else a for a in self.arguments(size))

    def batches(self, count: int = 4, size: int = 12) -> list[tuple[Any, ...]]:
        return [self.batch(size, seed) for seed in range(count)]


class Field(nn.Module):
    """y' = C tanh(A y + b) − y, on the last dimension, with a counter."""

    def __init__(self, n=10, width=14):
        super().__init__()
        self.inner, self.outer, self.nfe = nn.Linear(n, width), nn.Linear(width, n), 0

    def forward(self, t, y):
        self.nfe += 1
        return self.outer(torch.tanh(self.inner(y))) - y


class TimeChannelConv(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t, x):
        x = torch.relu(self.conv1(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1)))
        return self.conv2(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))


class ImageBlock(nn.Module):
    """The form of torchdiffeq's MNIST example: adjoint, fixed times as an attribute, counter as a property."""

    def __init__(self, func):
        super().__init__()
        self.odefunc = func
        self.integration_time = torch.tensor([0, 1]).float()

    def forward(self, x):
        self.integration_time = self.integration_time.type_as(x)
        out = odeint_adjoint(self.odefunc, x, self.integration_time, rtol=1e-3, atol=1e-3)
        return out[1]

    @property
    def nfe(self):
        return self.odefunc.nfe


def images() -> nn.Module:
    stem, head = nn.Conv2d(1, 2, 3, 2, 1), nn.Linear(32, 3)
    return chain(stem=stem, block=ImageBlock(TimeChannelConv(2)), flat=nn.Flatten(), head=head)


class AugmentedBlock(nn.Module):
    """Zeros are appended to the state; times may be given; options of a fixed-step solver."""

    def __init__(self, func, zeros):
        super().__init__()
        self.func, self.zeros = func, zeros

    def forward(self, x, eval_times=None):
        times = torch.tensor([0, 1]).to(x) if eval_times is None else eval_times
        if self.zeros:
            x = torch.cat([x, torch.zeros(x.shape[0], self.zeros).to(x)], 1)
        out = odeint(self.func, x, times, method="rk4", options={"step_size": 0.2})
        return out[1] if eval_times is None else out


class SecondOrder(nn.Module):
    """Position and velocity, which starts at rest; returns the positions."""

    def __init__(self, d):
        super().__init__()
        self.force = Field(d)

    def acceleration(self, t, state):
        position, velocity = state.chunk(2, 1)
        return torch.cat([velocity, self.force(t, position) - 0.1 * velocity], 1)

    def forward(self, x, t):
        rest = torch.cat([x, torch.zeros_like(x)], 1)
        return odeint(self.acceleration, rest, t, method="rk4")[:, :, : x.shape[1]].transpose(0, 1)


class Trajectory(nn.Module):
    """Solves at given times, and returns all states, some, or in another order of axes."""

    def __init__(self, func, arrange=lambda states: states, **settings):
        super().__init__()
        self.func, self.arrange, self.settings = func, arrange, settings

    def forward(self, y0, t):
        return self.arrange(torchdiffeq.odeint(self.func, y0, t, **self.settings))


def sequence(arrange, **settings) -> nn.Module:
    parts = {"stem": nn.Linear(5, 10), "block": Trajectory(Field(), arrange, **settings), "head": nn.Linear(10, 3)}
    return Parts(lambda self, x, t: self.head(self.block(self.stem(x), t)), **parts)


class LatentODE(nn.Module):
    """Several samples of the initial state for each trajectory, (samples, batch, latent); times in each batch."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 2 * 10), nn.Linear(10, 3)
        arrange = lambda states: states.permute(1, 2, 0, 3)  # noqa: E731 - passed on
        self.block = Trajectory(Field(), arrange, method="dopri5", rtol=1e-3, atol=1e-4)

    def forward(self, x, t):
        mean, deviation = self.encoder(x).chunk(2, -1)
        samples = torch.stack([mean + quantile * deviation for quantile in (-0.5, 0.5, 1.0)])
        return self.decoder(self.block(samples, t)).mean(0)


class ODERNN(nn.Module):
    """Backward through the observations: a solve to the next one, and a jump by a GRU cell, with a mask."""

    def __init__(self):
        super().__init__()
        self.block = Trajectory(Field(), lambda states: states[-1], method="midpoint")
        self.cell, self.head = nn.GRUCell(4, 10), nn.Linear(10, 3)

    def forward(self, x, mask, t):
        h = x.new_zeros(len(x), 10)
        for i in reversed(range(len(t))):
            jumped = self.cell(x[:, i], h)
            h = torch.where(mask[:, i, None] > 0, jumped, h)
            end = t[i - 1] if i else t[i] - 0.1
            h = self.block(h, torch.stack([t[i], end]))
        return self.head(h)


def observations(batch):
    count = int(torch.randint(3, 6, ()))
    return torch.randn(batch, count, 4), (torch.rand(batch, count) > 0.3).float(), torch.rand(count).sort().values


def times(*range_):
    return lambda batch: (torch.randn(batch, 5), torch.linspace(*range_, 3 + int(torch.randint(3, ()))))


def solve_backward(func, y, ends=(1.0, -0.5)):
    return odeint_adjoint(func, y, torch.tensor(ends), adjoint_params=(), method="euler", options={"step_size": 0.25})


class OwnMethod(nn.Module):
    """The ODE function is a method of the block, and the solve in a function; the block alone is the network."""

    def __init__(self, n=10):
        super().__init__()
        self.linear = nn.Linear(n, n)

    def derivative(self, t, y):
        return torch.sin(self.linear(y) + t)

    def forward(self, y):
        return solve_backward(self.derivative, y)[-1]


class Driven(nn.Module):
    """An ODE function with an input that is kept as an attribute."""

    def __init__(self, n=10, p=2):
        super().__init__()
        self.inner, self.read, self.u = nn.Linear(n, n), nn.Linear(p, n), None

    def set_inputs(self, u):
        self.u = u

    def forward(self, t, y):
        u = self.u(t) if callable(self.u) else self.u
        return torch.tanh(self.inner(y) + self.read(u)) - y


class DrivenBlock(nn.Module):
    def __init__(self, func):
        super().__init__()
        self.func = func

    def forward(self, y, u=None):
        if u is not None:
            self.func.u = u
        return odeint(self.func, y, torch.tensor([0.0, 1.0], dtype=y.dtype), method="rk4")[-1]


def driven(set_input) -> nn.Module:
    def forward(self, x):
        return self.head(set_input(self, self.stem(x), x[:, :2]))

    return Parts(forward, stem=nn.Linear(5, 10), block=DrivenBlock(Driven()), head=nn.Linear(10, 3))


def by_setter(self, y, u):
    self.block.func.set_inputs(u)
    return self.block(y)


def by_attribute(self, y, u):
    self.block.func.u = lambda t: u * torch.cos(t)
    return self.block(y)


def by_argument(self, y, u):
    return self.block(y, u)


def vectors(*shape):
    return lambda batch: (torch.randn(batch, *shape),)


def augmenting(zeros):
    parts = {"stem": nn.Linear(5, 10 - zeros), "block": AugmentedBlock(Field(), zeros), "head": nn.Linear(10, 3)}
    return lambda: Parts(lambda self, x: self.head(self.block(self.stem(x))), **parts)


FOREIGN = {
    "images": Entry(images, vectors(1, 8, 8), 32),
    "optional times": Entry(augmenting(0), vectors(5), 10),
    "augmented": Entry(augmenting(3), vectors(5), 10, reduced="block.layer"),
    "trajectory": Entry(
        lambda: sequence(lambda states: states, method="heun3"),
        times(0, 1),
        10,
        reduced="block.layer",
        output="trajectory",
    ),
    "batch first": Entry(
        lambda: sequence(lambda states: states.transpose(0, 1), method="dopri5"),
        times(0, 1),
        10,
        reduced="block.layer",
        output="trajectory, axes (1, 0, 2)",
    ),
    "without the first": Entry(
        lambda: sequence(lambda states: states[1:].permute(1, 2, 0).transpose(1, 2), method="rk4"),
        times(1, 0),
        10,
        reduced="block.layer",
        output="trajectory from state 1, axes (1, 0, 2)",
    ),
    "some times": Entry(
        lambda: sequence(lambda states: states[[0, 2]], method="midpoint"),
        times(0, 2),
        10,
        reduced="block.layer",
        output="states (0, 2)",
    ),
    "second order": Entry(
        lambda: Parts(
            lambda self, x, t: self.head(self.block(self.stem(x), t)),
            stem=nn.Linear(5, 6),
            block=SecondOrder(6),
            head=nn.Linear(6, 3),
        ),
        times(0, 1),
        12,
        reduced="block.layer",
        output="trajectory, entries 0 to 5, axes (1, 0, 2)",
        sizes={"state_dim": 8, "points": 9},
    ),
    "latent ODE": Entry(LatentODE, times(0.1, 1), 10, reduced="block.layer", output="trajectory, axes (1, 2, 0, 3)"),
    "ODE-RNN": Entry(ODERNN, observations, 10, reduced="block.layer"),
    "method of its own": Entry(
        OwnMethod, vectors(10), 10, layer="", reduced="", sizes={"state_dim": 8, "points": "full"}
    ),
    "input by a setter": Entry(
        lambda: driven(by_setter), vectors(5), 10, reduced="block.layer", input_attribute="func.u"
    ),
    "input as a callable": Entry(
        lambda: driven(by_attribute), vectors(5), 10, reduced="block.layer", input_attribute="func.u"
    ),
    "input as an argument": Entry(
        lambda: driven(by_argument), vectors(5), 10, reduced="block.layer", input_attribute="func.u"
    ),
}
