"""Small states with wide layers: the state is kept, and the stages are reduced."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from catalogue import traced
from torchmor.adapters import NetworkReductor, ODELayer, reduce_network
from torchmor.adapters.reduction.size_search import SMALL_STATE, STATE_DIMS, choices
from torchmor.engine.errors import NothingToReduceError

pytestmark = pytest.mark.slow


def latent_ode(gain: float = 1.6) -> ODELayer:
    """A latent ODE of usual sizes: a state of 15, three hidden layers of 100, and the trajectory as output."""
    torch.manual_seed(0)
    widths = (15, 100, 100, 100, 15)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    with torch.no_grad():
        for layer in layers:
            layer.weight *= gain
    function = nn.Sequential(layers[0], *(part for layer in layers[1:] for part in (nn.Tanh(), layer)))
    return ODELayer(function, t=torch.linspace(0, 1, 6), method="rk4", output="trajectory").double()


@pytest.fixture(scope="module")
def reductor():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(3, 15, dtype=torch.float64, generator=generator)
    return NetworkReductor(latent_ode(), "", torch.randn(400, 3, dtype=torch.float64, generator=generator) @ few)


def test_hidden_layers_shrink_while_the_state_stays(reductor):
    """Widths of 100 to 24, within two per cent of the trajectory, on states of few directions."""
    explanation = reductor.reduce(state_dim="full", points=24).explain()
    assert [part.reduced for part in explanation.parts] == [15, 24, 24, 24]
    assert explanation.errors["layer output"] < 0.02
    assert explanation.operations[1] < explanation.operations[0] / 10


def test_the_search_keeps_a_small_state(reductor):
    """Without any size, where smaller states lose more than is allowed."""
    small = reductor.reduce(max_loss=0.02)
    state, *stages = small.explain().parts
    assert (state.reduced, state.why) == (15, "kept: chosen by the search")
    assert all(part.reduced <= 32 for part in stages)
    assert not hasattr(small.encode, "weight"), "nothing is encoded"
    dims = {trial.sizes.split(",")[0] for trial in small.explain().curve}
    assert dims == {"full", "state 4", "state 8", "state full"}


def test_given_points_search_the_state_too(reductor):
    """``state_dim=None`` with points: the state is searched, and kept where that is best."""
    parts = reductor.reduce(points=30, max_loss=0.018).explain().parts
    assert [part.reduced for part in parts] == [15, 30, 30, 30]


def test_choices():
    chain = traced("two hidden layers")  # 5 → 11 → 8 → 5
    tried = [(r, sizes) for r, sizes, _ in choices(None, None, chain)]
    assert tried == [("full", 5), (4, 4), (4, 8), ("full", 10)]
    assert [sizes for _, sizes, _ in choices("full", [None, 3], chain)] == [[4, 3], [8, 3]]
    costs = [cost for _, _, cost in choices(None, None, chain)]
    assert costs == sorted(costs)
    assert not list(choices("full", "full", chain)) and not list(choices(None, None, traced("linear")))[1:]
    assert [r for r, _, _ in choices(None, 3, chain)].count("full") == 1
    assert max(STATE_DIMS) > SMALL_STATE >= 15


def test_no_stage_is_asked_for_more_points_than_it_has():
    """In functions with large and with small stages, as normalisation makes them; stages of the time are kept."""
    for name in ("group normalisation", "time, embedded"):
        chain = traced(name)
        tried = [sizes for _, sizes, _ in choices(None, [None] * len(chain.stages), chain)]
        assert any(size != "full" for sizes in tried for size in sizes)
        for sizes in tried:
            for stage, size in zip(chain.stages, sizes, strict=True):
                assert size == "full" or (stage.name not in chain.time_stages and size <= stage.size)


def test_nothing_to_reduce_in_a_tiny_function():
    """A state of two and three hidden units: the error says that nothing is smaller."""
    torch.manual_seed(0)
    layer = ODELayer(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), method="rk4").double()
    with pytest.raises(NothingToReduceError, match="found none"):
        reduce_network(layer, "", torch.randn(60, 2, dtype=torch.float64), max_loss=1e-6)
