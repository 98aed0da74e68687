"""One call: tuned, confirmed on data that nothing was chosen by, timed, and with something to go on where it fails."""

import math

import pytest
import torch
from torch import nn

from torchmor.adapters import NetworkReductor, ODELayer, ReducedODELayer, load, reduce_network, save
from torchmor.adapters.reduction import clock as clock_module
from torchmor.adapters.reduction import network_reductor, search
from torchmor.engine.errors import NothingToReduceError, UnsupportedOperationError

pytestmark = pytest.mark.slow

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))


def network(outputs=3):
    torch.manual_seed(0)
    func = nn.Sequential(nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 32), nn.Tanh())
    with torch.no_grad():
        func[0].weight *= 2
    return nn.Sequential(nn.Linear(4, 32), ODELayer(func, method="rk4"), nn.Linear(32, outputs))


@pytest.fixture(autouse=True)
def short_tuning(monkeypatch):
    monkeypatch.setattr(search, "ROUNDS", ((4, 16), (2, 160)))
    for module in (search, network_reductor):
        monkeypatch.setattr(module, "LAST", 160)


@pytest.fixture(scope="module")
def reductor():
    return NetworkReductor(network(), "1", X)


def test_default_call(reductor, tmp_path):
    small = reductor.reduce()
    found = small[1].explain()
    assert found.chosen.loss <= 0.02 and found.chosen in found.curve
    assert found.confirmed.samples == 60 and found.confirmed.confidence == 0.95
    assert found.confirmed.loss < found.confirmed.bound < 0.05
    assert [call.network for call in found.clock.calls[:2]] == ["reduced", "full"]
    assert str(found).startswith("loss (relative)"), "the user's words come first"
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", network=network())[1].explain()
    assert (again.confirmed, again.clock, again.tuning, again.curve) == (
        found.confirmed,
        found.clock,
        found.tuning,
        found.curve,
    )


def test_same_seed_same_bits():
    first, second = (reduce_network(network(), "1", X, max_loss=0.03) for _ in range(2))
    for (key, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert first[1].explain().curve == second[1].explain().curve


def test_tuning_makes_a_cheaper_choice(reductor):
    plain, tuned = (reductor.reduce(max_loss=0.01, tune=tune)[1].explain() for tune in (False, None))
    assert plain.tuning is None and plain.chosen.cost >= tuned.chosen.cost
    assert any(trial.tuned for trial in tuned.curve) and not any(trial.tuned for trial in plain.curve)


def test_given_sizes_are_tuned_where_it_is_asked_for(reductor):
    plain, tuned = (reductor.reduce(state_dim=6, points=6, solver=("midpoint", 1), tune=tune) for tune in (None, True))
    assert plain[1].explain().tuning is None and plain[1].explain().confirmed.samples == 60
    tuning = tuned[1].explain().tuning
    assert tuning.after < tuning.before and tuned[1].explain().confirmed.loss < plain[1].explain().confirmed.loss


def test_confidence_is_that_of_the_bound(reductor):
    found = reductor.reduce(max_loss=0.03, confidence=0.9)[1].explain().confirmed
    assert found.confidence == 0.9 and found.bound <= 0.03
    words = r"99\.9 % confidence, found a loss of .* samples of this kind would show it"
    with pytest.raises(NothingToReduceError, match=words) as raised:
        reduce_network(network(), "1", X, metric="agreement", max_loss=0.03, confidence=0.999)
    assert isinstance(raised.value.best[1], ReducedODELayer) and len(raised.value.curve) > 10


def test_what_the_last_tuning_alone_makes_good_enough_is_confirmed_too(reductor, monkeypatch):
    run, confirmed, tested = search.Search.run, NetworkReductor._confirmed, []
    monkeypatch.setattr(search.Search, "run", lambda self: run(self) and [])
    monkeypatch.setattr(NetworkReductor, "_confirmed", lambda *args: tested.append(args) or confirmed(*args))
    found = reductor.reduce(max_loss=0.03, confidence=0.9)[1].explain().confirmed
    assert tested and found.confidence == 0.9 and found.bound <= 0.03


def test_what_is_not_faster_on_the_clock_is_passed_over(reductor, monkeypatch):
    chosen = reductor.reduce(max_loss=0.05, tune=False)[1].explain().chosen
    clocked, timed = clock_module.clocked, []

    def slow_at_first(full, small, name, *others):
        found = clocked(full, small, name, *others)
        timed.append(small.get_submodule(name))
        if len(timed) == 1:
            calls = [c if c.network == "full" else type(c)(**vars(c) | {"seconds": 1.0}) for c in found.calls]
            return type(found)(tuple(calls), found.threads, found.device)
        return found

    monkeypatch.setattr("torchmor.adapters.reduction.network_reductor.clocked", slow_at_first)
    other = reductor.reduce(max_loss=0.05, tune=False)[1].explain()
    assert len(timed) == 2 and other.chosen != chosen and other.chosen.cost >= chosen.cost
    assert chosen in other.curve


def test_nothing_is_faster_on_the_clock(reductor, monkeypatch):
    clocked = clock_module.clocked

    def slow(*arguments):
        found = clocked(*arguments)
        calls = [c if c.network == "full" else type(c)(**vars(c) | {"seconds": 1.0}) for c in found.calls]
        return type(found)(tuple(calls), found.threads, found.device)

    monkeypatch.setattr("torchmor.adapters.reduction.network_reductor.clocked", slow)
    words = r"found \d that would do, but take longer than the full layer"
    with pytest.raises(NothingToReduceError, match=words) as raised:
        reductor.reduce(max_loss=0.05, tune=False)
    assert raised.value.best is not None


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        y = self.inner(x)
        return y, y.sin()


def test_outputs_that_cannot_be_tuned_are_searched_as_they_are():
    found = reduce_network(Pair(), "inner.1", X, max_loss=0.05).inner[1].explain()
    assert found.tuning is None and found.chosen.loss <= 0.05 and found.confirmed.bound >= found.confirmed.loss
    with pytest.raises(UnsupportedOperationError, match="whose output is one Tensor"):
        reduce_network(Pair(), "inner.1", X, max_loss=0.05, tune=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effort": 0}, "effort to be an integer, 1 or more, got 0"),
        ({"effort": 1.5}, "effort to be an integer"),
        ({"confidence": 1.0}, "confidence to be None or between 0 and 1"),
        ({"confidence": math.nan}, "confidence to be None or between 0 and 1"),
        ({"augment": "cutmix", "max_loss": 0.03}, 'augment to be None, "mix", "none"'),
    ],
)
def test_impossible_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        reduce_network(network(), "1", X, **options)
