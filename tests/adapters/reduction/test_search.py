"""The search by halving, with networks whose costs, losses and gains by tuning are made up."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torchmor.adapters.reduction import search as module
from torchmor.adapters.reduction.search import LAST, ROUNDS, Search
from torchmor.adapters.reduction.wish import Wish
from torchmor.adapters.solving.solve_settings import SolveSettings
from torchmor.adapters.solving.steps import Steps
from torchmor.engine.explanation import Trial
from torchmor.engine.findings import Tuning
from torchmor.engine.sizes import ReductionRequest
from torchmor.engine.stages import StageChain

STEPS = Steps("euler", 1)


class Layer(nn.Module):
    """A layer of a size, which may be tuned."""

    def __init__(self, size):
        super().__init__()
        self.size, self.passes, self.settings = size, 0, SolveSettings()
        self.t = (0.0, 1.0)


@dataclass
class Made:
    """Material of made-up networks: a size costs as much as it is, its loss is 1 / size, less what tuning gains."""

    gain: float = 10.0
    coarse: tuple[float, float] = (1e9, 1.0)  # cost and loss of the full layer with coarse steps
    name: str = "0"
    tuned: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self):
        self.network = nn.Sequential(Layer(0))
        self.layer = SimpleNamespace(t=(0.0, 1.0))
        self.reductor = SimpleNamespace(chain=StageChain)

    def full_trial(self, steps):
        return Trial("full", str(steps), *((1000.0, 0.0) if steps is None else self.coarse))

    def reduced(self, request):
        layer = Layer(request.state_dim)
        return SimpleNamespace(network=nn.Sequential(layer), layer=layer, reduction=None)

    def cost(self, layer):
        return float(layer.size)

    def loss(self, network):
        (layer,) = network
        return 1 / layer.size / (1 + (self.gain - 1) * min(1.0, layer.passes / 800))

    def trial(self, network, sizes):
        return Trial(sizes, "rk4", self.cost(network[0]), self.loss(network))

    def tune(self, network, passes, like):
        (layer,) = network
        before = self.loss(network)
        layer.passes += passes
        self.tuned.append((layer.size, passes))
        return Tuning(before, self.loss(network), 0.0, passes, 10, 1.0, "rk4", "none", 1e-2)


SIZES = (4, 8, 16, 32, 64, 128, 256, 512)


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setattr(module, "choices", lambda state_dim, points, chain: iter([(r, r, float(r)) for r in SIZES]))
    monkeypatch.setattr(module, "COARSE", (STEPS,))


def search(made, max_loss=0.01, speedup=None, tune=True, **options):
    wish = Wish(max_loss, speedup, "relative")
    with torch.no_grad():
        found = Search(made, ReductionRequest(), wish, STEPS, made.tune if tune else None, **options)
        return found, [one.layer.size for one in found.run()]


def test_untuned_the_cheapest_that_is_good_enough():
    found, sizes = search(Made(), tune=False)
    assert sizes == [128] and found.tried[-1].layer.size == 128, "dearer ones are not even reduced"
    assert found.nearest().layer.size == 128


def test_tuning_makes_cheaper_ones_good_enough_and_stops_at_the_first():
    made = Made()
    found, sizes = search(made)
    assert sizes[0] == 64, "which a short tuning brings from 1/64 below 0.01"
    assert {size for size, _ in made.tuned} <= {4, 8, 16, 32, 64}, "only what is cheaper than 128 is worth it"
    assert [size for size, _ in made.tuned] == sorted(size for size, _ in made.tuned), "the cheapest first"
    assert {passes for _, passes in made.tuned} == {ROUNDS[0][1]}
    best = next(one for one in found.tried if one.layer.size == 64)
    assert best.trial.tuned and best.tuning.epochs == ROUNDS[0][1]


def test_thorough_goes_on_for_cheaper_ones():
    made = Made()
    _, sizes = search(made, thorough=True)
    assert sizes[0] == 16, "a tenth of 1/16 is below 0.01, that of 1/8 is not"
    rounds = [passes for _, passes in made.tuned]
    assert rounds == sorted(rounds) and set(rounds) == {passes for _, passes in ROUNDS}
    for (count, passes), before in zip(ROUNDS, ((8, 0), *ROUNDS), strict=False):
        assert rounds.count(passes) <= min(count, before[0])


def test_effort_takes_more_passes():
    made = Made()
    search(made, effort=3, thorough=True)
    assert {passes for _, passes in made.tuned} == {3 * passes for _, passes in ROUNDS}


def test_hopeless_ones_are_not_tuned():
    made = Made()
    search(made, max_loss=1e-4, thorough=True)
    assert made.tuned and min(size for size, _ in made.tuned) >= 256, "others lose more than 30 times too much"


def test_coarse_steps_that_would_do_bound_the_cost():
    made = Made(coarse=(100.0, 0.001))
    found, sizes = search(made)
    assert found.rival == STEPS and sizes == [64]
    made = Made(gain=1.0, coarse=(100.0, 0.001))
    found, sizes = search(made)
    assert sizes == [] and found.nearest().layer.size == 64, "the most accurate one that is cheaper than they are"
    found, sizes = search(Made(coarse=(100.0, 0.1)))
    assert found.rival is None and sizes == [64, 128], "coarse steps that lose too much are no rival"


def test_least_loss_of_those_that_are_cheap_enough():
    made = Made()
    found, sizes = search(made, max_loss=math.inf, speedup=10.0)
    assert found.own.cost == 1000.0 and sizes[0] == 64
    assert next(one for one in found.tried if one.layer.size == 64).trial.loss == pytest.approx(1 / 640)


def test_last_tuning_never_makes_it_worse():
    made = Made()
    found, _ = search(made)
    best = found.good()[0]
    polished = found.polished(best)
    assert made.tuned[-1] == (64, LAST) and polished.trial.loss < best.trial.loss
    assert polished.tuning.epochs == best.tuning.epochs + LAST and polished in found.tried
    assert polished.tuning.before == best.tuning.before and polished.tuning.seconds == 2.0
    made.gain = 0.01  # from now on, tuning spoils
    assert found.polished(polished) is polished, "once is enough"
    other = next(one for one in found.tried if one.layer.size == 128)
    assert found.polished(other).layer is other.layer, "as it was"


def test_candidates_keep_layers_of_their_own():
    found, _ = search(Made(), thorough=True)
    layers = [one.layer for one in found.tried]
    assert len({id(layer) for layer in layers}) == len(layers)
    assert [layer.passes for layer in layers if layer.size == 128] == [0]
