"""`reduce_network`: a trained network with a smaller, faster ODE layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchmor.adapters.arrays import to_tensor
from torchmor.adapters.calibration import Batch, Calibration, call_network, evaluation
from torchmor.adapters.conversion import chain_to_module
from torchmor.adapters.files import with_layers
from torchmor.adapters.ode_layer import ODELayer, find_layer
from torchmor.adapters.pymor_models import full_order_model
from torchmor.adapters.reduced_layer import ReducedODELayer
from torchmor.adapters.snapshots import Snapshots, collect_snapshots
from torchmor.engine.affine import AffineMap
from torchmor.engine.errors import (
    NonFiniteError,
    NotReducedWarning,
    SolverError,
    UnknownLayerError,
    UnsupportedOperationError,
)
from torchmor.engine.explanation import Explanation
from torchmor.engine.models import OdeLayerModel
from torchmor.engine.reduction import Size, SnapshotReductor, check_sizes

#: Errors are measured on at most this many held-out samples.
HELD_OUT_SAMPLES = 512


def reduce_network(
    network: nn.Module,
    name: str,
    calibration: Any,
    *,
    state_dim: Size = None,
    points: Size | Sequence[Size] = None,
    modes: Size | Sequence[Size] = None,
    basis: str = "pod",
    selection: str = "deim",
    fit: str = "interpolation",
    energy_rtol: float | None = None,
    batch_to_inputs: Callable[[Any], Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Return a copy of a trained network with a reduced ODE layer in place of one of its ODE layers.

    The network itself is not changed. The classic POD–DEIM method: the state is projected onto the r leading POD modes
    of the states that the layer's own solver visits on the calibration data, and each nonlinear stage of the ODE
    function is evaluated at m points only, chosen and interpolated by pyMOR. Weights and snapshots are float64 on the
    way; the reduced layer has the dtype, device, solver and tolerances of the layer that it replaces, in all places
    where the network holds it, but not its hooks.

    Parameters
    ----------
    network
        The trained network.
    name
        Name of the ODE layer, as in ``network.named_modules()``; "" when the network is the layer itself, and the
        reduced layer is returned.
    calibration
        Inputs like those that the network will see, without labels: a Tensor (one argument) or a tuple of Tensors (the
        arguments of one call), split along dimension 0; or any re-iterable of batches, each a Tensor or a tuple or
        list of arguments. A seeded 20 % of the samples is held out to measure the error.
    state_dim
        Size r of the reduced state, "full" to keep the state, or None to choose it by `energy_rtol`.
    points
        Points m at which each stage is evaluated, from input to output: one size for all, or a sequence. A size is an
        int, "full" (keep the stage) or None (choose it by `energy_rtol`).
    modes
        Collateral basis vectors of each stage; interpolation needs as many as points, which is the default.
    basis
        "pod".
    selection
        How points are chosen: "deim", "qdeim" or "ei_greedy".
    fit
        "interpolation".
    energy_rtol
        Sizes that are None become the smallest with ``Σ_{i>r} σ_i² ≤ energy_rtol² Σ σ_i²``.
    batch_to_inputs
        Maps a batch to the arguments of the network, ``lambda b: b[0]`` for labelled loaders.
    batch_size
        Samples of a batch, where `calibration` is made of Tensors.
    seed
        Seed of the choice of held-out samples.
    progress
        Show progress on a terminal.

    Returns
    -------
    nn.Module
        The smaller network; ``small.get_submodule(name)`` is the ReducedODELayer, whose `explain()` tells what was
        done.

    Raises
    ------
    UnknownLayerError
        The network has no ODE layer of this name.
    CalibrationError, NonFiniteError
        The calibration data is unusable.
    SizeError
        Sizes are missing or impossible.
    UnsupportedOperationError
        The ODE function contains an operation that cannot be reduced, or the network cannot be copied.

    Warns
    -----
    NotReducedWarning
        The sizes shrink nothing.

    References
    ----------
    Lehtimäki, Paunonen, Linne: Accelerating Neural ODEs Using Model Order Reduction, IEEE TNNLS 2022.
    """
    reductor = NetworkReductor(
        network, name, calibration, batch_to_inputs=batch_to_inputs, batch_size=batch_size, seed=seed, progress=progress
    )
    return reductor.reduce(
        state_dim=state_dim,
        points=points,
        modes=modes,
        basis=basis,
        selection=selection,
        fit=fit,
        energy_rtol=energy_rtol,
    )


