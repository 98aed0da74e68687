"""Which arguments of a network hold a batch: found by what the network does with them, not by their lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchmor.adapters.layers.evaluation import evaluation
from torchmor.adapters.layers.placing import copied, find_layer
from torchmor.adapters.networks.calibration import Arguments, Batch, Calibration, Flags, described, length, samples_of
from torchmor.adapters.networks.evaluation import call_network
from torchmor.adapters.networks.first_states import check_traceable
from torchmor.adapters.networks.stand_in import with_ode_layer
from torchmor.adapters.solving.torch_private import DispatchMode, tree_leaves
from torchmor.engine.errors import CalibrationError

#: Permuted samples give permuted outputs to so many units of rounding, relative to the largest value; at least so much,
#: for adaptive solvers make other steps then, and at most so much.
ALLOWED, LEAST_ALLOWED, MOST_ALLOWED = 1e4, 1e-4, 0.05

#: Batches that are looked at.
TRIED_BATCHES = 3

#: Operations whose results are random numbers and nothing else.
_NOISE = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "uniform_", "normal_", "bernoulli_"}

_WAY_OUT = (
    "say which arguments of the network hold a batch along dimension 0, as batched=(True, False, …); with False for "
    "all, batches stay whole, and whole ones are held out, for samples along another dimension, or a fixed number"
)


def with_batched(
    calibration: Calibration, network: nn.Module, name: str | None = None, input_attribute: str | None = None
) -> Calibration:
    """Return calibration data that knows which arguments of a network hold a batch: as it says, or as found.

    Raises
    ------
    CalibrationError
        As :func:`find_batched`.
    UnsupportedOperationError
        So, because the network's module `name` cannot be reduced anyway; the message says why.
    """
    if calibration.batched is not None:
        return calibration
    one_call = calibration.in_one_piece and calibration.batch_to_inputs is None
    limit = calibration.batch_size if one_call else None
    try:
        return replace(calibration, batched=find_batched(network, calibration.calls(), limit))
    except CalibrationError:
        with suppress(CalibrationError):
            if name is not None:  # its own reason says more
                whole, layer_name = with_ode_layer(network, name, calibration, input_attribute)
                whole = copied(whole)
                check_traceable(whole, find_layer(whole, layer_name), next(iter(calibration)))
        raise


def find_batched(network: nn.Module, batches: Iterable[Arguments], limit: int | None = None) -> Flags:
    """Return which arguments of a network hold a batch along dimension 0.

    Law: with the samples of these arguments permuted, the network's output is permuted; where an argument makes no
    difference to that, the network takes a part of the samples with a part of it.

    Parameters
    ----------
    network
        The network; it runs in eval mode, and is left as it was.
    batches
        The arguments of some calls, of which a few are tried.
    limit
        Run with the first so many samples only.

    Raises
    ------
    CalibrationError
        There are no such arguments, or they cannot be told; the message says how to.
    """
    tried: list[Arguments] = []
    of_calls: list[tuple[int | None, ...]] = []
    for arguments in batches:
        of_calls.append(tuple(map(length, arguments)))
        tried[TRIED_BATCHES - 1 :] = [arguments]  # the first ones, and the last
    if len({len(one) for one in of_calls}) != 1:
        raise CalibrationError(
            "expected calibration data with at least one sample, got none: is the loader empty, or exhausted?"
            if not of_calls
            else f"expected calibration batches of one number of arguments, got {sorted({*map(len, of_calls)})}"
        )
    lengths = list(zip(*of_calls, strict=True))  # of each argument, in all calls
    count, groups = len(lengths), list(dict.fromkeys(one for one in lengths if None not in one))
    if not groups:
        kinds = ", ".join(map(described, tried[0])) or "no arguments"
        raise CalibrationError(
            f"expected a Tensor (batch, …) among the arguments of calibration batch 0, got {kinds}: map batches to "
            "arguments with batch_to_inputs"
        )
    with evaluation(network):
        probes = [_Probe(network, arguments, limit) for arguments in tried]
        found: list[Flags] = []
        for group in groups:
            for chosen in _subsets([i for i, one in enumerate(lengths) if one == group]):
                flags = tuple(i in chosen for i in range(count))
                apart = not any(a and b for known in found for a, b in zip(known, flags, strict=True))
                if apart and all(probe.dims(flags) is not None for probe in probes):
                    found.append(flags)
        if len(found) > 1:
            raise CalibrationError(
                "expected a network of whose arguments those with a batch can be told, got one that acts alike on the "
                f"entries along dimension 0 of one and of another ({' or '.join(map(str, found))}): {_WAY_OUT}"
            )
        if found:
            flags = _told(probes, found[0])
            _check_parts(probes, flags)
            return flags
        given = samples_of(tried[0], tuple(one == groups[0] for one in lengths), slice(limit))
        call_network(network, Batch(given, np.arange(groups[0][0] or 0), 0))  # it may fail, and say why
    shapes = ", ".join(described(argument) for argument in tried[0])
    raise CalibrationError(
        "expected a network whose output is permuted when the samples of its arguments are, got one where this is so "
        f"for no choice of its arguments ({shapes}): other samples, or their order, decide about a sample, or the "
        f"batch lies along another dimension; {_WAY_OUT}"
    )


def sample_dims(network: nn.Module, arguments: Arguments, batched: Sequence[bool]) -> list[int | None]:
    """Return the dimension of each tensor of the output along which samples lie; None where there is none."""
    with evaluation(network):
        return _Probe(network, arguments, None).dims(batched) or []


def _subsets(positions: Sequence[int]) -> Iterator[tuple[int, ...]]:
    sizes = range(len(positions), 0, -1) if len(positions) <= 6 else (len(positions), 1)
    return itertools.chain.from_iterable(itertools.combinations(positions, size) for size in sizes)


def _told(probes: Sequence[_Probe], flags: Flags) -> Flags:
    """Return the flags, without arguments that no permutation tells and that have to stay whole in parts."""
    for i, flag in enumerate(flags):
        without = tuple(one and j != i for j, one in enumerate(flags))
        if not flag or not any(without) or any(probe.dims(without) is None for probe in probes):
            continue
        errors = [max(probe.part_error(one) for probe in probes) for one in (flags, without)]
        if errors[1] < errors[0]:
            flags = without
    return flags


def _check_parts(probes: Sequence[_Probe], flags: Sequence[bool]) -> None:
    for probe in probes:
        if probe.part_error(flags) == float("inf"):
            raise CalibrationError(
                f"expected a network that takes any number of samples, got one that takes {probe.size(flags)} but "
                f"fails on half of them ({probe.failure or 'its output has another shape'}): torchmor holds samples "
                f"out, and traces one; {_WAY_OUT}"
            )


class _Probe:
    """A network and the arguments of one call, of which parts and permutations are tried."""

    def __init__(self, network: nn.Module, arguments: Arguments, limit: int | None):
        self.network, self.arguments, self.limit = network, arguments, limit
        self.failure: Exception | None = None
        self._dims: dict[tuple[bool, ...], list[int | None] | None] = {}

    def size(self, flags: Sequence[bool]) -> int:
        """Return the number of samples that are run with."""
        return next(length(argument) or 0 for argument, flag in zip(self._cut(flags), flags, strict=True) if flag)

    def dims(self, flags: Sequence[bool]) -> list[int | None] | None:
        """Return the dimension of each output that is permuted with the samples; None if they are not."""
        key = tuple(flags)
        if key not in self._dims:
            self._dims[key] = self._permuted(key)
        return self._dims[key]

    def _permuted(self, flags: Sequence[bool]) -> list[int | None] | None:
        given, size = self._cut(flags), self.size(flags)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
        order = order.flip(0) if torch.equal(order, torch.arange(size)) else order
        try:
            with _EqualNoise(size):
                expected, found = (self._run(one) for one in (given, samples_of(given, flags, order)))
        except Exception:  # whatever the network says to times that do not increase, or other impossible values
            return None
        if [one.shape for one in found] != [one.shape for one in expected]:
            return None
        dims: list[int | None] = []
        for value, wanted in zip(found, expected, strict=True):
            alike = (d for d, length in enumerate(wanted.shape) if length == size)
            good = (d for d in alike if _same(value, wanted.index_select(d, order.to(wanted.device))))
            dims.append(next(good, None))
            if dims[-1] is None and not _same(value, wanted):
                return None
        seen = any(dim is not None for dim in dims)
        return dims if seen or all(one.numel() == 1 for one in expected) else None

    def part_error(self, flags: Sequence[bool]) -> float:
        """Return how far the outputs of half of the samples are from these with all; infinity if they have none."""
        given, size, dims = self._cut(flags), self.size(flags), self.dims(flags)
        half = torch.arange(size // 2)
        if size < 2 or dims is None:
            return 0.0
        try:
            with _EqualNoise(size), _EqualNoise(len(half)):
                expected, found = (self._run(one) for one in (given, samples_of(given, flags, half)))
        except Exception as error:  # whatever the network says to a number of samples that it was not made for
            self.failure = error
            return float("inf")
        kept = [
            wanted if dim is None else wanted.index_select(dim, half.to(wanted.device))
            for wanted, dim in zip(expected, dims, strict=True)
        ]
        return max((_error(value, wanted) for value, wanted in zip(found, kept, strict=True)), default=0.0)

    def _cut(self, flags: Sequence[bool]) -> Arguments:
        return self.arguments if self.limit is None else samples_of(self.arguments, flags, slice(self.limit))

    def _run(self, arguments: Arguments) -> list[Tensor]:
        torch.manual_seed(0)  # within this context
        return [leaf for leaf in tree_leaves(self.network(*arguments)) if isinstance(leaf, Tensor)]


class _EqualNoise(DispatchMode):
    """Gives all samples the same random numbers, so that these do not tell them apart."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _NOISE:
            for dim in (dim for dim, length in enumerate(result.shape) if length == self.size):
                result.copy_(result.narrow(dim, 0, 1).expand_as(result).clone())
        return result


def _error(value: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinity where shapes differ."""
    if value.shape != wanted.shape:
        return float("inf")
    if wanted.is_complex():
        value, wanted = torch.view_as_real(value), torch.view_as_real(wanted)
    known = wanted.isfinite()
    value, wanted = value[known].double(), wanted[known].double()
    if not wanted.numel():
        return 0.0
    error = float((value - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
    return error if error == error else float("inf")


def _same(value: Tensor, wanted: Tensor) -> bool:
    eps = torch.finfo(wanted.dtype).eps if wanted.is_floating_point() else 0.0
    return _error(value, wanted) <= min(max(ALLOWED * eps, LEAST_ALLOWED), MOST_ALLOWED)
