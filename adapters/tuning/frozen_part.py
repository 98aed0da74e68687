"""What comes before the ODE layers of a frozen network is computed once for each batch, not in every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from torchmor.adapters.networks.calibration import Batch
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.solving.torch_private import version
from torchmor.engine.errors import SolverError

#: Outputs of so many bytes are remembered at most; beyond, everything is computed again.
REMEMBERED_BYTES = 2**29


class Memory:
    """Outputs of modules for batches, which copies of a network share."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[str, int], Tensor] = {}
        self._batches: dict[int, Batch] = {}  # they live as long, so that no other one has their place
        self._modules: dict[str, nn.Module] = {}
        self._bytes = 0

    def knows(self, name: str, module: nn.Module) -> bool:
        """Whether what is remembered of a name is true of this module: the first with it, or one of the same state."""
        first = self._modules.setdefault(name, module)
        one, other = ([*each.parameters(), *each.buffers()] for each in (first, module))
        return len(one) == len(other) and all(map(_equal, one, other))

    def output(self, name: str, batch: Batch, compute: Callable[[], Tensor]) -> Tensor:
        """Return the output of a module for a batch, computed if it is not remembered."""
        key = (name, id(batch))
        if key in self._outputs:
            return self._outputs[key]
        with torch.no_grad():
            output = compute()
        if self._bytes + output.nbytes <= REMEMBERED_BYTES:
            self._outputs[key], self._batches[id(batch)] = output, batch
            self._bytes += output.nbytes
        return output


@contextmanager
def remembered(
    network: nn.Module, layers: Sequence[nn.Module], example: Batch, memory: Memory | None = None
) -> Iterator[Callable[[Batch], Any]]:
    """Yield what calls a network with a batch, as :func:`call_network` does, and remembers what is frozen.

    Law: the outputs, and their gradients with respect to the parameters of the layers, are those of `call_network`.

    Parameters
    ----------
    network
        A network in eval mode, of which all but the layers stays as it is.
    layers
        Its ODE layers.
    example
        A batch to look at the network with.
    memory
        What was remembered of copies that differ in their layers.
    """
    memory = Memory() if memory is None else memory
    current: Batch | None = None  # None outside of `call`, where nothing is remembered

    def remembering(name: str, module: nn.Module) -> Callable[..., Tensor]:
        compute = module.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if current is None:
                return compute(*args, **kwargs)
            return memory.output(name, current, lambda: compute(*args, **kwargs))

        return forward

    def call(batch: Batch) -> Any:
        nonlocal current
        current = batch
        try:
            return call_network(network, batch)
        finally:
            current = None

    names = {module: name for name, module in network.named_modules()}
    with ExitStack() as stack:
        for module in _before_layers(network, layers, example):
            if memory.knows(names[module], module):
                module.forward = remembering(names[module], module)  # in the place of that of its class
                stack.callback(delattr, module, "forward")
        yield call


def _before_layers(network: nn.Module, layers: Sequence[nn.Module], batch: Batch) -> list[nn.Module]:
    """Return the outermost modules with parameters that are done, once, before one of the layers begins."""
    calls: Counter[nn.Module] = Counter()
    done: dict[nn.Module, tuple[Tensor, int]] = {}
    begun = False

    def before(module: nn.Module, arguments: Any) -> None:
        nonlocal begun
        begun = begun or module in layers
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
    found: list[nn.Module] = []
    inside = set(layers)
    for module in network.modules():  # outer ones first
        if module in inside:
            continue
        if module in done and calls[module] == 1 and any(True for _ in module.parameters()):
            output, before_that = done[module]
            if version(output) == before_that and "forward" not in vars(module):  # nothing changes it later
                found.append(module)
                inside |= set(module.modules())
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
