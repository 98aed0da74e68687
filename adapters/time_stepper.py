"""pyMOR time stepping by torchdiffeq, for the methods that have no tableau of fixed steps."""

from dataclasses import replace

import torch

from torchmor.adapters.solve_request import ADAPTIVE_METHODS, SolveRequest
from torchmor.engine.time_steppers import LayerTimeStepper


class TorchdiffeqTimeStepper(LayerTimeStepper):
    """Any solver of torchdiffeq on pyMOR operators: the same code as the layer's, so the same steps.

    Parameters
    ----------
    settings
        The layer's :class:`~torchmor.adapters.solve_request.SolveSettings`.
    """

    def __init__(self, settings):
        settings = replace(settings, adjoint=False, output="trajectory")
        self.__auto_init(locals())
        self.times = settings.t

    def integrate(self, f, y, kinks=()):
        space = y.space

        def rhs(t, state, u):
            return torch.from_numpy(f(float(t), space.from_numpy(state.numpy().T)).to_numpy().T)

        settings = self.settings
        if kinks and settings.method in ADAPTIVE_METHODS:
            low, high = sorted((self.times[0], self.times[-1]))
            jumps = {*settings.options.get("jump_t", ()), *(k for k in kinks if low < k < high)}
            jumps -= set(settings.options.get("step_t", ()))  # torchdiffeq refuses a time that comes twice
            settings = replace(settings, options={**settings.options, "jump_t": sorted(jumps)})
        request = SolveRequest(settings, self.times, None, None)
        with torch.no_grad():
            states = request.solve_with_torchdiffeq(rhs, torch.from_numpy(y.to_numpy().T.copy()))
        for state in states:
            yield space.from_numpy(state.numpy().T)