class NetworkReductor:
    """Reduces an ODE layer of a trained network to several sizes, with one offline stage for all.

    Law: ``NetworkReductor(network, name, calibration).reduce(…)`` equals ``reduce_network(network, name, calibration,
    …)``, whatever was reduced before. Snapshots are collected and bases are computed when they are first needed.

    Parameters
    ----------
    network, name, calibration, batch_to_inputs, batch_size, seed, progress
        As in :func:`reduce_network`.

    Raises
    ------
    UnknownLayerError, CalibrationError, UnsupportedOperationError
        As in :func:`reduce_network`.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        calibration: Any,
        *,
        batch_to_inputs: Callable[[Any], Any] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool = True,
    ):
        _find_layer(network, name)
        self.network, self.name, self.progress = network, name, progress
        self._kept, self._held_out = Calibration(calibration, batch_size, batch_to_inputs, seed).split(seed)

    def reduce(
        self,
        *,
        state_dim: Size = None,
        points: Size | Sequence[Size] = None,
        modes: Size | Sequence[Size] = None,
        basis: str = "pod",
        selection: str = "deim",
        fit: str = "interpolation",
        energy_rtol: float | None = None,
    ) -> nn.Module:
        """Return a copy of the network with the layer reduced to these sizes, as :func:`reduce_network` does."""
        for argument, value, allowed in (("basis", basis, ("pod",)), ("fit", fit, ("interpolation",))):
            if value not in allowed:
                raise ValueError(f"expected {argument} to be one of {', '.join(allowed)}, got {value!r}")
        check_sizes(state_dim, points, modes, selection, energy_rtol)
        layer, example, snapshots, reductor = self._offline
        reduction = reductor.reduce(
            state_dim=state_dim, points=points, modes=modes, selection=selection, energy_rtol=energy_rtol
        )
        reduced = _reduced_layer(layer, reductor.fom, reduction, example)
        if all(part.reduced >= part.full for part in reduction.parts):
            warnings.warn(
                f"nothing was reduced: state and stages keep their sizes {[part.full for part in reduction.parts]}; "
                "ask for smaller state_dim or points, or a larger energy_rtol",
                NotReducedWarning,
                stacklevel=3,
            )
        small = with_layers(self.network, {self.name: reduced})
        reduced.explanation = Explanation(
            parts=reduction.parts,
            method={"basis": basis, "selection": selection, "fit": fit},
            solver=str(reduced.settings),
            snapshots=len(snapshots),
            samples=len(set(snapshots.sample)),
            evaluations=max(snapshots.nfe),
            operations=(_operations(layer.function, example), _operations(reduced.ode, example, reduced)),
            errors=self._held_out_errors(small),
        )
        reduced.record(
            fom=reductor.fom,
            bases=reduction.bases,
            singular_values=reduction.singular_values,
            points={stage: sampled.points for stage, sampled in reduction.interpolations.items()},
        )
        return small

    @cached_property
    def _copy(self) -> nn.Module:
        return _copied(self.network)  # calibration moves counters and caches of a copy only

    @cached_property
    def _offline(self) -> tuple[ODELayer, _Example, Snapshots, SnapshotReductor]:
        layer, example = self._copy.get_submodule(self.name), _Example()
        with layer.observe(example):
            snapshots = collect_snapshots(self._copy, self.name, self._kept, progress=self.progress)
        fom = full_order_model(layer, example.y, example.u)
        u = None if example.u is None else snapshots.u
        return layer, example, snapshots, SnapshotReductor(fom, snapshots.y, u, snapshots.t)

    @cached_property
    def _full_outputs(self) -> list[tuple[Batch, dict[str, Any]]]:
        """Held-out batches, with what the full network makes of them."""
        results, samples = [], 0
        with evaluation(self._copy):
            for batch in self._held_out:
                results.append((batch, _outputs(self._copy, self.name, batch)))
                samples += batch.size
                if samples >= HELD_OUT_SAMPLES:
                    break
        return results

    def _held_out_errors(self, small: nn.Module) -> dict[str, float]:
        """Relative errors ``‖small − full‖ / ‖full‖`` on held-out samples, of the outputs of layer and network."""
        sums: dict[str, list[float]] = {}
        with evaluation(small):
            for batch, results in self._full_outputs:
                try:
                    reduced_results = _outputs(small, self.name, batch)
                except SolverError as error:
                    raise _unstable() from error
                for key, full in results.items():
                    if isinstance(full, Tensor) and full.is_floating_point():
                        known = full.isfinite()  # a network may mask its output with infinity
                        full, approximate = full[known].double(), reduced_results[key][known].double()
                        entry = sums.setdefault(key, [0.0, 0.0])
                        entry[0] += float((approximate - full).square().sum())
                        entry[1] += float(full.square().sum())
        errors = {key: (error / max(norm, 1e-300)) ** 0.5 for key, (error, norm) in sums.items()}
        if not all(error < float("inf") for error in errors.values()):
            raise _unstable()
        return errors


def _find_layer(network: nn.Module, name: str) -> ODELayer:
    for value, kind in ((network, nn.Module), (name, str)):
        if not isinstance(value, kind):
            raise TypeError(
                "expected reduce_network(network, name, calibration) with a module and the name of its ODE layer as "
                f"in network.named_modules(), got {value!r}"
            )
    if isinstance(dict(network.named_modules(remove_duplicate=False)).get(name), ReducedODELayer):
        raise UnknownLayerError(
            f"expected an ODELayer as {name!r}, got a layer that is reduced already: reduce the original network "
            "again, with other sizes"
        )
    return find_layer(network, name)


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except RuntimeError as error:
        raise UnsupportedOperationError(
            f"expected a network that can be copied, got one that cannot ({error}): detach tensors that it keeps from "
            "earlier calls"
        ) from error


@dataclass(eq=False)
class _Example:
    """Keeps some states, and their inputs, of the first evaluation of the ODE function."""

    t: Tensor | None = None
    y: Tensor | None = None
    u: Tensor | None = None

    def __call__(self, t, y, u):
        if self.y is None:
            self.t, self.y, self.u = t.clone(), y[:4].clone(), None if u is None else u[:4].clone()


def _reduced_layer(layer: ODELayer, fom: OdeLayerModel, reduction, example: _Example) -> ReducedODELayer:
    dtype, device = example.y.dtype, example.y.device
    projected = "state" in reduction.bases
    reduced = ReducedODELayer(
        layer.settings,
        tuple(example.y.shape[1:]),
        chain_to_module(-reduction.rom.operator.chain, dtype, device),
        reduction.bases["state"].shape[1] if projected else None,
        "none" if example.u is None else "required",
    )
    if projected:
        _fill(reduced.encode, reduction.rom.initial_data.encode)
        _fill(reduced.decode, reduction.rom.output_functional.chain.output)
    return reduced


def _fill(linear: nn.Linear, affine: AffineMap) -> None:
    with torch.no_grad():
        linear.weight.copy_(to_tensor(affine.linear, linear.weight.dtype, linear.weight.device))
        linear.bias.copy_(to_tensor(affine.shift, linear.bias.dtype, linear.bias.device))


def _operations(f: nn.Module, example: _Example, reduced: ReducedODELayer | None = None) -> int:
    """Multiply–adds of the matrix products and convolutions of one evaluation for one sample."""
    y, u = example.y[:1], None if example.u is None else example.u[:1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if reduced is None:
            f = copy.deepcopy(f).eval()  # its own counters do not move
            f(example.t, y, u)
        else:
            f(y.new_zeros(1, reduced.ode.state_size), u, example.t)
    return counter.get_total_flops() // 2


def _outputs(network: nn.Module, name: str, batch: Batch) -> dict[str, Any]:
    """Return the output of the network's layer (of all its calls), and of the network."""
    seen: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        output = call_network(network, batch)
    finally:
        hook.remove()
    return {"layer output": torch.cat([value.flatten() for value in seen]), "network output": output}


def _unstable() -> NonFiniteError:
    return NonFiniteError(
        "expected a finite solution of the reduced layer on held-out calibration data, got one that grows without "
        "bound: its ODE is unstable at these sizes; ask for a larger state_dim, or other points"
    )
