"""What comes before the reduced layers of a frozen network is computed once for each batch, not in every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.solving.torch_private import version
from torchmor.engine.errors import SolverError

#: Outputs of so many bytes are remembered at most; beyond, everything is computed again.
REMEMBERED_BYTES = 2**29


@contextmanager
def remembered(network: nn.Module, batches: Sequence[Batch]) -> Iterator[Callable[[Batch], Any]]:
    """Yield what calls a network with one of the batches, as :func:`call_network` does, and remembers what is frozen.

    Law: the outputs, and their gradients with respect to the parameters of reduced layers, are those of `call_network`.

    Parameters
    ----------
    network
        A network in eval mode, of which all but the reduced layers stays as it is.
    batches
        All that it is going to be called with.
    """
    found = _before_reduced_layers(network, batches[0])
    bytes_per_sample = sum(output.nbytes for output in found.values()) / batches[0].size
    if bytes_per_sample * sum(batch.size for batch in batches) > REMEMBERED_BYTES:
        found = {}
    outputs: dict[tuple[nn.Module, int], Tensor] = {}
    current: int | None = None  # the batch; None outside of `call`, where nothing is remembered

    def remembering(module: nn.Module) -> Callable[..., Tensor]:
        compute = module.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if current is None:
                return compute(*args, **kwargs)
            key = (module, current)
            if key not in outputs:
                with torch.no_grad():
                    outputs[key] = compute(*args, **kwargs)
            return outputs[key]

        return forward

    def call(batch: Batch) -> Any:
        nonlocal current
        current = id(batch)
        try:
            return call_network(network, batch)
        finally:
            current = None

    with ExitStack() as stack:
        for module in found:
            module.forward = remembering(module)  # in the place of that of its class
            stack.callback(delattr, module, "forward")
        yield call


def _before_reduced_layers(network: nn.Module, batch: Batch) -> dict[nn.Module, Tensor]:
    """Return the outermost modules with parameters that are done, once, before a reduced layer begins, and outputs."""
    reduced: set[nn.Module] = {module for module in network.modules() if isinstance(module, ReducedODELayer)}
    calls: Counter[nn.Module] = Counter()
    done: dict[nn.Module, tuple[Tensor, int]] = {}
    begun = False

    def before(module: nn.Module, arguments: Any) -> None:
        nonlocal begun
        begun = begun or module in reduced
        calls[module] += 1

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        if not begun and isinstance(output, Tensor):
            done[module] = output, version(output)

    with ExitStack() as stack, torch.no_grad():
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        with suppress(SolverError):  # what comes before the layer is done by then
            call_network(network, batch)
    found, inside = {}, set(reduced)
    for module in network.modules():  # outer ones first
        if module in inside:
            continue
        if module in done and calls[module] == 1 and any(True for _ in module.parameters()):
            output, before_that = done[module]
            if version(output) == before_that and "forward" not in vars(module):  # nothing changes it later
                found[module] = output
                inside |= set(module.modules())
    return found
