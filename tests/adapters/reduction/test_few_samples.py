"""Little calibration data: refused below a minimum, warned about with the number, and errors that are not measured."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from catalogue import module
from torchmor.adapters import ODELayer, reduce_network
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.balancing import balance
from torchmor.engine.bases import pod
from torchmor.engine.errors import CalibrationError, FewSamplesWarning, NonFiniteError, TorchmorWarning
from torchmor.engine.explanation import Explanation
from torchmor.engine.models import ode_layer_model
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

SIZES = {"basis": "pod", "points": 5, "progress": False}


def network():
    torch.manual_seed(0)
    ode = ODELayer(nn.Sequential(nn.Linear(9, 9), nn.Tanh()), method="rk4", t=(0.0, 0.5, 1.0))
    return nn.Sequential(nn.Linear(9, 9), ode, nn.Linear(9, 3)).double()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_samples_than_the_minimum_are_refused(count):
    with pytest.raises(CalibrationError, match=f"at least 4 calibration samples, .* got {count}"):
        reduce_network(network(), "1", torch.randn(count, 9, dtype=torch.float64), state_dim=2, **SIZES)


def test_fewer_samples_than_reduced_states_are_warned_about():
    x = torch.randn(6, 9, dtype=torch.float64)
    with pytest.warns(FewSamplesWarning, match="5 calibration samples are few to fit 8 reduced states .* at least 10"):
        reduce_network(network(), "1", x, state_dim=8, **SIZES)
    assert issubclass(FewSamplesWarning, TorchmorWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduce_network(network(), "1", x, state_dim=3, **SIZES)


def test_fewer_snapshots_than_points_are_warned_about():
    net = network()
    net[1] = ODELayer(net[1].func, method="euler")
    with pytest.warns(FewSamplesWarning, match="8 calibration samples are few .* 5 points .* at least 13"):
        reduce_network(net, "1", torch.randn(10, 9, dtype=torch.float64), state_dim=3, **SIZES)


def engine_setting():
    torch.manual_seed(0)
    f = module(lambda self, t, y: torch.tanh(self.a(y)), a=nn.Linear(9, 9)).double()
    chain = trace(lambda t, y, u: f(t, y), torch.randn(2, 9, dtype=torch.float64))
    fom = ode_layer_model(chain, RungeKuttaTimeStepper("rk4", (0.0, 1.0)))
    return fom, np.random.default_rng(0).normal(size=(9, 40))


def test_errors_of_a_single_sample_are_not_measured():
    """Not 0: nothing was held out; with two samples there is a number."""
    fom, y = engine_setting()
    for samples, measured in ((np.zeros(40), False), (np.arange(40) // 20, True), (None, True)):
        reduction = SnapshotReductor(fom, y, samples=samples).reduce(
            state_dim=4, points=5, selection="omp", fit="least_squares"
        )
        assert [part.error is not None and part.error > 0 for part in reduction.parts] == [measured, measured]
        explanation = Explanation(
            reduction.parts,
            method={"basis": "pod", "selection": "omp", "fit": "least_squares"},
            solver="",
            snapshots=40,
            samples=1,
            evaluations=1,
            operations=(2, 1),
            errors={},
        )
        (state,) = [line for line in str(explanation).splitlines() if line.startswith("state")]
        assert ("not measured" in state) is not measured


def test_values_that_are_not_finite_are_named():
    fom, y = engine_setting()
    gradients = np.full((9, 4), np.nan)
    with pytest.raises(NonFiniteError, match="finite gradients of the output"):
        balance(pod(y), gradients)
    with pytest.raises(NonFiniteError, match="finite values of 'y' at the snapshots"):
        SnapshotReductor(fom, np.full_like(y, np.nan)).reduce(
            state_dim="full", points=4, selection="omp", fit="least_squares"
        )
