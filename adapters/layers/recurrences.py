"""Time-stepping modules ``z_{k+1} = step(z_k) + s_k``. Torch only: they run on machines without pyMOR."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchmor.engine.errors import ShapeError


class Recurrence(nn.Module):
    """Base class: ``z_{k+1} = step(k, z_k) + s_k`` from an initial state that is a parameter.

    Parameters
    ----------
    times
        Times t_0, …, t_N of the states z_0, …, z_N.
    size
        Size r of the state.
    shifts
        1 when all s_k are the same, else N.
    returned
        Numbers k of the returned states; None for all.
    dtype, device
        Of the parameters, which are zero at first.
    """

    times: Tensor

    def __init__(
        self,
        times: Sequence[float],
        size: int,
        shifts: int = 1,
        returned: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        self.returned = tuple(range(len(times)) if returned is None else returned)
        self.register_buffer("times", torch.tensor(times, **kind))
        self.shift = nn.Parameter(torch.zeros(shifts, size, **kind))
        self.initial_state = nn.Parameter(torch.zeros(size, **kind))

    def step(self, k: int, z: Tensor) -> Tensor:
        """Return what z_k (batch, r) contributes to z_{k+1}."""
        raise NotImplementedError

    def forward(self, z0: Tensor | None = None) -> Tensor:
        """Return the trajectory (number of returned states, batch, r).

        Parameters
        ----------
        z0
            Initial states (batch, r); the module's own, as a batch of one, by default.

        Raises
        ------
        ShapeError
            z0 does not have this shape.
        """
        size = len(self.initial_state)
        if z0 is not None and (z0.ndim != 2 or z0.shape[1] != size):
            raise ShapeError(
                f"expected initial states of shape (batch, {size}), got {tuple(z0.shape)}: pass reduced states as rows"
            )
        z = self.initial_state.unsqueeze(0) if z0 is None else z0
        shifts = self.shift.expand(len(self.times) - 1, size)
        states = [z]
        for k, shift in enumerate(shifts.unbind()):
            z = self.step(k, z) + shift
            states.append(z)
        return torch.stack([states[k] for k in self.returned])

    def extra_repr(self) -> str:
        """Return the sizes for ``repr(module)``."""
        return f"state={len(self.initial_state)}, steps={len(self.times) - 1}, returned={len(self.returned)}"


class LinearRecurrence(Recurrence):
    """The linear recurrence ``z_{k+1} = S z_k + s_k``: a linear model with a one-step method of fixed step size.

    All parameters are those of :class:`Recurrence`; S is the parameter `step_matrix` (r, r).
    """

    def __init__(self, times: Sequence[float], size: int, *others: Any, **kind: Any):
        super().__init__(times, size, *others, **kind)
        self.step_matrix = nn.Parameter(self.shift.new_zeros(size, size))

    def step(self, k: int, z: Tensor) -> Tensor:
        """Return S z_k."""
        return F.linear(z, self.step_matrix)


class NonlinearRecurrence(Recurrence):
    """The explicit recurrence ``z_{k+1} = z_k + increment(t_{k+1}, z_k) + s_k``.

    It is pyMOR's explicit Euler method, which evaluates at the end of a step.

    Parameters
    ----------
    increment
        Module called as ``increment(z, None, t)``: a ChainModule.

    All other parameters are those of :class:`Recurrence`.
    """

    def __init__(self, increment: nn.Module, *others: Any, **kind: Any):
        super().__init__(*others, **kind)
        self.increment = increment

    def step(self, k: int, z: Tensor) -> Tensor:
        """Return z_k + increment."""
        return z + self.increment(z, None, self.times[k + 1])
