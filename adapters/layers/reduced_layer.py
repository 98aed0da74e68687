"""The reduced ODE layer: projection, a small ODE, and lifting. It runs on torch alone."""

import copy
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from torchmor import adapters
from torchmor.adapters.layers.chain_module import ChainModule
from torchmor.adapters.layers.mismatch import explain_mismatch
from torchmor.adapters.solving.solve_request import SolveRequest
from torchmor.adapters.solving.solve_settings import ADAPTIVE_METHODS, SolveSettings, SolvingLayer
from torchmor.engine.errors import InputError, NoRecordError, OutsideCalibrationWarning, ShapeError
from torchmor.engine.explanation import Explanation


class ReducedODELayer(SolvingLayer):
    """An ODE layer of reduced order: ``z(t_0) = Wᵀ (y_0 − c)``, ``z' = f_r(t, z, u)``, ``y ≈ c + V z``.

    It is called like the :class:`~torchmor.adapters.ODELayer` it replaces. The reduced operators are parameters, so
    that the layer can be trained; fixed-step methods and loading need torch only.

    Parameters
    ----------
    settings
        How the reduced ODE is solved.
    state_shape
        Shape of one sample's state.
    ode
        The reduced ODE function f_r.
    state_dim
        Size r of the reduced state; None keeps the state as it is, without projection and lifting.
    input_use
        Whether the original function takes an input u: "required", "optional" or "none".
    explanation
        What the reduction did.

    Attributes
    ----------
    encode, decode
        Projection and lifting, nn.Linear (nn.Identity where the state is kept).
    ode
        The reduced ODE function, a ChainModule.
    usual_distance
        Largest :meth:`distance` of the initial states of held-out calibration samples; None if it is unknown. `distill`
        measures it again; who changes the parameters in another way has to set it.
    on_outside
        What to do with states that are farther than that from the reduced space, or not finite, or whose input is not
        finite: None (the default) to do nothing, "warn" for an OutsideCalibrationWarning, or a function of the
        distances (batch,), which are NaN where something is not finite. Checking costs a product with the encoder and
        the decoder for each call, and waits for the device.
    """

    def __init__(
        self,
        settings: SolveSettings,
        state_shape: Sequence[int],
        ode: ChainModule,
        state_dim: int | None,
        input_use: str = "none",
        explanation: Explanation | None = None,
    ):
        super().__init__(settings)
        self.state_shape = tuple(state_shape)
        self.input_use = input_use
        self.explanation = explanation
        self.usual_distance: float | None = None
        self.on_outside: str | Callable[[Tensor], None] | None = None
        self._record: dict[str, Any] | None = None
        size = 1
        for length in self.state_shape:
            size *= length
        kind: dict[str, Any] = {"dtype": ode.output.weight.dtype, "device": ode.output.weight.device}
        keep = state_dim is None
        self.encode: Any = nn.Identity() if keep else skip_init(nn.Linear, size, state_dim, **kind)
        self.ode = ode
        self.decode: Any = nn.Identity() if keep else skip_init(nn.Linear, state_dim, size, **kind)

    def forward(self, y0: Tensor, u: Any = None, t: Sequence[float] | Tensor | None = None) -> Tensor:
        """Solve the reduced ODE from the state y0.

        Parameters
        ----------
        y0
            Initial state (batch, *state_shape), of the layer's dtype and device.
        u
            Input: a callable of t that returns (batch, p), or samples (batch, len(input_times), p).
        t
            Times instead of the layer's.

        Returns
        -------
        Tensor (batch, *state_shape), or (len(t), batch, *state_shape) for the output "trajectory", like y0.

        Raises
        ------
        ShapeError, DtypeError, DeviceError, InputError, ValueError
            An argument does not fit.
        SolverError
            The solver failed.
        """
        request = SolveRequest.of(self.settings, y0, u, t, input_use=self.input_use)
        if tuple(y0.shape[1:]) != self.state_shape:
            raise ShapeError(
                f"expected a state of shape (batch, {', '.join(map(str, self.state_shape))}), for which the layer was "
                f"reduced, got {tuple(y0.shape)}: reshape it, or reduce the network for this shape"
            )
        if not torch.compiler.is_exporting() and y0.numel() == 0:  # a graph may not ask for a length
            return request.unchanged(y0)
        if self.on_outside is not None:
            self._check(y0, request)
        request = request._replace(settings=self.solver_settings())
        try:
            z = request.solve(self._reduced_f, self.encode(y0.flatten(1)), self.ode.parameters(), self._slopes)
        except RuntimeError as error:
            explained = explain_mismatch(error, self, (y0,), "the state y0")
            if explained is error:
                raise
            raise explained from error
        y = self.decode(z).reshape(*z.shape[:-1], *self.state_shape)
        return y.to(y0.dtype)  # autocast may have changed it

    def distance(self, y0: Tensor) -> Tensor:
        """Return how far states are from the reduced space, relative to their distance from its offset c.

        Law: ``‖y0 − (c + V Wᵀ (y0 − c))‖ / ‖y0 − c‖`` for each sample; 0 where the state is kept; NaN for a state that
        is not finite.

        Parameters
        ----------
        y0
            States (batch, *state_shape).

        Returns
        -------
        Tensor (batch,).
        """
        with torch.no_grad():
            y0 = y0.flatten(1)
            if isinstance(self.encode, nn.Identity):
                return _nan_where(~y0.isfinite().all(1), y0.new_zeros(len(y0)))
            missed = (y0 - self.decode(self.encode(y0))).norm(dim=1)
            least = 1e-3 * self.decode.bias.norm() + torch.finfo(y0.dtype).tiny  # at c itself there is rounding only
            distances = missed / (y0 - self.decode.bias).norm(dim=1).clamp(min=least)
            return _nan_where(~y0.isfinite().all(1), distances)

    def _check(self, y0: Tensor, request: SolveRequest) -> None:
        """Do what `on_outside` says if a state is outside."""
        if self.usual_distance is None:
            raise NoRecordError(
                "expected a layer that reduce_network made, to tell which states are unusual, got one without "
                "usual_distance: set it, or set on_outside to None"
            )
        if not callable(self.on_outside) and self.on_outside != "warn":
            raise ValueError(f'expected on_outside to be None, "warn" or a function, got {self.on_outside!r}')
        distances = self.distance(y0)
        if request.signal is not None:
            inputs = request.signal.along(request.times, y0).detach()
            distances = _nan_where(~inputs.isfinite().all(-1).all(0), distances)
        outside = ~(distances <= self.usual_distance)  # NaN is no distance, and as far as can be
        if not bool(outside.any()):
            return
        if callable(self.on_outside):
            self.on_outside(distances)
            return
        unknown = distances.isnan()
        far = outside & ~unknown
        told = []
        if bool(unknown.any()):
            told.append(f"{int(unknown.sum())} of {len(y0)} states, or their inputs, contain NaN or infinity")
        if bool(far.any()):
            told.append(
                f"{int(far.sum())} of {len(y0)} states are farther from the reduced space than those of the "
                f"calibration data: relative distance up to {float(distances[far].max()):.2g}, usually at most "
                f"{self.usual_distance:.2g}"
            )
        warnings.warn(
            f"{'; '.join(told)}; the result may be wrong, "
            + ("calibrate with data like this" if bool(far.any()) else "clean the data"),
            OutsideCalibrationWarning,
            stacklevel=4,
        )

    def _reduced_f(self, t: Tensor, z: Tensor, u: Tensor | None) -> Tensor:
        self._check_channels(u)
        return self.ode(z, u, t)

    def _slopes(self, times: Sequence[float], u: Tensor | None, z0: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """f_r at several times, with inputs u (len(times), batch, p), as functions of z."""
        self._check_channels(u)
        return [partial(self.ode, known=known) for known in self.ode.along(times, u, z0)]

    def _check_channels(self, u: Tensor | None) -> None:
        if u is not None and u.shape[-1] != self.ode.input_size:
            raise InputError(
                f"expected an input of {self.ode.input_size} channels, for which the layer was reduced, got u(t) of "
                f"shape {tuple(u.shape[-2:])}: give the input that the calibration data had"
            )

    def solver_settings(self) -> SolveSettings:
        """Return the settings of the reduced solve.

        Adaptive methods measure errors of z as errors of ``y = c + V z``: tolerances, and a norm among the options,
        mean what they meant before.
        """
        options = self.settings.options
        if self.method not in ADAPTIVE_METHODS or isinstance(self.decode, nn.Identity):
            return self.settings
        lifting, given = self.decode.weight.detach(), options.get("norm")
        gramian, size = lifting.T @ lifting, lifting.shape[0]

        def norm(z: Tensor) -> Tensor:
            z = z.detach()
            if given is not None:
                return given((z @ lifting.T.to(z)).reshape(-1, *self.state_shape))
            return ((z @ gramian.to(z)) * z).sum().clamp(min=0).div(z.shape[0] * size).sqrt()

        return replace(self.settings, options={**options, "norm": norm})

    # -- what the reduction left behind ---------------------------------------------------------------------------

    def explain(self) -> Explanation:
        """Return what was gained and lost, what was reduced and kept and why; print it to read it, or `plot()` it.

        Where the parameters or the solver were changed since, it says so, and leaves out what was measured before.
        """
        if self.explanation is None:
            raise NoRecordError("this layer was not made by reduce_network: there is nothing to explain")
        return self.explanation.as_of(self.fingerprint(), str(self.settings))

    def fingerprint(self) -> str:
        """Return a checksum of the parameters: the same on every device and in every dtype that holds their values."""
        digest = hashlib.sha256()
        for parameter in self.parameters():
            digest.update(parameter.detach().to("cpu").to(torch.float64).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def rom(self) -> Any:
        """The reduced-order model in pyMOR, rebuilt from the layer's current parameters."""
        return adapters.reduced_order_model(self)

    @property
    def fom(self) -> Any:
        """The full-order model in pyMOR."""
        return self._recorded("fom")

    @property
    def bases(self) -> Any:
        """Bases by name: "state" (n, r), and the collateral basis (size, m) of each interpolated stage."""
        return self._recorded("bases")

    @property
    def singular_values(self) -> Any:
        """Singular values by name: of the "state", and of stages; after loading the largest 512 of each."""
        return self._recorded("singular_values")

    @property
    def points(self) -> Any:
        """Evaluated components (m,) of each interpolated stage by name, as indices into the flattened stage."""
        return self._recorded("points")

    def record(self, **entries: Any) -> None:
        """Keep what the reduction computed beside the operators; it is not saved, pickled or part of the state.

        Singular values and points are in the explanation too, and come from there after loading.
        """
        self._record = entries

    def _recorded(self, name: str) -> Any:
        if self._record is not None:
            return self._record[name]
        told = self.explanation
        if name in ("singular_values", "points") and told is not None and told.state_shape:
            kind = np.int64 if name == "points" else np.float64
            return {part: np.array(values, kind) for part, values in getattr(told, name).items()}
        raise NoRecordError(
            f"this layer was loaded from a file: it holds the reduced operators only, and no '{name}'; reduce the "
            "network again to get it"
        )

    def __getattr__(self, name: str) -> Any:
        found = getattr(type(self), name, None)  # a property that raised: nn.Module would hide its own message
        return found.__get__(self) if isinstance(found, property) else super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_record": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReducedODELayer":
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__getstate__(), memo), _record=self._record)
        return clone

    def extra_repr(self) -> str:
        """Return the sizes and settings for ``repr(layer)``."""
        return f"state {self.state_shape} -> {self.ode.state_size}, {super().extra_repr()}"


def _nan_where(mask: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(mask, float("nan"))
