"""pyMOR's defaults are settings of its users, and change with its versions: no result of ours depends on them."""

import numpy as np
import pytest
import torch
from pymor.core.defaults import set_defaults
from torch import nn

from catalogue import module
from torchmor.adapters.tracing.classifier import trace
from torchmor.engine.models import ode_layer_model
from torchmor.engine.reduction import SnapshotReductor
from torchmor.engine.time_steppers import RungeKuttaTimeStepper

OTHERS = {
    "pymor.algorithms.pod.pod.method": ("qr_svd", "method_of_snapshots"),
    "pymor.algorithms.pod.pod.rtol": (1e-1, 1e-7),
    "pymor.algorithms.pod.pod.atol": (1.0, 0.0),
    "pymor.algorithms.pod.pod.l2_err": (1.0, 0.0),
    "pymor.algorithms.pod.pod.orth_tol": (np.inf, 1e-10),
    "pymor.algorithms.gram_schmidt.gram_schmidt.atol": (1e-1, 1e-13),
    "pymor.algorithms.gram_schmidt.gram_schmidt.rtol": (1e-1, 1e-13),
    "pymor.algorithms.gram_schmidt.gram_schmidt.reiterate": (False, True),
}


@pytest.fixture
def other_defaults():
    set_defaults({name: other for name, (other, _) in OTHERS.items()})
    yield
    set_defaults({name: usual for name, (_, usual) in OTHERS.items()})


def reduced():
    """Matrices of all methods, with few gradients, as pyMOR's main branch has balancing fail for them."""
    torch.manual_seed(0)
    f = module(lambda self, t, y: torch.tanh(self.a(y)), a=nn.Linear(12, 12)).double()
    chain = trace(lambda t, y, u: f(t, y), torch.randn(2, 12, dtype=torch.float64))
    fom = ode_layer_model(chain, RungeKuttaTimeStepper("rk4", (0.0, 1.0)))
    rng = np.random.default_rng(0)
    y, gradients = rng.normal(size=(12, 60)), rng.normal(size=(12, 3))
    reductor = SnapshotReductor(fom, y, None, 0.0, lambda: gradients)
    found = []
    for selection, fit in (("omp", "least_squares"), ("deim", "interpolation"), ("qdeim", "interpolation")):
        for basis in ("pod", "balanced"):
            one = reductor.reduce(state_dim=5, points=6, basis=basis, selection=selection, fit=fit)
            found += [one.bases["state"], one.points["g1"], *(m.linear for m in one.rom.operator.chain.maps)]
    one = reductor.reduce(state_dim="full", points=6, selection="ei_greedy")
    return [*found, one.points["g1"], one.rom.operator.chain.output.linear]


def test_results_do_not_depend_on_defaults(request):
    usual = reduced()
    request.getfixturevalue("other_defaults")
    for a, b in zip(usual, reduced(), strict=True):
        np.testing.assert_array_equal(a, b)
