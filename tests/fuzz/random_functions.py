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
from torch import Tensor, nn

from fuzz.quirks import QUIRKS, RARE_QUIRKS, REFUSED
from fuzz.random_modules import ACTIVATIONS, Field, Network, OwnBlock
from torchmor.adapters import ODELayer


@dataclass(frozen=True)
class LayerPlan:
    """What was drawn for one layer of f."""

    activation: str
    norm: str
    gate: str
    dropout: bool
    hook: bool
    tied: bool
    quirk: str

    def __str__(self) -> str:
        gate = "gate" if self.gate == "plain" else self.gate and f"{self.gate} gate"
        words = (self.norm and f"{self.norm} norm", self.activation, gate, *self._flags, self.quirk)
        return " ".join(word.replace(" ", "-") for word in words if word)

    @property
    def _flags(self) -> tuple[str, ...]:
        return "dropout" * self.dropout, "hook" * self.hook, "tied" * self.tied


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
        self.appends = self.own and self.augmented == 0 and chance(0.3)
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
        self.frozen = chance(0.1)
        self.context = pick(["", "", "", "", "no_grad"])
        self.state_dim, self.points = min(pick([3, 4, 5, 6]), prod(self.shape) - 1), pick([4, 6, 8])
        self.skip = len(self.layers) > 1 and chance(0.4)

    def _layer(self, chance: Callable[[float], bool], pick: Callable[[Any], Any]) -> LayerPlan:
        quirk = pick(list(QUIRKS)) if chance(0.35) else pick(list(RARE_QUIRKS)) if chance(0.03) else ""
        norm = pick(["batch", "group", "group", "layer", "instance", "RMS"]) if chance(0.35) else ""
        gate = pick(["plain", "plain", "normalised"]) if chance(0.2) else ""
        return LayerPlan(pick(list(ACTIVATIONS)), norm, gate, chance(0.1), chance(0.05), chance(0.1), quirk)

    @property
    def refusable(self) -> bool:
        """Whether something was drawn that may be refused."""
        return bool({plan.quirk for plan in self.layers} & REFUSED)

    def __str__(self) -> str:
        words = (
            str(self.dtype).removeprefix("torch."),
            "×".join(map(str, self.shape)),
            " → ".join(f"{width} ({plan})" for width, plan in zip(self.widths, self.layers, strict=True)),
            "first layer to the end too" if self.skip else "",
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
            "own block, zeros appended" if self.appends else "own block" if self.own else "",
            f"{self.method} {self.options or ''} t={self.t} {self.output}",
            "adjoint" if self.adjoint else "",
            "twice" if self.twice else "",
            f"stem {self.stem}" if self.stem != "plain" else "",
            "tanh head" if self.nonlinear_head else "",
            self.training,
            "frozen" if self.frozen else "",
            f"under {self.context}" if self.context else "",
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
            "state" or "stage": an equivalent network, whose state or values of a layer of f are so many times larger.
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
                for seed in range(2):
                    x, *u = self.arguments(40, seed, dtype=torch.float32)
                    f(torch.tensor(0.5), network.encoded(x), u[0][:, 0] if u else self._input_at(x))
            f.nfe = 0
            network.requires_grad_(not self.frozen)
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
        closure = (lambda t, y, u: f(t, y, u)) if self.inputs else lambda t, y: f(t, y)
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
