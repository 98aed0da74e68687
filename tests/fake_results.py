"""Results of an experiment as they might come out, for the tests of tables, pictures and reports: nothing is measured.

The networks of the showcase are real, but tiny and untrained.
"""

import numpy as np
import torch
from torch import nn

from torchmor.adapters import NetworkReductor, ODELayer
from torchmor.adapters.networks.timing import Timing
from torchmor.experiments.architectures.recurrent_ode import RecurrentFunction
from torchmor.experiments.measure.accuracy import packed
from torchmor.experiments.measure.comparison import Row
from torchmor.experiments.report.results import NetworkResult, Showcase

SELECTIONS = {"pod-deim": "deim", "pod-qdeim": "qdeim", "pod-ei-greedy": "ei_greedy"}
FULL_SOLVERS = ("1 Euler step", "2 Euler steps", "4 Euler steps", "1 midpoint step", "1 RK4 step")
COMPANION = "1 Euler step"


def timing(wall_s):
    return Timing(wall_s, 0.97 * wall_s, 1.05 * wall_s, 15, 1, yardstick_s=1e-3)


def make_row(method, sizes, solver, accuracy, wall_s=None, own=False, validation=None, network_s=None, **changes):
    """A row; `wall_s` is the time of the ODE layer at batch 256, a tenth of it at batch 1."""
    times = [{}, {}]
    if wall_s is not None:
        whole = wall_s + 1e-3 if network_s is None else network_s
        times = [{256: timing(wall), 1: timing(wall / 10)} for wall in (wall_s, whole)]
    return Row(
        **{
            "method": method,
            "sizes": dict(sizes),
            "solver": solver,
            "own_solver": own,
            "evaluations": 10,
            "parameters": 1000,
            "validation_accuracy": accuracy if validation is None else validation,
            "accuracy": accuracy,
            "agreement": 97.5,
            "difference_interval": (-1.25, 0.5),
            "layer": times[0],
            "network": times[1],
            "correct": packed(torch.arange(400) < 4 * accuracy),
        }
        | changes
    )


def plausible_rows(seed, n, own, timed, image=True):
    """About 100 rows of one seed: the full network first, and curves that fall off as sizes shrink."""
    random = np.random.default_rng(seed)
    top = 91 + random.normal(scale=0.3)
    cost = {"own": 30e-3, "1 Euler step": 0.9e-3, "2 Euler steps": 1.8e-3, "4 Euler steps": 3.7e-3}
    cost |= {"1 midpoint step": 1.9e-3, "1 RK4 step": 3.9e-3}
    wiggle = lambda: float(random.normal(scale=0.06))  # noqa: E731
    rows = [make_row("full", {"n": n}, "dopri5", top, cost["own"] if timed else None, own=True)]
    losses = (0.2, 0.15, 0.1, 0.05, 0.02)
    for solver, loss in zip(FULL_SOLVERS, losses, strict=True):
        rows.append(make_row("full", {"n": n}, solver, top - loss + wiggle(), cost[solver] if timed else None))
    rows.append(make_row("skipped", {}, "none", top - 9 + wiggle(), 1e-6 if timed else None))
    levels = [(256, 512), (128, 256), (64, 128), (32, 64), (16, 32), (8, 16)]
    kept = (14, 12, 10, 8, 4, 2) if image else (224, 192, 160, 128, 64, 32)
    plans = {
        "pod-deim": ([{"r": r, "m": m} for r, m in levels], 0.02, 0.28),
        "pod-qdeim": ([{"r": r, "m": m} for r, m in levels], 0.03, 0.27),
        "pod-ei-greedy": ([{"r": r, "m": m} for r, m in levels], 0.05, 0.33),
        "pod-galerkin": ([{"r": r} for r, _ in levels], 0.01, 0.9),
        "balanced-galerkin": ([{"r": r} for r, _ in levels], 0.01, 0.85),
        "fitted": ([{"r": r, "m": m} for r, m in levels], 0.01, 0.29),
        "distilled": ([{"r": 64, "m": 256}], 0.05, 0.2),
        "control": ([{"r": 64, "m": 256}], 1.0, 0.2),
        "pruning": ([{"kept": k} for k in kept], 0.8, 0.7),
        "svd": ([{"rank": k} for k in (12, 8, 6, 4, 2, 1)], 0.04, 1.15),
        "svd-dense": ([{"rank": k} for k in (256, 128, 64, 32, 16, 8)], 0.08, 0.5),
        "torch-pruning": ([{"kept": k} for k in kept], 1.5, 0.6),
    }
    if not image:
        del plans["svd-dense"]
    for method, (sizes, first_loss, factor) in plans.items():
        for level, size in enumerate(sizes):
            loss = first_loss * 2.9 ** (level + random.normal(scale=0.15))
            for is_own, solver in ((True, "dopri5"), (False, COMPANION)):
                if is_own and not own:
                    continue
                wall = cost["own" if is_own else solver] * factor * 0.72**level * np.exp(random.normal(scale=0.03))
                accuracy = max(top - loss + wiggle(), 10.0)
                rows.append(make_row(method, size, solver, accuracy, wall if timed else None, own=is_own))
    return rows


