"""Random networks with an ODE layer: features that people's networks have, drawn independently, on few unknowns.

``Case(seed)`` says what was drawn; ``case.network()`` builds the network, with the same weights in any dtype.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.adapters import ODELayer

FEATURES = 5  # of a sample, as the network gets it
CLASSES = 3

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "ELU in place": lambda: nn.ELU(0.7, inplace=True),
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "GELU": nn.GELU,
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "SELU": nn.SELU,
    "Mish": nn.Mish,
    "PReLU": nn.PReLU,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "Hardtanh": lambda: nn.Hardtanh(-0.8, 0.9),
    "softsign": nn.Softsign,
    "RReLU": nn.RReLU,
    "sine": lambda: Function(torch.sin),
    "clamped": lambda: Function(lambda x: x.clamp(-0.7, 1.2)),
    "Gaussian": lambda: Function(lambda x: torch.exp(-x.square())),
    "rational": lambda: Function(lambda x: x / (1 + x**2)),
    "piecewise": lambda: Function(lambda x: torch.where(x > 0, torch.sin(x), 0.1 * x)),
}

#: What may be refused, and only with the reason; "closure in training mode" is random or looks at the batch.
REFUSED = ("softmax", "maximum", "batch statistics", "Fourier", "lower precision", "closure in training mode")


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# -- what a layer of f does to its values, besides the usual: (module, h, t) → h -----------------------------------------


def tensor_without_dtype(self, h, t):
    return h * torch.tensor(0.7) + torch.tensor([0.3])


def range_without_dtype(self, h, t):
    return h + by_channel(torch.linspace(0, 1, h.shape[1]), h)


def integers(self, h, t):
    return h * by_channel(torch.arange(1, h.shape[1] + 1), h) / h.shape[1]


def range_with_dtype(self, h, t):
    return h + by_channel(torch.arange(h.shape[1], dtype=h.dtype, device=h.device) / 7, h)


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
    return torch.tanh(h.float()).to(h.dtype)


QUIRKS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "tensor without dtype": tensor_without_dtype,
    "range without dtype": range_without_dtype,
    "range of integers": integers,
    "range with dtype": range_with_dtype,
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
REFUSED_QUIRKS = {
    "softmax": softmax,
    "maximum": maximum,
    "batch statistics": batch_statistics,
    "Fourier": fourier,
    "lower precision": lower_precision,
}


def by_channel(values: Tensor, h: Tensor) -> Tensor:
    """One value for each channel, in a form that multiplies h (batch, channels, …)."""
    return values.reshape(-1, *(1 for _ in h.shape[2:]))


# -- layers ------------------------------------------------------------------------------------------------------------


class Mix(nn.Module):
    """A linear layer or convolution on channels, that may get the time as one more."""

    def __init__(self, case: Case, inputs: int, outputs: int, time: bool = False):
        super().__init__()
        self.channels, self.time = inputs, time
        space, inputs = len(case.shape) - 1, inputs + time
        if space == 0:
            self.op = nn.Linear(inputs, outputs)
        else:
            groups = 2 if case.grouped and inputs % 2 == outputs % 2 == 0 else 1
            kind = nn.Conv1d if space == 1 else nn.Conv2d
            self.op = kind(inputs, outputs, 3, padding=1, padding_mode=case.padding, groups=groups)
        with torch.no_grad():
            self.op.weight *= case.gain
        if case.weights == "weight norm":
            nn.utils.parametrizations.weight_norm(self.op)
        if case.weights == "spectral norm":
            nn.utils.parametrizations.spectral_norm(self.op)

    def forward(self, h, t):
        return self.op(torch.cat([h, t * torch.ones_like(h[:, :1])], 1) if self.time else h)

    def divide(self, factor: float) -> None:
        """Take a multiple of the same values."""
        weight = self.op.weight.detach().clone()
        weight[:, : self.channels] /= factor
        with torch.no_grad():
            if nn.utils.parametrize.is_parametrized(self.op):
                self.op.weight = weight
            else:
                self.op.weight.copy_(weight)


def normalisation(kind: str, channels: int, space: tuple[int, ...]) -> nn.Module:
    groups = 2 if channels % 2 == 0 and channels * prod(space) >= 16 else 1
    if kind == "batch":
        return (nn.BatchNorm1d if len(space) < 2 else nn.BatchNorm2d)(channels)
    if kind == "instance" and space:
        return (nn.InstanceNorm1d if len(space) == 1 else nn.InstanceNorm2d)(channels, affine=True)
    if kind == "layer":
        return nn.LayerNorm((channels, *space))
    if kind == "RMS":
        return nn.RMSNorm((channels, *space), 1e-5)
    return nn.GroupNorm(groups, channels)


class Layer(nn.Module):
    """One layer of f: mix, normalise, activate, gate, and what else was drawn."""

    def __init__(self, case: Case, plan: LayerPlan, inputs: int, outputs: int):
        super().__init__()
        space = case.shape[1:]
        self.mix = Mix(case, inputs, outputs, case.time == "channel")
        self.norm = normalisation(plan.norm, outputs, space) if plan.norm else nn.Identity()
        for name, p in self.norm.named_parameters():
            nn.init.normal_(p, float(name == "weight"), 0.3)
        self.activation = ACTIVATIONS[plan.activation]()
        self.gate = Mix(case, inputs, outputs) if plan.gate else None
        self.gate_norm = nn.GroupNorm(1, outputs) if plan.gate == "normalised" else nn.Identity()
        self.dropout = nn.Dropout(0.3) if plan.dropout else nn.Identity()
        self.time_gate = nn.Linear(1, outputs) if case.time == "gate" else None
        self.quirk = plan.quirk and (QUIRKS | REFUSED_QUIRKS)[plan.quirk]
        self.scale = 1.0
        self.register_buffer("order", torch.randperm(outputs))
        self.register_buffer("counts", torch.randint(1, 4, (outputs,), dtype=torch.int32))
        self.register_buffer("shift", torch.randn(outputs) / 4)
        self.register_buffer("place", torch.randn(outputs * prod(space)) / (outputs * prod(space)))

    def vector(self, h):
        return self.place

    def forward(self, t, h):
        value = self.dropout(self.activation(self.norm(self.mix(h, t))))
        if self.gate is not None:
            value = value * torch.sigmoid(self.gate_norm(self.gate(h, t)))
        if self.time_gate is not None:
            value = value * by_channel(torch.sigmoid(self.time_gate(t.reshape(1, 1).to(h))[0]), h)
        if self.quirk:
            value = self.quirk(self, value, t)
        return value if self.scale == 1.0 else self.scale * value


class Field(nn.Module):
    """The ODE function, f(t, y) or f(t, y, u)."""

    def __init__(self, case: Case):
        super().__init__()
        widths = [case.channels, *case.widths]
        self.case, self.nfe, self.scale = case, 0, 1.0
        self.layers = nn.ModuleList(
            Layer(case, plan, *pair) for plan, pair in zip(case.layers, zip(widths, widths[1:], strict=False), strict=True)
        )
        self.out = Mix(case, widths[-1], case.moving)
        if case.inputs:
            self.read = nn.Linear(case.inputs, case.moving * prod(case.shape[1:]), bias=False)
        self.forcing = nn.Parameter(torch.randn(case.moving))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("time", torch.zeros(()))

    def forward(self, t, y, u=None):
        case = self.case
        if case.counter:
            self.nfe += 1
            self.calls += 1
            self.last = t
        if self.scale != 1.0:
            y = y / self.scale
        h = y
        for layer in self.layers:
            h = layer(t, h)
        h = self.out(h, t)
        if u is not None:
            driven = self.read(u).view_as(h)
            h = h + driven if case.input_use == "added" else h * torch.sigmoid(driven) + driven
        moving = y[:, : case.moving]
        if case.time == "forcing":
            h = h + torch.sin(2 * t) * by_channel(self.forcing, h)
        if case.end == "damped":
            h = h - moving
        elif case.end == "damped in place":
            h = h * 1.0
            h -= moving
            h *= 0.5
        elif case.end == "bounded":
            h = torch.tanh(h) - 0.1 * moving
        elif case.end == "gated":
            h = torch.sigmoid(h) * (1 - moving)
        elif case.end == "residual":
            h = torch.tanh(h + moving) - moving
        if case.augmented:
            h = torch.cat([h, torch.zeros(len(h), case.augmented, *case.shape[1:], dtype=h.dtype)], 1)
        return h if self.scale == 1.0 else self.scale * h


class OwnBlock(nn.Module):
    """Calls torchdiffeq in its forward."""

    def __init__(self, func: Callable[..., Tensor], case: Case):
        super().__init__()
        self.func, self.case = func, case
        self.register_buffer("t", torch.tensor(case.t))

    def forward(self, y):
        solve = torchdiffeq.odeint_adjoint if self.case.adjoint else torchdiffeq.odeint
        states = solve(self.func, y, self.t, method=self.case.method, options=self.case.options)
        return states if self.case.output == "trajectory" else states[-1]


class Network(nn.Module):
    """Encoder, ODE layer, decoder."""

    def __init__(self, case: Case, ode: nn.Module):
        super().__init__()
        n = prod(case.shape)
        self.case, self.scale = case, 1.0
        self.stem, self.ode, self.mid = nn.Linear(FEATURES, n), ode, nn.Linear(n, n)
        self.norm = nn.BatchNorm1d(n) if case.stem == "batch norm" else nn.Identity()
        self.drop = nn.Dropout(0.5) if case.stem == "dropout" else nn.Identity()
        self.head = nn.Linear(n, CLASSES)

    def encoded(self, x):
        return self.norm(self.stem(x)).view(-1, *self.case.shape)

    def forward(self, x, u=None):
        if self.case.inputs == 2 and u is None:
            u = lambda t: torch.stack([x[:, 0] * torch.cos(t), x[:, 1] + t], 1)  # noqa: E731 - passed on
        solve = self.ode if u is None else (lambda y: self.ode(y, u))
        y = solve(self.scaled(self.encoded(x)))
        if self.case.twice:
            last = y[-1] if self.case.output == "trajectory" else y
            y = solve(self.scaled(self.mid(self.unscaled(last).flatten(1)).view_as(last)))
        y = self.drop(self.unscaled(y))
        if self.case.output == "trajectory":
            y = y.transpose(0, 1)
        y = y.flatten(-len(self.case.shape))
        return self.head(torch.tanh(y) if self.case.nonlinear_head else y)

    def scaled(self, y):
        return y if self.scale == 1.0 else self.scale * y

    def unscaled(self, y):
        return y if self.scale == 1.0 else y / self.scale


# -- cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerPlan:
    """What was drawn for one layer of f."""

    activation: str
    norm: str
    gate: str
    dropout: bool
    quirk: str

    def __str__(self) -> str:
        gate = "gate" if self.gate == "plain" else self.gate and f"{self.gate} gate"
        words = (self.norm and f"{self.norm} norm", self.activation, gate, "dropout" * self.dropout, self.quirk)
        return " ".join(word.replace(" ", "-") for word in words if word)


@dataclass(eq=False)
class Case:
    """A random network: what was drawn, and how to build it.

    Law: the same seed is the same network, with weights that are equal in float32 and float64.
    """

    seed: int
    draw: random.Random = field(init=False, repr=False)

    def __post_init__(self):
        self.draw = random.Random(self.seed)
        chance, pick = (lambda p: self.draw.random() < p), self.draw.choice
        self.dtype = torch.float64 if chance(0.7) else torch.float32
        self.shape: tuple[int, ...] = pick([(6,), (9,), (14,), (20,), (32,), (2, 8), (4, 6), (2, 4, 4), (4, 3, 3)])
        self.channels = self.shape[0]
        self.augmented = 1 if chance(0.15) else 0
        self.moving = self.channels - self.augmented
        self.padding = pick(["zeros", "zeros", "circular", "replicate"])
        self.grouped = chance(0.2)
        self.weights = pick(["plain"] * 6 + ["weight norm", "spectral norm"])
        self.gain = self.draw.uniform(0.8, 2.0)
        self.time = pick(["", "", "", "channel", "gate", "forcing"])
        wide = [4, 6] if len(self.shape) > 1 else [8, 13, 20]
        self.widths = [pick(wide) for _ in range(pick([1, 1, 1, 2, 2, 3]))]
        self.layers = [self._layer(chance, pick) for _ in self.widths]
        self.end = pick(["plain", "damped", "damped", "damped in place", "bounded", "gated", "residual"])
        self.own = chance(0.3)
        self.inputs = 0 if self.own or chance(0.65) else pick([2, 3])  # 2: a callable, 3: samples
        self.input_use = pick(["added", "gates"])
        self.interpolation = pick(["linear", "previous"])
        self.form = pick(["module", "module", "module", "method", "closure", "closure of a part"])
        self.counter = chance(0.3) and "closure" not in self.form  # whose counters cannot be copied
        self.t = pick([(0.0, 1.0), (0.0, 0.3, 1.0), (1.0, 0.4, -0.3), (0.5, 1.25), (2.0, 1.0)])
        own_methods = [] if self.own else ["rk4_classic", "bosh3_fixed", "dopri5_fixed"]
        self.method = pick(["euler", "midpoint", "heun3", "rk4", "rk4", *own_methods])
        self.options = {"step_size": pick([0.1, 0.25, 0.3])} if self.method == "euler" or chance(0.4) else {}
        self.adjoint = self.form == "module" and self.method not in own_methods and chance(0.15)
        self.output = pick(["final", "final", "trajectory"])
        self.twice = chance(0.15)
        self.stem = pick(["plain", "plain", "batch norm", "dropout"])
        self.nonlinear_head = chance(0.3)
        self.training = pick(["eval", "eval", "training", "mixed"])
        self.state_dim, self.points = min(pick([3, 4, 5, 6]), prod(self.shape) - 1), pick([4, 6, 8])

    def _layer(self, chance: Callable[[float], bool], pick: Callable[[Any], Any]) -> LayerPlan:
        quirk = pick(list(QUIRKS)) if chance(0.35) else pick(list(REFUSED_QUIRKS)) if chance(0.03) else ""
        norm = pick(["batch", "group", "group", "layer", "instance", "RMS"]) if chance(0.35) else ""
        gate = pick(["plain", "plain", "normalised"]) if chance(0.2) else ""
        return LayerPlan(pick(list(ACTIVATIONS)), norm, gate, chance(0.1), quirk)

    @property
    def refusable(self) -> bool:
        """Whether something was drawn that may be refused."""
        quirks = {plan.quirk for plan in self.layers}
        noisy = any(
            plan.dropout or plan.norm == "batch" or plan.activation == "RReLU" or plan.quirk == "reads its training flag"
            for plan in self.layers
        )
        hidden = "closure" in self.form and self.training != "eval" and (noisy or self.weights == "spectral norm")
        return hidden or bool(quirks & set(REFUSED))

    def __str__(self) -> str:
        words = (
            str(self.dtype).removeprefix("torch."),
            "×".join(map(str, self.shape)),
            " → ".join(f"{width} ({plan})" for width, plan in zip(self.widths, self.layers, strict=True)),
            f"end {self.end}",
            self.weights if self.weights != "plain" else "",
            f"gain {self.gain:.1f}",
            f"padding {self.padding}" if len(self.shape) > 1 and self.padding != "zeros" else "",
            "grouped" if len(self.shape) > 1 and self.grouped else "",
            f"time as {self.time}" if self.time else "",
            "augmented" if self.augmented else "",
            "counter" if self.counter else "",
            f"input {'callable' if self.inputs == 2 else f'sampled ({self.interpolation})'} {self.input_use}"
            if self.inputs
            else "",
            f"f is a {self.form}",
            "own block" if self.own else "",
            f"{self.method} {self.options or ''} t={self.t} {self.output}",
            "adjoint" if self.adjoint else "",
            "twice" if self.twice else "",
            f"stem {self.stem}" if self.stem != "plain" else "",
            "tanh head" if self.nonlinear_head else "",
            self.training,
            f"state_dim={self.state_dim}, points={self.points}",
        )
        return ", ".join(word.strip() for word in words if word)

    def network(self, dtype: torch.dtype | None = None, scaled: str = "", factor: float = 1.0) -> Network:
        """Return the network, as its user has it: in its modes.

        Parameters
        ----------
        dtype
            Another one than was drawn.
        scaled, factor
            "state" or "stage": an equivalent network whose state, or values of one layer of f, are so many times larger.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            f = Field(self)
            ode = self._layer_of(f)
            network = Network(self, ode)
            network.field = [f]  # no submodule by that
            if self.form == "closure of a part":
                network.part = f
            network.train()
            f.train()
            with torch.no_grad():  # statistics that are not trivial
                for _ in range(3):
                    x, *u = self.arguments(40, seed=1000 + _, dtype=torch.float32)
                    f(torch.tensor(0.5), network.encoded(x), u[0][:, 0] if u else self._input_at(x))
            f.nfe = 0
            for part in {*network.modules(), *f.modules()}:
                part.training = self.training == "training" or (self.training == "mixed" and hash_of(part) % 2 == 0)
        for module in (network, f):
            module.to(dtype or self.dtype)
        if scaled == "state":
            network.scale = f.scale = factor
        if scaled == "stage":
            *_, last = f.layers
            last.scale = factor
            f.out.divide(factor)
        return network

    def _layer_of(self, f: Field) -> nn.Module:
        if self.inputs:
            closure = lambda t, y, u: f(t, y, u)  # noqa: E731 - passed on
        else:
            closure = lambda t, y: f(t, y)  # noqa: E731 - passed on
        func = {"module": f, "method": f.forward}.get(self.form, closure)
        if self.own:
            return OwnBlock(func, self)
        samples = {"input_times": self.input_times, "interpolation": self.interpolation} if self.inputs == 3 else {}
        return ODELayer(
            func, self.t, self.method, options=self.options, adjoint=self.adjoint, output=self.output, **samples
        )

    def _input_at(self, x: Tensor) -> Tensor | None:
        return x[:, :2] if self.inputs == 2 else None

    @property
    def input_times(self) -> tuple[float, ...]:
        first, *_, last = self.t
        return tuple(first + (last - first) * share for share in (0.0, 0.25, 0.6, 1.0))

    @cached_property
    def stages_can_be_scaled(self) -> bool:
        return self.weights != "spectral norm"

    def arguments(self, samples: int, seed: int, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Return inputs of the network: points near a curved surface, and the samples of u."""
        generator = torch.Generator().manual_seed(100_003 * self.seed + seed)
        z = torch.randn(samples, 3, generator=generator)
        x = torch.cat([z, torch.sin(2 * z[:, :1]) * z[:, 1:2], z[:, 2:] ** 2 - 1], 1)
        arguments = (x, torch.randn(samples, 4, 3, generator=generator)) if self.inputs == 3 else (x,)
        return tuple(argument.to(dtype or self.dtype) for argument in arguments)

    def evaluations(self, network: Network, samples: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return some (t, y, u) to evaluate f at."""
        dtype = network.stem.weight.dtype
        generator = torch.Generator().manual_seed(seed)
        times = (self.t[0], self.t[-1], (self.t[0] + 2 * self.t[-1]) / 3)
        found = []
        for i, time in enumerate(times):
            y = torch.randn(samples, *self.shape, generator=generator) * (0.3, 1.0, 2.0)[i] * network.scale
            u = torch.randn(samples, self.inputs, generator=generator).to(dtype) if self.inputs else None
            found.append((torch.tensor(time, dtype=dtype), y.to(dtype), u))
        return found


def hash_of(module: nn.Module) -> int:
    """Something that differs between modules and is the same in every run."""
    return sum(map(ord, type(module).__name__)) + sum(parameter.numel() for parameter in module.parameters())
