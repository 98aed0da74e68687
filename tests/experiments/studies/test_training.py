"""Training: reproducible, with the solver asked for, and the layer's own one afterwards."""

import torch

from torchmor.adapters.solving.steps import Steps
from torchmor.experiments.data.images import digits
from torchmor.experiments.data.labelled import DataSet
from torchmor.experiments.measure.comparison import evaluations
from torchmor.experiments.studies.networks import digits_network
from torchmor.experiments.studies.training import train


def few_digits():
    data = digits(0)
    few = type(data.train)(data.train.inputs[:128], data.train.labels[:128])
    return DataSet("few digits", few, data.validation, data.test)


def test_same_seed_same_weights():
    networks = []
    for _ in range(2):
        networks.append(digits_network(seed=3))
        history = train(networks[-1], few_digits(), epochs=2, solver=Steps("euler", 1), seed=3)
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert history[1].loss < history[0].loss


def test_solver_while_training_and_after():
    network = digits_network()
    own = network.ode.settings
    seen = []
    with network.ode.observe(lambda t, y, u: seen.append(float(t))):
        train(network, few_digits(), epochs=1, solver=Steps("midpoint", 1))
    assert set(seen) == {0.0, 0.5}
    assert network.ode.settings == own
    assert not network.training
    assert evaluations(network, "ode", few_digits().test.inputs[:4]) > 6


def test_networks_do_not_move_the_random_state():
    before = torch.get_rng_state()
    digits_network(1)
    assert torch.equal(torch.get_rng_state(), before)