def image_showcase():
    torch.manual_seed(0)
    function = nn.Sequential(nn.Conv2d(4, 4, kernel_size=3, padding=1), nn.Tanh())
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(1, 4, kernel_size=4, stride=2, padding=1))
    network.add_module("ode", ODELayer(function, method="euler", options={"step_size": 0.25}))
    network.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(4 * 7 * 7, 3)))
    grid = torch.linspace(-1, 1, 14)
    bumps = [torch.exp(-6 * ((grid[:, None] - x) ** 2 + (grid - y) ** 2)) for x, y in torch.rand(80, 2) - 0.5]
    return showcase(network, torch.stack(bumps)[:, None], state_dim=8, points=16)


class Driven(nn.Module):
    """A tiny recurrent network, driven by inputs of 2 channels and 9 steps."""

    def __init__(self):
        super().__init__()
        self.ode = ODELayer(
            RecurrentFunction(2, 48, leak=True),
            t=(0.0, 1.0),
            method="euler",
            options={"step_size": 0.125},
            input_times=torch.linspace(0, 1, 9),
        )
        self.head = nn.Linear(48, 3)

    def forward(self, u):
        return self.head(self.ode(u.new_zeros(len(u), 48), u))


def sequence_showcase():
    torch.manual_seed(0)
    return showcase(Driven(), torch.randn(80, 9, 2).cumsum(dim=1), state_dim=6, points=12)


def showcase(network, inputs, **sizes):
    reductor = NetworkReductor(network, "ode", inputs, progress=False)
    reduced = {
        method: reductor.reduce(**sizes, basis="pod", fit="interpolation", selection=selection)
        for method, selection in SELECTIONS.items()
    }
    return Showcase(network, reduced, "ode", inputs[:20])


def image_result(seeds=3, own=True):
    rows = {seed: plausible_rows(seed, 3136, own and seed == 0, seed == 0) for seed in range(seeds)}
    return NetworkResult(
        "a",
        "Linear around the ODE",
        "A convolution of 4 × 4 with stride 2 makes 16 channels of an image, the ODE layer moves them by y' = "
        "tanh(K ∗ y + b), and a linear map reads the class off the result. Training: AdamW, 5 epochs.",
        rows,
        [],
        image_showcase(),
    )


def sequence_result(seeds=3):
    rows = {seed: plausible_rows(10 + seed, 256, seed == 0, seed == 0, image=False) for seed in range(seeds)}
    return NetworkResult(
        "c",
        "With leak",
        "256 units start from zero and are driven by the sequence u: y' = −y + tanh(A y + b) + Z u.",
        rows,
        ["POD–EI-greedy, r 64, m 128, 1 Euler step, seed 1: NonFiniteError: its ODE is unstable <at these sizes>"],
        sequence_showcase(),
    )
