"""Lessons: answers of the full network, by coarse steps where these will do, and samples that are made of others."""

import pytest
import torch
from torch import nn

from networks import Parts, Tanh, dense
from torchmor.adapters import ODELayer, reduce_network
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.solving.steps import solved_by
from torchmor.adapters.tuning import lessons as module
from torchmor.adapters.tuning.lessons import TEACHING_SHARE, Lessons, mixed
from torchmor.adapters.tuning.training import tune
from torchmor.engine.errors import CalibrationError, NonFiniteError, SolverError, UnsupportedOperationError

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
EXACT = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-10}


def batches(data=X, size=20, **options):
    return list(Calibration(data, size, **{"batched": (True,), **options}))


def lessons(network, fit=X[:40], exam=X[40:], **options):
    return Lessons(network, batches(fit), batches(exam), **options)


def test_coarse_steps_teach_where_they_will_do():
    """Law: the exam has outputs of the network's own solver; those of the teacher are near enough to them."""
    network = dense(**EXACT).double()
    found = lessons(network, layers=["ode"])
    steps = found.teacher(0.1)
    assert steps is not None
    assert found.taught_by(steps) == str(steps)
    coarse, (exam,) = solved_by(network, "ode", steps), found.exam
    with torch.no_grad():
        assert torch.equal(exam.target, network(X[40:]))
        error = float((coarse(X[40:]) - exam.target).square().mean() / exam.target.var(correction=0))
        for batch, target in found.round(0, steps):
            assert torch.equal(target, coarse(*batch.arguments))
    assert 0 < error <= TEACHING_SHARE * 0.1
    closer = found.teacher(1e-3)
    assert closer is None or closer.evaluations > steps.evaluations
    assert found.teacher(1e-12) is None
    assert found.taught_by(None) == "dopri5"


@pytest.mark.parametrize(
    ("solver", "layers"), [("euler", ["ode"]), ("dopri5", [])], ids=["nothing is cheaper", "no ODELayer"]
)
def test_otherwise_its_own_solver_teaches(solver, layers):
    network = dense(method=solver).double()
    found = lessons(network, layers=layers)
    assert found.teacher(1.0) is None
    assert found.taught_by(None) == ("1 Euler step" if layers else "its own solver")
    assert torch.equal(found.round(0, None)[1].target, network(X[20:40]))


def test_coarse_steps_from_output_time_to_output_time():
    ode = ODELayer(Tanh(5), t=(0.0, 0.3, 1.0, 2.0), output="trajectory", **EXACT).double()
    network = Parts(lambda self, x: self.ode(x).transpose(0, 1), ode=ode)
    found = lessons(network, layers=["ode"])
    steps = found.teacher(0.05)
    assert steps == "midpoint"
    assert found.taught_by(steps) == "3 midpoint steps"
    with torch.no_grad():
        assert torch.equal(found.round(0, steps)[0].target, solved_by(network, "ode", steps)(X[:20]))


def test_mixtures():
    """Law: convex combinations of two samples, in the same share for all arguments; the first one's integers."""
    x, label = torch.rand(20, 3, 4).double(), torch.arange(20)
    same = x.flatten(1)[:, :2].float()
    times, whole = torch.linspace(0, 1, 7), torch.rand(20)
    arguments = (x, {"same": same, "label": label}, times, whole)
    (batch,) = batches([arguments], batched=(True, True, False, False))
    found = mixed(batch, torch.Generator().manual_seed(1))
    y, named, *rest = found.arguments
    assert torch.equal(named["label"], label)
    assert all(one is other for one, other in zip(rest, (times, whole), strict=True))
    assert y.dtype == x.dtype and named["same"].dtype == same.dtype
    torch.testing.assert_close(named["same"].double(), y.flatten(1)[:, :2], rtol=0, atol=1e-6)
    moved = (y - x).flatten(1)
    others = (x[None] - x[:, None]).flatten(2)  # from each sample to each other one
    cosines = torch.einsum("ijk,ik->ij", others, moved) / (others.norm(dim=2) * moved.norm(dim=1)[:, None] + 1e-300)
    best = cosines.argmax(1)
    shares = moved.norm(dim=1) / others.norm(dim=2)[torch.arange(20), best].clamp(min=1e-300)
    changed = moved.norm(dim=1) > 0
    assert changed.sum() >= 15
    assert (cosines.amax(1)[changed] > 1 - 1e-9).all()
    assert (shares[changed] <= 1).all()


def test_further_samples_are_a_function_of_the_seed():
    network = dense(method="midpoint").double()

    def made(seed):
        return [batch.arguments[0] for batch, _ in lessons(network, augment="mix", seed=seed).round(1, None)]

    one, again, other = made(1), made(1), made(2)
    assert all(map(torch.equal, one, again))
    assert not any(map(torch.equal, one, other))
    found = lessons(network, augment="mix")
    assert found.rounds == 4
    assert not torch.equal(found.round(1, None)[0].batch.arguments[0], found.round(2, None)[0].batch.arguments[0])


