"""`reduce_network`: a trained network with a smaller, faster ODE layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from torchmor.adapters.reduction.metrics import Metric
from torchmor.adapters.reduction.network_reductor import NetworkReductor
from torchmor.adapters.solving.steps import FixedSteps, fixed_steps
from torchmor.adapters.tuning.lessons import Augment
from torchmor.engine.sizes import Size


def reduce_network(
    network: nn.Module,
    name: str,
    calibration: Any,
    *,
    state_dim: Size = None,
    points: Size | Sequence[Size] = None,
    modes: Size | Sequence[Size] = None,
    basis: str = "balanced",
    selection: str = "omp",
    fit: str = "least_squares",
    energy_rtol: float | None = None,
    max_loss: float | None = None,
    speedup: float | None = None,
    metric: Metric = "relative",
    objective: Callable[[Any], Tensor] | None = None,
    validation: Any = None,
    solver: FixedSteps | Sequence[Any] | None = None,
    batch_to_inputs: Callable[[Any], Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    input_attribute: str | None = None,
    batched: Sequence[bool] | None = None,
    tune: bool | None = None,
    effort: int = 1,
    confidence: float | None = None,
    augment: Augment | None = None,
) -> nn.Module:
    """Return a copy of a trained network with a reduced ODE layer in place of one of its ODE layers.

    The network itself is not changed. The state is projected onto the r directions that matter most for the network's
    output, by its gradients along calibration trajectories; each nonlinear stage of the ODE function is evaluated at m
    points only, those that tell most about the projected derivative, and what follows is fitted to the full network's
    calibration trajectories. ``basis="pod", selection="deim", fit="interpolation"`` is the classic POD–DEIM of the
    literature instead, which looks at the states alone.

    Without sizes, the cheapest network within a loss is searched: over states, points, and steps of the reduced layer,
    by a deterministic cost of operations and bytes. Those that are promising as they are fitted are tuned to the full
    network's outputs, few passes for many and more for few, the cheapest first, until one is good enough; that one is
    tuned to the end, and timed beside the full network. The full network with coarse steps is a rival: what is not
    faster on the clock, at one sample or at a batch, is passed over. The same seed gives the same network, unless
    times decide.

    Weights, snapshots and gradients are float64 on the way; the reduced layer has the dtype, device and tolerances of
    the layer that it replaces, and its solver unless `solver` says otherwise or the search found coarse steps to be
    enough, in all places where the network holds it, but not its hooks.

    Parameters
    ----------
    network
        The trained network.
    name
        Name of the ODE layer, as in ``network.named_modules()``; "" when the network is the layer itself, and the
        reduced layer is returned. An ODELayer, a module that calls torchdiffeq in its forward, or torchdyn's NeuralODE:
        :func:`~torchmor.adapters.find_ode_layers` lists what a network has.
    calibration
        Inputs like those that the network will see, without labels: a Tensor (one argument) or a tuple of Tensors (the
        arguments of one call), split along dimension 0; or any re-iterable of batches, each a Tensor or a tuple or
        list of arguments. By seeded chance, 60 % of the samples are fitted to, 20 % are chosen by, and the loss is
        confirmed on 20 %, that no choice has seen; with given sizes 80 % are fitted to. Take data that the network was
        not trained on: on training data it may be more certain than on others.
    state_dim
        Size r of the reduced state, "full" to keep the state, or None to choose it.
    points
        Points m at which each stage is evaluated, from input to output: one size for all, or a sequence. A size is an
        int, "full" (keep the stage) or None (choose it). With one size for all, normalisations whose statistics would
        be inexact are absorbed by the fit: what they divide is fitted as a whole, and the statistics are left out.
    modes
        Collateral basis vectors of each stage, where there is a basis: at most as many as points, which is the default;
        with fewer, interpolation becomes regression (oversampling).
    basis
        "balanced" [OPR23]_, or "pod".
    selection
        How points are chosen: "omp" (matching pursuit, for the projected derivative), "deim", "qdeim" or "ei_greedy".
    fit
        "least_squares", or "interpolation".
    energy_rtol
        Sizes that are None become the smallest with ``Σ_{i>r} σ_i² ≤ energy_rtol² Σ σ_i²`` instead of being searched.
    max_loss
        Largest loss of the search; ``float("inf")`` for any. None: 0.02 for "relative", 0.01 for "agreement", 0.005 for
        "accuracy", any with `speedup` alone; a metric of your own needs one.
    speedup
        If given, the search returns the most accurate network that costs so many times less than the layer with its own
        solver, instead of the cheapest one within `max_loss`, which it keeps all the same.
    metric
        What losses are: "relative" error of the network's output; "agreement", the share of samples that get another
        class; "accuracy", by how much the share of right classes drops; or a function of (reduced output, full
        output). For "agreement" and "accuracy" the balanced basis serves class probabilities (their Fisher metric),
        otherwise the values of the output.
    objective
        Instead of that: a function of the network's output to a scalar, the sum over samples, whose gradients say what
        the basis has to keep.
    validation
        Data to choose by and to confirm on, a half of its samples each: in the form of `calibration`, or for "accuracy"
        batches (inputs, labels), Tensors too. By default it is taken from `calibration`.
    solver
        Steps of the reduced layer, whatever solver the full layer has; errors are measured with them. None keeps the
        full layer's solver, or takes what the search finds. The name of a method with fixed steps ("euler", "midpoint",
        "heun2", "heun3", "rk4", "rk4_classic", "bosh3_fixed", "dopri5_fixed") stands for one step from each output time
        of the layer to the next, and where sizes are searched for 1, 2 and 4 equal steps, of which the search chooses.
        A pair (method, number of steps), or :class:`~torchmor.adapters.Steps`, is that number of equal steps over the
        layer's whole time.
    batch_to_inputs
        Maps a batch to the arguments of the network, ``lambda b: b[0]`` for labelled loaders.
    batch_size
        Samples of a batch, where `calibration` is made of Tensors.
    seed
        Seed of the choice of held-out samples.
    progress
        Show progress on a terminal.
    input_attribute
        For modules that keep the input of their ODE function as an attribute: its path from the module, for example
        "func.u" where ``network.block.func.u`` is set before or in ``network.block(x)``. Its value is a Tensor
        (batch, p) that is constant in time, or a callable of t. The surrounding code goes on to set it as before.
    batched
        Which of the network's arguments hold a batch along dimension 0, as ``(True, False)`` for states and times. None
        finds it by running the network with permuted samples and parts of them. With False for all, batches stay whole,
        and whole ones are held out: for networks with the batch along another dimension, or of a fixed size.
    tune
        Tune reduced operators to the full network's outputs, as :func:`~torchmor.adapters.distill` does, without
        labels. None: where sizes are searched and the output is one Tensor.
    effort
        1: the search stops at the first network that is good enough. 2 and more: it goes on for cheaper ones, and takes
        so many times as many passes.
    confidence
        If given, as 0.95, what is returned has a loss that is at most `max_loss` on data like this with this
        confidence: networks are tested on the data to confirm on from the safest to the cheapest, until one fails.
    augment
        As in :func:`~torchmor.adapters.distill`.

    Returns
    -------
    nn.Module
        The smaller network; ``small.get_submodule(name)`` is the ReducedODELayer, whose `explain()` tells what was
        done. Where a module did more than solve (arguments, order of axes), its place has a SolvedBlock, with the
        ReducedODELayer as `layer`.

    Raises
    ------
    UnknownLayerError
        The network has no ODE layer of this name.
    CalibrationError, NonFiniteError
        The calibration data is unusable.
    SizeError
        Sizes are impossible.
    ValueError
        Another argument is none of the possible ones; the message lists them.
    NothingToReduceError
        The search found nothing good enough, or coarse steps of the full layer are better. `curve` has what was tried,
        `best` the best reduced network, `network` the full network with these steps.
    UnsupportedOperationError
        The ODE function contains an operation that cannot be reduced, the network cannot be copied, or its output has
        no gradients; or a module that is no ODELayer does what an ODELayer in its place cannot reproduce.

    Warns
    -----
    NotReducedWarning
        The sizes shrink nothing.
    LittleGainWarning
        The reduced layer is hardly faster than the full one with its own solver, or with coarse steps that would do,
        neither for one sample nor for a batch of the calibration data.
    FewSamplesWarning
        There are few calibration samples for these sizes.

    References
    ----------
    Lehtimäki, Paunonen, Linne: Accelerating Neural ODEs Using Model Order Reduction, IEEE TNNLS 2022.

    .. [OPR23] Otto, Padovan, Rowley: Model Reduction for Nonlinear Systems by Balanced Truncation of State and Gradient
       Covariance, SIAM J. Sci. Comput. 2023.
    """
    solver = fixed_steps(solver)  # refused before anything is computed
    reductor = NetworkReductor(
        network,
        name,
        calibration,
        metric=metric,
        objective=objective,
        validation=validation,
        batch_to_inputs=batch_to_inputs,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        input_attribute=input_attribute,
        batched=batched,
    )
    return reductor.reduce(
        state_dim=state_dim,
        points=points,
        modes=modes,
        basis=basis,
        selection=selection,
        fit=fit,
        energy_rtol=energy_rtol,
        max_loss=max_loss,
        speedup=speedup,
        solver=solver,
        tune=tune,
        effort=effort,
        confidence=confidence,
        augment=augment,
    )
