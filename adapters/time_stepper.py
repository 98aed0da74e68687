"""pyMOR time stepping by torchdiffeq, for the methods that have no tableau of fixed steps."""

from dataclasses import replace

import torch

from torchmor.adapters.arrays import to_batch, to_columns
from torchmor.adapters.solve_request import SolveRequest
from torchmor.engine.time_steppers import LayerTimeStepper


class TorchdiffeqTimeStepper(LayerTimeStepper):
    """Any solver of torchdiffeq on pyMOR operators: the same code as the layer's, so the same steps.

    Parameters
    ----------
    settings
        The layer's :class:`~torchmor.adapters.solve_settings.SolveSettings`.
    """

    def __init__(self, settings):
        settings = replace(settings, adjoint=False, output="trajectory")
        self.__auto_init(locals())
        self.times = settings.t

    def integrate(self, f, y, kinks=()):
        space = y.space

        def rhs(t, state, u):
            return to_batch(f(float(t), space.from_numpy(to_columns(state))).to_numpy())

        # f evaluates the input itself; its kinks must stop the solver as they do in the layer
        request = SolveRequest(self.settings, self.times, None, _Kinks(kinks) if kinks else None)
        with torch.no_grad():
            states = request.solve_with_torchdiffeq(rhs, to_batch(y.to_numpy()))
        for state in states:
            yield space.from_numpy(to_columns(state))


class _Kinks:
    """An input signal of which only the kinks count."""

    def __init__(self, kinks):
        self.kinks = kinks

    def __call__(self, t):
        return None
