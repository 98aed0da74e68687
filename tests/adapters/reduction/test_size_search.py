"""Sizes chosen for the user: the cheapest within a loss, the best of those cheap enough, and when there is none."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from torchmor.adapters import NetworkReductor, ODELayer, ReducedODELayer, reduce_network
from torchmor.adapters.reduction.metrics import loss
from torchmor.adapters.reduction.wish import Wish
from torchmor.adapters.solving.steps import COARSE, Steps, solver_name
from torchmor.engine.errors import NothingToReduceError, ShapeError, UnsupportedOperationError
from torchmor.engine.held_out import held_out_mask

pytestmark = pytest.mark.slow


def network(width=96, rank=4, **settings):
    """A classifier whose wide ODE function has only a few directions that matter."""
    torch.manual_seed(0)
    low = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width), nn.Tanh(), nn.Linear(width, width))
    with torch.no_grad():
        low[0].weight *= 6
    return nn.Sequential(nn.Linear(6, width), ODELayer(low, **settings), nn.Linear(width, 4))


X = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def reductor():
    return NetworkReductor(network(), "1", X)


def test_cheapest_within_a_loss(reductor):
    small = reductor.reduce(max_loss=0.1, tune=False)
    explanation = small[1].explain()
    full, chosen = explanation.curve[0], explanation.chosen
    assert (full.sizes, full.solver, full.loss) == ("full", "dopri5", 0.0)
    good = [trial for trial in explanation.curve if trial.loss <= 0.1]
    assert chosen == min(good, key=lambda trial: trial.cost)
    assert explanation.errors["network output"] == pytest.approx(explanation.confirmed.loss, rel=1e-6)
    assert explanation.confirmed.samples == 80 and explanation.tuning is None
    assert {trial.solver for trial in explanation.curve if trial.sizes == "full"} == {"dopri5", *map(str, COARSE)}


def test_smaller_loss_costs_more(reductor):
    found = [reductor.reduce(max_loss=loss, tune=False)[1].explain().chosen for loss in (0.3, 0.1, 0.03)]
    assert found[0].cost < found[1].cost <= found[2].cost


def test_cheapest_at_any_loss(reductor):
    explanation = reductor.reduce(max_loss=float("inf"), solver=("euler", 1), tune=False)[1].explain()
    reduced = [trial for trial in explanation.curve if trial.sizes != "full"]
    assert explanation.chosen == min(reduced, key=lambda trial: trial.cost)


def test_most_accurate_of_those_that_are_cheap(reductor):
    small = reductor.reduce(speedup=30.0, max_loss=0.5, tune=False)
    explanation = small[1].explain()
    bound = explanation.curve[0].cost / 30
    cheap = [trial for trial in explanation.curve if trial.cost <= bound]
    assert explanation.chosen == min(cheap, key=lambda trial: trial.loss)


def test_coarse_steps_are_taken_where_they_are_enough(reductor):
    small = reductor.reduce(max_loss=0.3, tune=False)
    assert small[1].method != "dopri5" and "step_size" in small[1].options
    assert small[1].explain().chosen.solver in {str(steps) for steps in COARSE}


def test_steps_of_a_method_are_chosen(reductor):
    """1, 2 and 4 steps of it are tried, and the full layer with them and with coarse steps is a rival."""
    layer = reductor.reduce(max_loss=0.1, solver="rk4_classic", tune=False)[1]
    explanation = layer.explain()
    words = {str(Steps("rk4_classic", count)) for count in (1, 2, 4)}
    assert {trial.solver for trial in explanation.curve if trial.sizes != "full"} == words
    rivals = {trial.solver for trial in explanation.curve if trial.sizes == "full"}
    assert rivals == {"dopri5", *map(str, COARSE), *words}
    assert layer.method == "rk4_classic" and solver_name(layer) == explanation.chosen.solver
    good = [trial for trial in explanation.curve if trial.loss <= 0.1 and trial.sizes != "full"]
    assert explanation.chosen == min(good, key=lambda trial: trial.cost)


def test_given_steps_are_kept(reductor):
    layer = reductor.reduce(max_loss=0.3, solver=("bosh3_fixed", 3), tune=False)[1]
    assert solver_name(layer) == "3 Bogacki–Shampine steps"
    found = {trial.solver for trial in layer.explain().curve if trial.sizes != "full"}
    assert found == {"3 Bogacki–Shampine steps"}


def test_given_sizes_are_kept(reductor):
    assert reductor.reduce(state_dim=8, max_loss=0.5, tune=False)[1].ode.state_size == 8
    layer = reductor.reduce(points=32, max_loss=0.5, tune=False)[1]
    assert [part.reduced for part in layer.explain().parts[1:]] == [32]


def test_only_what_was_asked_for_is_called_so(reductor):
    """Sizes that the user gave are "as asked"; those beside them were chosen by the search."""
    for asked, words in (
        ({}, ["balanced, chosen by the search", "omp, chosen by the search"]),
        ({"state_dim": 8}, ["balanced, as asked", "omp, chosen by the search"]),
        ({"points": 32}, ["balanced, chosen by the search", "omp, as asked"]),
        ({"points": [32]}, ["balanced, chosen by the search", "omp, as asked"]),
        ({"points": [None]}, ["balanced, chosen by the search", "omp, chosen by the search"]),
        ({"state_dim": 8, "points": 32}, ["balanced, as asked", "omp, as asked"]),
    ):
        assert [part.how for part in reductor.reduce(max_loss=0.5, **asked, tune=False)[1].explain().parts] == words


def test_explanation_shows_the_curve_and_the_choice(reductor):
    explanation = reductor.reduce(max_loss=0.1, tune=False)[1].explain()
    text = str(explanation)
    assert "chosen" in text and "times less cost" in text and "loss (relative)" in text
    frontier = explanation.frontier
    assert explanation.chosen in frontier
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in pairwise(frontier))
    assert explanation == type(explanation).from_json(explanation.to_json())


def test_full_network_with_coarse_steps_is_returned_when_it_wins():
    """A slow state with an ODE function that needs all its points: one Euler step of the full layer is best."""
    layer = ODELayer(nn.Sequential(nn.Linear(12, 12), nn.Tanh()))
    full, x = nn.Sequential(nn.Linear(12, 12), layer, nn.Linear(12, 12)), torch.randn(300, 12)
    with pytest.raises(NothingToReduceError, match="none that is better than coarse steps of the full layer") as raised:
        reduce_network(full, "1", x, max_loss=2e-3, tune=False)
    error = raised.value
    assert isinstance(error.best[1], ReducedODELayer) and error.best[1].explain().confirmed.loss > 0
    assert error.curve[0].sizes == "full" and len({trial.sizes for trial in error.curve}) > 1
    steps = solver_name(error.network[1])
    assert steps in {str(one) for one in COARSE} and f"{steps} would do" in str(error)
    with torch.no_grad():
        assert loss("relative", error.network(x), full(x)) < 4e-3
    assert "times less cost" in str(error) and "state" in str(error), "a table of what there is"
    assert full[1].method == "dopri5"


def test_nothing_is_good_enough():
    with pytest.raises(
        NothingToReduceError, match=r"a loss of at most 1e-06 and 100 times less cost \(relative\)"
    ) as raised:
        reduce_network(network(), "1", X, max_loss=1e-6, speedup=100.0, tune=False)
    assert "error.best the best reduction" in str(raised.value) and raised.value.network is None
    assert re.search(r"Try max_loss=0\.\d+, more calibration data", str(raised.value))
    own, best = raised.value.curve[0], raised.value.best[1].explain().chosen
    assert best.cost <= own.cost / 100, "the best of those that are cheap enough"


def test_losses_where_none_is_given():
    for metric, largest in (("relative", 0.02), ("agreement", 0.01), ("accuracy", 0.005)):
        assert Wish.of(None, None, metric).max_loss == largest
        assert Wish.of(None, 2.0, metric).max_loss == math.inf
        assert Wish.of(0.3, 2.0, metric).max_loss == 0.3
    with pytest.raises(ValueError, match="max_loss, or speedup, with a metric that is a function"):
        Wish.of(None, None, lambda output, reference: 0.0)
    for words, value in (("max_loss", -0.1), ("max_loss", math.nan)):
        with pytest.raises(ValueError, match=f"expected {words} to be at least 0"):
            Wish.of(value, None, "relative")
    with pytest.raises(ValueError, match="expected speedup to be at least 1, got 0"):
        Wish.of(None, 0, "relative")


@pytest.mark.parametrize("metric", ["agreement", lambda output, reference: float((output - reference).abs().max())])
def test_metrics(metric):
    small = reduce_network(network(), "1", X, metric=metric, max_loss=0.5, tune=False)
    explanation = small[1].explain()
    assert explanation.chosen.loss <= 0.5
    assert explanation.metric == (metric if isinstance(metric, str) else "a function")


@pytest.mark.parametrize("form", ["tensors", "batches"])
def test_accuracy_on_labelled_validation_data(form):
    full = network()
    labels = full(X).argmax(1)
    labels[:100] = (labels[:100] + 1) % 4  # the full network is right in 75 %
    data = (X, labels) if form == "tensors" else [(X[:150], labels[:150]), (X[150:], labels[150:])]
    small = reduce_network(full, "1", X, metric="accuracy", validation=data, max_loss=0.05, tune=False)
    assert drop(full, small, X, labels, chosen=True) == pytest.approx(small[1].explain().chosen.loss, abs=1e-9)
    confirmed = small[1].explain().confirmed
    assert drop(full, small, X, labels, chosen=False) == pytest.approx(confirmed.loss, abs=1e-9)
    assert confirmed.samples == 200 and confirmed.bound > confirmed.loss


def half(x, chosen):
    """The samples of validation data that are chosen by, or that the loss is confirmed on."""
    return x[torch.from_numpy(held_out_mask(len(x), 0, 0.5) != chosen)]


def drop(full, small, x, labels, chosen):
    x, labels = half(x, chosen), half(labels, chosen)
    with torch.no_grad():
        return float(sum(sign * (net(x).argmax(1) == labels).double().mean() for net, sign in ((full, 1), (small, -1))))


def test_validation_data_without_labels():
    other = torch.randn(50, 6)
    full = network()
    small = reduce_network(full, "1", X, validation=other, max_loss=0.3, tune=False)
    for chosen, found in ((True, small[1].explain().chosen), (False, small[1].explain().confirmed)):
        with torch.no_grad():
            expected = loss("relative", small(half(other, chosen)), full(half(other, chosen)))
        assert found.loss == pytest.approx(expected, rel=1e-4)


def test_own_objective():
    """Only what the objective sees is kept: here the first output."""
    full = network().double()
    x = X.double()
    small = reduce_network(full, "1", x, state_dim=3, points="full", objective=lambda output: output[:, 0].sum())
    with torch.no_grad():
        error = (small(x) - full(x)).norm(dim=0) / full(x).norm(dim=0)
    assert error[0] < 0.5 * error[1:].min()


def test_driven_layer():
    torch.manual_seed(0)
    layer = ODELayer(Driven(), method="euler", t=tuple(torch.linspace(0, 1, 11).tolist())).double()
    y0, u = torch.zeros(200, 40, dtype=torch.float64), torch.randn(200, 11, 2, dtype=torch.float64)
    small = reduce_network(layer, "", (y0, u), max_loss=0.2, tune=False)
    assert small.explain().chosen.loss <= 0.2 and small(y0, u).shape == (200, 40)


class Driven(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.z = nn.Linear(40, 40), nn.Linear(2, 40)

    def forward(self, t, y, u):
        return torch.tanh(self.a(y)) - y + self.z(u)


def test_refusals():
    with pytest.raises(ValueError, match=r'validation batches \(inputs, labels\) for metric="accuracy", got none'):
        reduce_network(network(), "1", X, metric="accuracy")
    with pytest.raises(ValueError, match="metric to be one of relative, agreement, accuracy or a function, got 'loss'"):
        reduce_network(network(), "1", X, metric="loss")
    with pytest.raises(ShapeError, match=r'outputs \(batch, classes, …\) for metric="agreement"'):
        loss("agreement", torch.zeros(5, 1), torch.zeros(5, 1))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            y = self.net(x)
            return y, y

    with pytest.raises(UnsupportedOperationError, match="whose output is one Tensor"):
        reduce_network(Two(), "net.1", X, metric="agreement", objective=lambda output: output[0].sum())
