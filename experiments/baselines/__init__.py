"""From a trained network to faster copies, by the methods of the literature.

Each returns faster copies of a trained network, one for each size, and leaves the network itself as it is. None of them
trains afterwards. The ODE layer keeps its name, its solver and its settings::

    from torchmor.experiments.baselines import prune_neurons, prune_structure, truncate_weights

    half, quarter = prune_neurons(network, "ode", calibration, kept=(128, 64))
    (low_rank,) = truncate_weights(network, "ode", ranks=(16,))
    (thinner,) = prune_structure(network, "ode", example_inputs, kept=(128,))
"""

from torchmor.experiments.baselines.pruning import prune_neurons
from torchmor.experiments.baselines.svd import truncate_weights
from torchmor.experiments.baselines.torch_pruning import prune_structure

__all__ = ["prune_neurons", "prune_structure", "truncate_weights"]
