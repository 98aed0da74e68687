"""How fast this machine could be at best: what any implementation of a layer is measured against."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchmor.experiments.measure.surroundings import threads

#: Bytes that are copied, and the size of the matrices that are multiplied.
COPIED_BYTES, MATRIX_SIZE = 64 * 2**20, 1024

_REPEATS, _WARM_UP = 9, 2


@dataclass(frozen=True)
class Machine:
    """Rates of this machine with a number of threads.

    Parameters
    ----------
    bytes_per_s
        Bytes read and written by a copy of 64 MiB, a second.
    operations_per_s
        Multiply–adds of a float32 product of matrices of size 1,024, a second.
    threads
        Threads of torch.
    """

    bytes_per_s: float
    operations_per_s: float
    threads: int

    def floor_s(self, moved_bytes: float, operations: float) -> float:
        """Return the least time for so many bytes, each moved once, and so many multiply–adds: the larger of both."""
        return max(moved_bytes / self.bytes_per_s, operations / self.operations_per_s)


def measure_machine(count: int) -> Machine:
    """Measure the rates with `count` threads."""
    source, target = torch.ones(COPIED_BYTES // 4), torch.zeros(COPIED_BYTES // 4)
    a, b = torch.rand(2, MATRIX_SIZE, MATRIX_SIZE)
    product = torch.empty(MATRIX_SIZE, MATRIX_SIZE)
    with threads(count), torch.no_grad():
        copy_s = _median_s(lambda: target.copy_(source))
        product_s = _median_s(lambda: torch.mm(a, b, out=product))
    return Machine(2 * COPIED_BYTES / copy_s, MATRIX_SIZE**3 / product_s, count)


def needs(module: nn.Module, *arguments: Tensor) -> tuple[int, int]:
    """Return what a forward pass cannot do without: bytes of parameters, input and output, and its multiply–adds."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = module(*arguments)
    tensors = [*module.parameters(), *module.buffers(), *arguments, output]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), counter.get_total_flops() // 2


def _median_s(call: Callable[[], object]) -> float:
    walls = []
    for _ in range(_WARM_UP + _REPEATS):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    return statistics.median(walls[_WARM_UP:])
