"""Snapshots of an ODE layer: where its own solver evaluates the ODE function on calibration data."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.placing import copied, find_layer, find_module, uncompiled
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import Batch, Calibration
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.networks.progress import phases, track
from torchmor.adapters.networks.stand_in import with_ode_layer
from torchmor.engine.errors import CalibrationError, NonFiniteError, ShapeError
from torchmor.engine.thinning import thinning_key

MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Snapshots:
    """The (t, y, u) at which the solver of an ODE layer evaluated the ODE function, in float64.

    Columns are ordered by sample, then by evaluation.

    Parameters
    ----------
    t
        Times (k,).
    y
        States (n, k), flattened.
    u
        Inputs (p, k); p = 0 without an input.
    sample
        Index (k,) of the calibration sample.
    state_shape
        Shape of one sample's state, of n entries.
    n_samples
        Number of calibration samples: `sample` counts 0, …, n_samples − 1.
    nfe
        Evaluations of the ODE function in each calibration batch.
    t_range
        Smallest and largest time of all evaluations.
    """

    t: np.ndarray
    y: np.ndarray
    u: np.ndarray
    sample: np.ndarray
    state_shape: tuple[int, ...]
    n_samples: int
    nfe: tuple[int, ...]
    t_range: tuple[float, float]

    def __len__(self) -> int:
        return len(self.t)

    def of_samples(self, mask: np.ndarray) -> "Snapshots":
        """Return the snapshots of the calibration samples where `mask` (n_samples,) is true."""
        kept = np.asarray(mask, dtype=bool)[self.sample]
        return replace(self, t=self.t[kept], y=self.y[:, kept], u=self.u[:, kept], sample=self.sample[kept])


def collect_snapshots(
    network: nn.Module,
    name: str,
    calibration: Any,
    *,
    batch_size: int = 256,
    max_snapshots: int = 6000,
    batch_to_inputs: Callable[[Any], Any] | None = None,
    progress: bool = False,
    input_attribute: str | None = None,
    batched: Sequence[bool] | None = None,
) -> Snapshots:
    """Collect the (t, y, u) at which an ODE layer's own solver evaluates the ODE function.

    Law: each snapshot is an evaluation of the plain run ``network(*batch)`` in eval mode; the network is left
    as it was. More than `max_snapshots` are thinned evenly over samples and evaluations, the same ones in
    every run (and, if every batch takes the same number of evaluations, for every batch size): evaluation e
    of sample s is kept if ``frac(s √(2/3) + e/φ)`` is among the smallest. If the layer is called several
    times in one forward pass, its evaluations are pooled.

    Parameters
    ----------
    network
        The network; it runs in its own dtype.
    name
        Name of the ODE layer in ``network.named_modules()``; "" if the network is the layer. A module that calls
        torchdiffeq itself is observed as the ODELayer that does the same.
    calibration
        A Tensor (one argument) or tuple of Tensors (the arguments of one call), split along dimension 0; or
        any re-iterable of batches, each a Tensor or a tuple or list of arguments; or a Calibration.
    batch_size
        Samples of a batch, for Tensors.
    max_snapshots
        Most snapshots to keep; fewer are kept where they would take more than 512 MiB.
    batch_to_inputs
        Maps a batch to the network's arguments.
    progress
        Show a progress bar, if standard error is a terminal.
    input_attribute, batched
        As in :func:`~torchmor.adapters.reduce_network`.

    Raises
    ------
    UnknownLayerError
        The network has no ODE layer of this name.
    UnsupportedOperationError
        A module that calls torchdiffeq itself does more than an ODELayer.
    CalibrationError
        The data is empty, can be read only once or does not fit the network, or the layer was never called.
    NonFiniteError
        The data or a state contains NaN or infinity.
    SolverError
        The solver failed.

    References
    ----------
    Niederreiter: Random Number Generation and Quasi-Monte Carlo Methods, SIAM 1992 (Kronecker sequences).
    """
    if max_snapshots < 1:
        raise ValueError(f"expected max_snapshots to be at least 1, got {max_snapshots}")
    if not isinstance(calibration, Calibration):
        network = uncompiled(network)
        find_module(network, name)
        calibration = Calibration(calibration, batch_size, batch_to_inputs, batched=batched)
        calibration = with_batched(calibration, copied(network), name, input_attribute)
    network, name = with_ode_layer(network, name, calibration, input_attribute)
    layer = find_layer(network, name)
    reservoir = SnapshotReservoir(max_snapshots)
    with evaluation(network), layer.observe(reservoir.observe), phases(progress):
        for batch in track(calibration, "snapshots", calibration.total_batches()):
            reservoir.start(batch)
            call_network(network, batch)
    if not reservoir.heap:
        raise CalibrationError(
            f"expected the network to call its ODE layer {name!r} on the calibration data, got no call: is "
            f"it on the path from these inputs to the output?"
        )
    return reservoir.snapshots()


class SnapshotReservoir:
    """Keeps the snapshots of the smallest thinning keys, in memory for these alone."""

    def __init__(self, max_snapshots: int):
        self.capacity = max_snapshots
        self.heap: list[tuple[float, int]] = []  # (−key, −row): the largest key first, of equal keys the last row
        self.nfe: list[int] = []
        self.t_range = (math.inf, -math.inf)

    def start(self, batch: Batch) -> None:
        self.batch = batch
        self.n_samples = int(batch.samples[-1]) + 1
        self.nfe.append(0)

    def observe(self, t: Tensor, y: Tensor, u: Tensor | None) -> None:
        """Take the snapshots of one evaluation of the ODE function, on a batch of states."""
        time, evaluation, size = float(t), self.nfe[-1], len(y)
        self.nfe[-1] += 1
        self.t_range = min(self.t_range[0], time), max(self.t_range[1], time)
        for part in (y, u):
            if part is not None and not bool(part.isfinite().all()):
                raise self._non_finite(part, time)
        if not self.heap:
            self._allocate(y, u)
        self._check_shapes(y, u)
        # a layer may get several states of each sample: those of one sample are taken to be neighbours
        states_per_sample = -(-size // self.batch.size)
        sample = self.batch.samples[np.arange(size) * self.batch.size // size]
        position = sample * states_per_sample + np.arange(size) % states_per_sample
        keys = thinning_key(position, evaluation)
        bound = -self.heap[0][0] if len(self.heap) == self.capacity else math.inf
        chosen = np.flatnonzero(keys < bound)
        if not len(chosen):
            return
        index = torch.from_numpy(chosen).to(y.device)
        states = y[index].flatten(1).double().cpu().numpy()
        inputs = None if u is None else u[index].double().cpu().numpy()
        for i, key in enumerate(keys[chosen]):
            if len(self.heap) < self.capacity:
                row = len(self.heap)
                heapq.heappush(self.heap, (-key, -row))
            elif key < -self.heap[0][0]:
                row = -self.heap[0][1]
                heapq.heapreplace(self.heap, (-key, -row))
            else:
                continue
            self.t[row], self.y[row], self.sample[row] = time, states[i], sample[chosen[i]]
            self.place[row] = position[chosen[i]], evaluation
            if inputs is not None:
                self.u[row] = inputs[i]

    def _non_finite(self, part: Tensor, time: float) -> NonFiniteError:
        bad = (~part.isfinite()).flatten(1).any(1).nonzero().flatten().cpu().numpy()
        samples = sorted({int(self.batch.samples[i * self.batch.size // len(part)]) for i in bad})
        which = f"sample {samples[0]}" + (f" and {len(samples) - 1} others" if len(samples) > 1 else "")
        return NonFiniteError(
            f"expected finite states and inputs, got NaN or infinity at t = {time:g} for {which} of the calibration "
            f"data (batch {self.batch.index}): the solution diverges there; leave such samples out, or use smaller "
            "steps or an adaptive method"
        )

    def snapshots(self) -> Snapshots:
        k = len(self.heap)
        order = np.lexsort((self.place[:k, 1], self.place[:k, 0]))
        y = self.y[:k]
        for part in np.array_split(y, 16, axis=1):  # views: a second y may not fit into memory
            part[:] = part[order]
        return Snapshots(
            t=self.t[order],
            y=y.T,
            u=self.u[order].T,
            sample=self.sample[order],
            state_shape=self.state_shape,
            n_samples=self.n_samples,
            nfe=tuple(self.nfe),
            t_range=self.t_range,
        )

    def _allocate(self, y: Tensor, u: Tensor | None) -> None:
        self.state_shape = tuple(y.shape[1:])
        n, p = math.prod(self.state_shape), 0 if u is None else u.shape[1]
        self.capacity = max(1, min(self.capacity, MAX_BYTES // (8 * (n + p + 1))))
        self.t, self.sample = np.empty(self.capacity), np.empty(self.capacity, dtype=np.int64)
        self.y, self.u = np.empty((self.capacity, n)), np.empty((self.capacity, p))
        self.place = np.empty((self.capacity, 2), dtype=np.int64)

    def _check_shapes(self, y: Tensor, u: Tensor | None) -> None:
        p = 0 if u is None else u.shape[1]
        if tuple(y.shape[1:]) != self.state_shape or p != self.u.shape[1]:
            raise ShapeError(
                f"expected states of one shape and inputs of one size, got first {self.state_shape} with "
                f"{self.u.shape[1]} inputs and then {tuple(y.shape[1:])} with {p}: an ODE layer can be "
                f"reduced for one shape only; give it calibration data of one shape"
            )
