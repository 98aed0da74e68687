"""Which networks are made, for which seed, and with which solvers."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from networks import chain
from torchmor.adapters import ODELayer, reduce_network
from torchmor.adapters.solving.steps import Steps
from torchmor.experiments.data.images import load_images
from torchmor.experiments.data.sequences import load_sequences
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.studies import convolutional
from torchmor.experiments.studies.candidates import REDUCTIONS, Compression, Distillation, Levels, method_of
from torchmor.experiments.studies.networks import CONVOLUTIONAL, RECURRENT

LEVELS = Levels(
    sizes=((4, 8), (3, 6), (2, 4), (1, 2)),
    kept=(8, 4),
    ranks=(2, 1),
    dense_ranks=(),
    distilled={"x": (Distillation(4, 8), Distillation(2, 4, Steps("euler", 1)))},
)


def jobs(method, key="x", **options):
    data = load_images("digits")
    network = chain(flat=nn.Flatten(), ode=ODELayer(nn.Sequential(nn.Linear(64, 64), nn.Tanh()), method=method))
    data = replace(data, train=replace(data.train, inputs=data.train.inputs[:20], labels=data.train.labels[:20]))
    return list(Compression(key, network, "ode", data, LEVELS, 0).jobs(Steps("midpoint", 1), **options))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_an_adaptive_solver_is_measured_for_some_levels_only(method):
    own = [(job.method, *job.sizes.values()) for job in jobs(method) if job.own_solver and job.method != "skipped"]
    everything = [(job.method, *job.sizes.values()) for job in jobs(method) if job.solver is None]
    assert set(own) <= set(everything)
    if method == "rk4":
        assert len(own) == len(everything) - 1
    else:
        assert ("fitted", 4, 8) in own and ("fitted", 3, 6) not in own and ("fitted", 1, 2) in own
        assert not {"svd", "pruning", "torch-pruning", "pod-galerkin"} & {method for method, *_ in own}


def test_distilled_reductions_and_their_controls():
    def distilled(key, **options):
        found = [job for job in jobs("dopri5", key, **options) if job.method in ("distilled", "control")]
        return [(job.method, job.sizes["r"], str(job.solver)) for job in found]

    large = [("distilled", 4, "1 midpoint step"), ("control", 4, "1 midpoint step")]
    assert distilled("x") == [*large, ("distilled", 2, "1 Euler step"), ("control", 2, "1 Euler step")]
    assert distilled("y") == []
    assert distilled("x", control=False) == [large[0], ("distilled", 2, "1 Euler step")]


def test_levels_in_words():
    words = convolutional.EXPERIMENT.levels.in_words()
    assert words["distilled"]["a"][0] == "48/256 with 1 midpoint step"
    assert words["teacher"] == "1 RK4 step" and LEVELS.in_words()["teacher"] == "own solver"


def test_methods_are_known_by_what_reductions_say_of_themselves():
    layer = ODELayer(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), method="euler")
    y0 = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    for method, arguments in REDUCTIONS.items():
        small = reduce_network(layer, "", y0, state_dim=3, points=4, progress=False, **arguments)
        assert method_of(small.explain().method) == method
    with pytest.raises(KeyError, match="expected a method of"):
        method_of({"basis": "pod", "selection": "omp", "fit": "least_squares"})


def test_what_is_called_the_default_is():
    defaults = inspect.signature(reduce_network).parameters
    (default,) = [key for key, method in METHODS.items() if "The default of torchmor" in method.explanation]
    assert REDUCTIONS[default] == {name: defaults[name].default for name in ("basis", "selection", "fit")}


@pytest.mark.parametrize(("recipe", "times"), [(CONVOLUTIONAL[0], (0.0, 1.0)), (RECURRENT[0], (0.0, 5.0))])
def test_descriptions_of_networks_say_the_times_of_their_layers(recipe, times):
    data = load_images("digits") if recipe in CONVOLUTIONAL else load_sequences("digits")
    layer = recipe.network(data, 0).ode
    assert (layer.t[0], layer.t[-1]) == times
    assert f"from t = {times[0]:g} to t = {times[1]:g}" in recipe.description
