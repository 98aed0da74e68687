"""The parts of random networks: layers of an ODE function, a block that solves it, and a network around that.

Each reads in a case (fuzz.random_functions) what was drawn for it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from fuzz.quirks import QUIRKS, RARE_QUIRKS, by_channel

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


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Mix(nn.Module):
    """A linear layer or convolution on channels, that may get the time as one more."""

    def __init__(self, case: Any, inputs: int, outputs: int, time: bool = False):
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
        return nn.RMSNorm((channels, *space), 2**-17)  # torch rounds it to the dtype
    return nn.GroupNorm(groups, channels)


class Layer(nn.Module):
    """One layer of f: mix, normalise, activate, gate, and what else was drawn."""

    def __init__(self, case: Any, plan: Any, inputs: int, outputs: int):
        super().__init__()
        space = case.shape[1:]
        self.mix = Mix(case, inputs, outputs, case.time == "channel")
        self.norm = normalisation(plan.norm, outputs, space) if plan.norm else nn.Identity()
        for name, p in self.norm.named_parameters():
            nn.init.normal_(p, float(name == "weight"), 0.3)
        self.activation = ACTIVATIONS[plan.activation]()
        if plan.hook:
            self.activation.register_forward_hook(lambda module, arguments, value: 0.5 * value)
        self.gate = Mix(case, inputs, outputs) if plan.gate else None
        self.gate_norm = nn.GroupNorm(1, outputs) if plan.gate == "normalised" else nn.Identity()
        self.dropout = nn.Dropout(0.3) if plan.dropout else nn.Identity()
        self.time_gate = nn.Linear(1, outputs) if case.time == "gate" else None
        self.quirk = plan.quirk and (QUIRKS | RARE_QUIRKS)[plan.quirk]
        self.scale, self.passes = 1.0, 2 if plan.tied and inputs == outputs else 1
        self.dtype = case.dtype  # of the user's network; constants of its reference in float64 are those of this one
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

    def __init__(self, case: Any):
        super().__init__()
        widths = [case.channels, *case.widths]
        self.case, self.nfe, self.scale = case, 0, 1.0
        self.layers = nn.ModuleList(
            Layer(case, plan, *pair) for plan, pair in zip(case.layers, pairwise(widths), strict=True)
        )
        self.out = Mix(case, widths[-1], case.moving)
        self.skip = Mix(case, widths[1], case.moving) if case.skip else None
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
        values = [y]
        for layer in self.layers:
            h = values[-1]
            for _ in range(layer.passes):
                h = layer(t, h)
            values.append(h)
        h = self.out(values[-1], t)
        if self.skip is not None:
            h = h + self.skip(values[1], t)
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

    def __init__(self, func: Callable[..., Tensor], case: Any):
        super().__init__()
        self.func, self.case = func, case
        self.register_buffer("t", torch.tensor(case.t))

    def forward(self, y):
        if self.case.appends:
            y = torch.cat([y, torch.zeros_like(y[:, :1])], 1)
        solve = torchdiffeq.odeint_adjoint if self.case.adjoint else torchdiffeq.odeint
        states = solve(self.func, y, self.t, method=self.case.method, options=self.case.options)
        return states if self.case.output == "trajectory" else states[-1]


class Network(nn.Module):
    """Encoder, ODE layer, decoder."""

    def __init__(self, case: Any, ode: nn.Module):
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
        if self.case.appends:
            solve = lambda y: self.ode(y[:, :-1])  # noqa: E731 - passed on
        else:
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
