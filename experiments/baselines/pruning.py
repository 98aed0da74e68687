"""Structured neuron pruning of an ODE layer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.ode_layer import ODELayer
from torchmor.adapters.layers.placing import find_layer, with_layers
from torchmor.adapters.networks.batching import with_batched
from torchmor.adapters.networks.calibration import Calibration
from torchmor.adapters.networks.evaluation import call_network
from torchmor.engine.errors import SizeError, UnsupportedOperationError
from torchmor.experiments.architectures.recurrent_ode import RecurrentFunction

#: Activations of at most this part of the largest one count as silent; of ReLU, only zeros do.
SILENT = 0.01

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prune_neurons(
    network: nn.Module, name: str, calibration: Any, kept: Sequence[int], *, batch_size: int = 256
) -> list[nn.Module]:
    """Remove the neurons of an ODE layer ``y' = σ(A y + b)`` that are silent most often.

    Neurons are the units of a linear A, or the channels of a convolution. The score of one is the average percentage of
    its activations, where the layer's own solver evaluates the ODE function on the calibration data, that are zero (for
    ReLU) or at most 1 % of the layer's largest one (else). Law: a pruned derivative is zero, so its state stays
    ``y(0)``; what it adds to the arguments of the others is constant in time, and is folded into the bias if all
    samples share it, and otherwise computed once in a solve. The solver sees the kept states only.

    Parameters
    ----------
    network
        The trained network; it is not changed.
    name
        Name of its ODE layer, "" if it is the layer. The ODE function is ``nn.Sequential(affine, activation)``, the
        affine part nn.Linear or a convolution that keeps the shape, or a
        :class:`~torchmor.experiments.architectures.recurrent_ode.RecurrentFunction`.
    calibration
        Inputs, as in :func:`~torchmor.adapters.reduce_network`.
    kept
        Numbers of neurons that are kept, one network for each.
    batch_size
        Samples of a batch, where `calibration` is made of Tensors.

    Returns
    -------
    list of nn.Module
        The networks, in the order of `kept`.

    Raises
    ------
    UnsupportedOperationError
        The ODE function has another form.
    SizeError
        There are not so many neurons.

    References
    ----------
    Hu, Peng, Tai, Tang: Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures,
    arXiv 1607.03250, 2016. Lehtimäki, Paunonen, Linne: Accelerating Neural ODEs Using Model Order Reduction, IEEE TNNLS
    2022.
    """
    layer = find_layer(network, name)
    form = _Form.of(layer.func)
    neurons = form.affine.weight.shape[0]
    if not kept or not all(1 <= count <= neurons for count in kept):
        raise SizeError(f"expected to keep 1 to {neurons} neurons, all that there are, got kept={tuple(kept)}")
    batches = with_batched(Calibration(calibration, batch_size), network)
    scores, initial = _observed(network, name, layer, form, batches)
    order = torch.argsort(scores, stable=True)
    return [
        with_layers(network, {name: PrunedODELayer(layer, form, order[:count].sort().values, initial)})
        for count in kept
    ]


class PrunedODELayer(ODELayer):
    """An ODE layer that solves for some of its states, while the others stay as they are at the start.

    Parameters
    ----------
    layer
        The full layer.
    form
        The parts of its ODE function.
    kept
        Indices of the neurons that are kept.
    initial
        What the states (1, …) are at the start, if that is the same for all samples; NaN where it is not.
    """

    func: "_Pruned"
    kept: Tensor
    pruned: Tensor
    rest: nn.Module | None  # what the pruned states add: evaluated once in a solve

    def __init__(self, layer: ODELayer, form: "_Form", kept: Tensor, initial: Tensor):
        pruned = torch.ones(form.affine.weight.shape[0], dtype=torch.bool, device=kept.device)
        pruned[kept] = False
        pruned = pruned.nonzero().flatten()
        settings = layer.settings
        super().__init__(form.pruned(kept))
        self.settings = settings
        self.register_buffer("kept", kept)
        self.register_buffer("pruned", pruned)
        self.rest = None
        if len(pruned) == 0:
            self.func.fold(None if form.affine.bias is None else form.affine.bias.detach())
            return
        held, rest = initial.index_select(1, pruned), _restricted(form.affine, kept, pruned, bias=True)
        if held.isfinite().all():
            with torch.no_grad():
                self.func.fold(rest(held))
        else:
            self.rest = rest

    def forward(self, y0: Tensor, u: Any = None, t: Any = None) -> Tensor:
        """Solve the ODE from the state y0 (batch, …), like :class:`~torchmor.adapters.ODELayer`."""
        if self.rest is not None:
            self.func.constant = self.rest(y0.index_select(1, self.pruned))
        try:
            states = super().forward(y0.index_select(1, self.kept), u, t)
        finally:
            if self.rest is not None:
                self.func.constant = None
        if self.output == "trajectory":
            return y0.expand(len(states), *y0.shape).index_copy(2, self.kept, states)
        return y0.index_copy(1, self.kept, states)


class _Pruned(nn.Module):
    """``σ(A y + c)`` on the kept states; c is the bias with what the pruned states add."""

    constant: Tensor | None
    folded: Tensor | None

    def __init__(self, affine: Any, activation: nn.Module):
        super().__init__()
        self.affine, self.activation = affine, activation
        self.register_buffer("constant", None, persistent=False)
        self.register_buffer("folded", None)

    def fold(self, constant: Tensor | None) -> None:
        """Take up a c that all samples share: (neurons,), or (1, neurons, …)."""
        if constant is None or constant.flatten().shape == self.affine.weight.shape[:1]:
            self.affine.bias = None if constant is None else nn.Parameter(constant.flatten().clone())
        else:
            self.folded = constant  # a convolution pads: what is added differs from pixel to pixel

    def rate(self, y: Tensor) -> Tensor:
        """Return σ(A y + c)."""
        arguments = self.affine(y)
        constant = self.folded if self.constant is None else self.constant
        return self.activation(arguments if constant is None else arguments + constant)

    def forward(self, t: Any, y: Tensor) -> Tensor:
        """Return dy/dt of the kept states."""
        return self.rate(y)


class _PrunedRecurrent(_Pruned):
    """``σ(A y + c) + Z u``, with leak ``− y`` more, on the kept states."""

    def __init__(self, affine: Any, activation: nn.Module, inputs: nn.Linear, leak: bool):
        super().__init__(affine, activation)
        self.input, self.leak = inputs, leak

    def forward(self, t: Any, y: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]  # u is what is added here
        """Return dy/dt of the kept states."""
        change = self.rate(y) + self.input(u)
        return change - y if self.leak else change


@dataclass(frozen=True, eq=False)
class _Form:
    """The parts of an ODE function that can be pruned."""

    affine: Any  # nn.Linear or a convolution
    activation: nn.Module
    recurrent: RecurrentFunction | None = None

    @classmethod
    def of(cls, func: Any) -> "_Form":
        if isinstance(func, RecurrentFunction):
            form = cls(func.recurrent, func.activation, func)
        elif isinstance(func, nn.Sequential) and len(func) == 2:
            form = cls(*func)
        else:
            form = None
        if form is None or not isinstance(form.affine, (nn.Linear, *_CONVOLUTIONS)) or not form._square():
            raise UnsupportedOperationError(
                "expected an ODE function nn.Sequential(affine, activation), whose affine part is an nn.Linear or a "
                f"convolution that keeps the shape of the state, or a RecurrentFunction; got {func}"
            )
        return form

    def _square(self) -> bool:
        if isinstance(self.affine, nn.Linear):
            return self.affine.in_features == self.affine.out_features
        plain = self.affine.groups == 1 and set(self.affine.stride) == {1}
        return plain and self.affine.in_channels == self.affine.out_channels

    def activations(self, y: Tensor) -> Tensor:
        """Return σ(A y + b) with the neurons in front: (neurons, …)."""
        return self.activation(self.affine(y)).transpose(0, 1).flatten(1)

    def pruned(self, kept: Tensor) -> _Pruned:
        affine, activation = _restricted(self.affine, kept, kept, bias=False), copy.deepcopy(self.activation)
        if self.recurrent is None:
            return _Pruned(affine, activation)
        full = self.recurrent.input
        kind = {"dtype": full.weight.dtype, "device": full.weight.device}
        inputs = skip_init(nn.Linear, full.in_features, len(kept), bias=False, **kind)
        with torch.no_grad():
            inputs.weight.copy_(full.weight[kept])
        return _PrunedRecurrent(affine, activation, inputs, self.recurrent.leak)


def _restricted(affine: Any, rows: Tensor, columns: Tensor, *, bias: bool) -> Any:
    """Return the part of a linear layer or convolution from some neurons to some neurons."""
    kind = {"dtype": affine.weight.dtype, "device": affine.weight.device}
    bias = bias and affine.bias is not None
    if isinstance(affine, nn.Linear):
        part = skip_init(nn.Linear, len(columns), len(rows), bias=bias, **kind)
    else:
        form = {key: getattr(affine, key) for key in ("kernel_size", "padding", "dilation", "padding_mode")}
        part = skip_init(type(affine), len(columns), len(rows), bias=bias, **form, **kind)
    with torch.no_grad():
        part.weight.copy_(affine.weight[rows][:, columns])
        if bias:
            part.bias.copy_(affine.bias[rows])
    return part


def _observed(
    network: nn.Module, name: str, layer: ODELayer, form: _Form, calibration: Calibration
) -> tuple[Tensor, Tensor]:
    """Return the score of each neuron, with ties broken by the mean activation, and the common initial states."""
    largest = 0.0
    initial: Any = None
    silent = size = torch.zeros(len(form.affine.weight), dtype=torch.float64, device=form.affine.weight.device)

    def look(t: Tensor, y: Tensor, u: Tensor | None) -> None:
        nonlocal largest
        largest = max(largest, float(form.activations(y).abs().max()))

    def start(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal initial
        y0 = arguments[0].detach()
        if len(y0):
            initial = y0[:1].clone() if initial is None else initial
            initial = torch.where((y0 == initial).all(dim=0, keepdim=True), initial, torch.nan)

    def count(t: Tensor, y: Tensor, u: Tensor | None) -> None:
        nonlocal silent, size
        sizes = form.activations(y).abs().double()
        silent, size = silent + (sizes <= threshold).sum(dim=1), size + sizes.sum(dim=1)

    with evaluation(network):
        hook = layer.register_forward_pre_hook(start)
        try:
            with layer.observe(look):
                for batch in calibration:
                    call_network(network, batch)
        finally:
            hook.remove()
        threshold = 0.0 if isinstance(form.activation, nn.ReLU) else SILENT * largest
        with layer.observe(count):
            for batch in calibration:
                call_network(network, batch)
    # silent counts are whole numbers: less than one more breaks ties
    return silent - size / (1 + size.max()), initial
