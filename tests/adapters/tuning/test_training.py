"""Tuning: rates and mixtures that help are found, at a bounded cost, and what was done is told."""

from dataclasses import replace

import pytest
import torch

from networks import dense
from torchmor.adapters import distill, reduce_network
from torchmor.adapters.layers.placing import copied
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.tuning import training as module
from torchmor.adapters.tuning.lessons import Lessons
from torchmor.adapters.tuning.training import RATES, tune
from torchmor.engine.errors import NothingLearntWarning
from torchmor.engine.findings import Tuning

X = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).double()
CLASSIC = {"basis": "pod", "selection": "deim", "fit": "interpolation"}


def networks(r=3, m=4, **options):
    network = dense(method="midpoint").double()
    return network, reduce_network(network, "ode", X, state_dim=r, points=m, **CLASSIC, **options)


def lessons(network, fit=X[:200], exam=X[200:], **options):
    one, other = (list(Calibration(x, 50, batched=(True,))) for x in (fit, exam))
    return Lessons(network, one, other, layers=["ode"], **options)


def test_a_tuning_tells_what_was_done():
    network, small = networks()
    found = lessons(network, augment="none")
    tuned = copied(small)
    told = tune(tuned, found, epochs=6)
    assert told.after < told.before
    for one, loss, x in ((small, told.before, X[200:]), (tuned, told.after, X[200:]), (tuned, told.trained, X[:100])):
        with torch.no_grad():
            error = (one(x) - network(x)).square().mean() / network(X[200:]).var(correction=0)
        assert loss == pytest.approx(float(error))
    assert (told.epochs, told.samples, told.augment, told.left_out) == (6, 200, "none", 0)
    assert told.teacher in ("1 midpoint step", "1 Euler step")
    assert (told.learning_rate, told.steps) == (RATES[0], 6 * 4)


def test_a_smaller_rate_is_tried_where_the_first_gains_little(monkeypatch):
    network, small = networks()
    monkeypatch.setattr(module, "RATES", (1e3, 1e-2))
    told = tune(small, lessons(network), epochs=4)
    assert (told.learning_rate, told.epochs) == (1e-2, 8)
    assert told.after < 0.9 * told.before


def test_a_rate_that_is_given_is_obeyed():
    network, small = networks()
    told = tune(small, lessons(network, augment="none"), epochs=2, learning_rate=3e-3)
    assert (told.learning_rate, told.steps) == (3e-3, 2 * 4)


def test_mixtures_are_used_where_they_help():
    """Few samples are learnt by heart."""
    network, small = networks(4, 6)
    told = {}
    for augment in (None, "none", "mix"):
        found = lessons(network, X[:12], augment=augment)
        told[augment] = tune(copied(small), found, epochs=60, learning_rate=1e-2)
    assert told["none"].after > 1.2 * told["none"].trained
    assert told[None].augment == told["mix"].augment == "mix"
    assert told[None].after < told["none"].after
    assert told[None].samples == 12 * 5
    assert told[None].epochs == told[None].steps == 120


def test_mixtures_are_not_tried_where_nothing_is_learnt_by_heart():
    network, small = networks(2, 3)
    told = tune(small, lessons(network), epochs=4, learning_rate=1e-2)
    assert told.after <= 1.2 * told.trained
    assert (told.augment, told.epochs, told.samples) == ("none", 4, 200)


def test_the_teacher_is_near_enough_for_what_the_student_can_do_by_then(monkeypatch):
    network, small = networks()
    found, asked = lessons(network, augment="none"), []
    choose = found.teacher

    def teacher(loss):
        asked.append(loss)
        return choose(loss)

    monkeypatch.setattr(found, "teacher", teacher)
    told = tune(small, found, epochs=16)
    assert asked[0] == asked[1] == told.before
    again = tune(small, found, epochs=2, like=told)
    assert asked[2] == again.before == told.after
    assert again.teacher == found.taught_by(choose(told.after))


def test_an_earlier_tuning_saves_the_trials():
    network, small = networks(4, 6)
    found = lessons(network, X[:12])
    first = tune(small, found, epochs=30)
    again = tune(small, found, epochs=30, like=first)
    assert (again.learning_rate, again.augment) == (first.learning_rate, first.augment)
    assert again.steps == 30
    assert again.before == first.after
    assert again.after <= first.after
    plain = tune(small, found, epochs=3, like=replace(first, augment="none"))
    assert (plain.augment, plain.steps, plain.samples) == ("none", 3, 12)


@pytest.mark.parametrize(
    ("augment", "words"), [("mix", "mix"), (lambda x: x + 0.1 * torch.randn_like(x), "a function")]
)
def test_further_samples_that_are_asked_for_are_used(augment, words):
    network, small = networks()
    tuned = distill(network, small, X[:60], validation=X[200:], epochs=20, augment=augment)
    told = tuned.ode.explain().tuning
    assert (told.augment, told.samples) == (words, 3 * 60)


def test_the_same_seed_gives_the_same_bits():
    network, small = networks(4, 6)

    def run(seed):
        tuned = copied(small)
        tune(tuned, lessons(network, augment="mix", seed=seed), epochs=4, seed=seed)
        return tuned.state_dict()

    one, again, other = run(0), run(0), run(1)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_more_data_is_advised_where_the_lessons_were_learnt_by_heart():
    told = Tuning(0.2, 0.1, 0.04, 1, 1, 1.0, "dopri5", "none", 1e-2)
    assert told.wants_data
    assert not replace(told, trained=0.06).wants_data
    network, small = networks(8, 9)
    with pytest.warns(NothingLearntWarning, match="on the data that was trained on the loss is .* would help"):
        distill(network, small, X[:2], validation=X[200:] * 3, epochs=1, learning_rate=1e3, augment="none")