def test_whole_batches_and_integers_cannot_be_mixed():
    network, data = dense(method="midpoint").double(), [(X[:20],), (X[20:40],)]
    whole = Lessons(network, batches(data, batched=(False,)), batches(data, batched=(False,)), augment="mix")
    assert whole.rounds == 0
    embedded = nn.Sequential(nn.Embedding(9, 5).double(), *network)
    codes = torch.arange(9).repeat(3)
    assert lessons(embedded, codes, codes, augment="mix").rounds == 0
    assert lessons(network, X[:1], X, augment="mix").rounds == 0


def test_further_samples_have_a_limit_of_memory(monkeypatch):
    network = dense(method="midpoint").double()
    monkeypatch.setattr(module, "FURTHER_BYTES", 2 * X[:40].nbytes + 1)
    assert lessons(network).rounds == 2
    monkeypatch.setattr(module, "FURTHER_BYTES", 0)
    assert lessons(network).rounds == 0


def test_a_function_makes_further_samples():
    network = dense(method="midpoint").double()
    found = lessons(network, augment=lambda x: x + torch.rand(()))
    state = torch.get_rng_state()
    for (batch, target), (real, _) in zip(found.round(1, None), found.round(0, None), strict=True):
        moved = batch.arguments[0] - real.arguments[0]
        assert moved.min() > 0 and moved.max() - moved.min() < 1e-12
        assert torch.equal(target, network(batch.arguments[0]))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("augment", "words"),
    [(lambda x: (x, x), r"1 arguments of the network, got \(20, 5\), \(20, 5\)"), (lambda x: None, "1 .*got NoneType")],
)
def test_what_a_function_must_return(augment, words):
    found = lessons(dense(method="midpoint").double(), augment=augment)
    with pytest.raises(CalibrationError, match=f"expected augment to return {words}"):
        found.round(1, None)


def test_refusals():
    network = dense(method="midpoint").double()
    with pytest.raises(ValueError, match=r'expected augment to be None, "mix", "none", or a function.*got .cutmix'):
        lessons(network, augment="cutmix")
    with pytest.raises(CalibrationError, match="two samples or more"):
        Lessons(network, batches(), [])
    several = Parts(lambda self, x: (self.inner(x), x), inner=network)
    with pytest.raises(UnsupportedOperationError, match="output is one Tensor, got tuple"):
        lessons(several)


class Strict(nn.Module):
    """A network that takes samples of whole numbers only."""

    def __init__(self):
        super().__init__()
        self.ode, self.head = ODELayer(Tanh(5), method="midpoint"), nn.Linear(5, 3)

    def forward(self, x):
        if not torch.equal(x, x.round()):
            raise ValueError("expected whole numbers")
        return self.head(self.ode(x))


def test_a_network_that_refuses_mixtures_goes_without():
    network, x = Strict().double(), X.mul(4).round()
    assert lessons(network, x[:40], x[40:]).rounds == 0
    asked = lessons(network, x[:40], x[40:], augment="mix")
    assert asked.rounds == 4
    with pytest.raises(ValueError, match="whole numbers"):
        asked.round(1, None)


def test_what_stands_before_the_layer_is_computed_once_for_all_students():
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return super().forward(x)

    parts = {"stem": Counted(5, 10), "ode": ODELayer(Tanh(10), **EXACT), "head": nn.Linear(10, 3)}
    network = Parts(lambda self, x: self.head(self.ode(self.stem(x))), **parts).double()
    students = [reduce_network(network, "ode", X, state_dim=r, points=r + 1, batched=(True,)) for r in (2, 3)]
    Counted.calls = 0
    found = lessons(network, layers=["ode"], augment="none")
    steps = found.teacher(0.1)
    found.round(0, steps)
    looks = 1 + len(found._coarse_errors) + 1  # at each teacher in its turn
    assert Counted.calls == looks + 3
    for student in students:
        Counted.calls = 0
        tune(student, found, epochs=3)
        assert Counted.calls <= 2 + 4, "looks, and the scales of coordinates"


@pytest.mark.parametrize("failure", [SolverError, NonFiniteError])
def test_coarse_steps_that_fail_on_real_samples_do_not_teach(failure, monkeypatch):
    """The exam does not tell."""
    found = lessons(dense(**EXACT).double(), layers=["ode"])
    assert found._coarse_errors
    answers = found._answers

    def failing(batches, steps, real=True):
        if steps is not None:
            raise failure("in the lessons")
        return answers(batches, steps, real)

    monkeypatch.setattr(found, "_answers", failing)
    assert found.teacher(1.0) is None
