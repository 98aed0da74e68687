"""Calibration data: batches of network arguments that can be read again and again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmor.adapters.solving.torch_private import tree_leaves, tree_map_only
from torchmor.engine.errors import CalibrationError, NonFiniteError
from torchmor.engine.held_out import held_out_mask

#: Of data that is held out to measure errors, at most this many samples are used.
HELD_OUT_SAMPLES = 512

_FORMS = (
    "a Tensor, a tuple of Tensors (the arguments of one call), or a re-iterable of batches, "
    "each a Tensor or a tuple or list of arguments"
)


Arguments = tuple[Any, ...]

#: Which arguments of a call hold a batch along dimension 0.
Flags = tuple[bool, ...]


def length(argument: Any) -> int | None:
    """Return the common length along dimension 0 of the tensors in an argument; None if there is none."""
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in tree_leaves(argument) if isinstance(leaf, Tensor)}
    return lengths.pop() if len(lengths) == 1 else None


def samples_of(arguments: Arguments, batched: Sequence[bool], rows: Tensor | slice) -> Arguments:
    """Return arguments with some samples, by their indices or a slice, of those that hold a batch."""

    def chosen(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device) if isinstance(rows, Tensor) else rows]

    return tuple(tree_map_only(Tensor, chosen, a) if b else a for a, b in zip(arguments, batched, strict=True))


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of one call of the network.

    Parameters
    ----------
    arguments
        The arguments.
    samples
        Indices (size,) of the samples in the calibration data.
    index
        Position of the batch in the calibration data.
    batched
        Which arguments hold a batch along dimension 0; with none, the batch is one sample that stays whole. None: those
        as long as the number of samples.
    """

    arguments: Arguments
    samples: np.ndarray
    index: int
    batched: Sequence[bool] | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def flags(self) -> Flags:
        """Which arguments hold a batch, as said or as their lengths tell."""
        return tuple(self.batched or (length(argument) == self.size for argument in self.arguments))

    def select(self, rows: np.ndarray) -> "Batch":
        """Return the batch of the samples where the mask `rows` (size,) is true."""
        kept = samples_of(self.arguments, self.flags, torch.from_numpy(np.flatnonzero(rows)))
        return replace(self, arguments=kept, samples=self.samples[rows])


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration data as an iterable of :class:`Batch`.

    Law: every pass gives the same batches. Loaders that shuffle or augment by torch's random numbers draw
    them from `seed` in every pass, and torch's own random state does not move.

    Parameters
    ----------
    data
        A Tensor (one argument) or tuple of Tensors (the arguments of one call), split along dimension 0; or
        any re-iterable of batches, each a Tensor or a tuple or list of arguments.
    batch_size
        Samples of a batch, for Tensors.
    batch_to_inputs
        Maps a batch to an argument or a tuple of arguments.
    seed
        Seed of the random numbers that the data draws.
    mask
        Which samples to give (number of samples,); None for all.
    batched
        Which arguments of the network hold a batch along dimension 0. With none of them, every batch stays whole and
        counts as one sample. None: not known yet; those as long as the first, for networks of one argument.

    Raises
    ------
    CalibrationError
        The data is empty, can be read only once, is in no form of those above, or does not have these batches.
    NonFiniteError
        An argument contains NaN or infinity; the message names the batch.
    """

    data: Any
    batch_size: int = 256
    batch_to_inputs: Callable[[Any], Any] | None = None
    seed: int = 0
    mask: np.ndarray | None = None
    batched: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        data = self.data
        if self.batch_size < 1:
            raise CalibrationError(f"expected batch_size to be at least 1, got {self.batch_size}")
        if self.batched is not None:
            object.__setattr__(self, "batched", tuple(map(bool, self.batched)))
        if isinstance(data, Tensor) or _is_arguments(data):
            lengths = {length(tensor) for tensor in (data if isinstance(data, tuple) else (data,))}
            if 0 in lengths:
                raise CalibrationError("expected calibration data with at least one sample, got none")
            return
        if isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset):
            raise CalibrationError(
                f"expected batches, got the dataset {type(data).__name__}, which holds single samples: pass "
                f"DataLoader(dataset, batch_size={self.batch_size})"
            )
        if isinstance(data, Mapping | str | bytes | np.ndarray) or not isinstance(data, Iterable):
            raise CalibrationError(f"expected {_FORMS}, got {type(data).__name__}: {_advice(data)}")
        if isinstance(data, Iterator):
            raise CalibrationError(
                f"expected calibration data that can be read several times, got the one-shot iterator "
                f"{type(data).__name__}: pass a list of batches, or a DataLoader"
            )

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for index, raw in enumerate(self._raw_batches()):
            arguments = self._arguments(raw, index)
            size = self._size(arguments, index)
            batch = Batch(arguments, np.arange(first, first + size), index, self.batched)
            first += size
            if self.mask is not None:
                if first > len(self.mask):
                    raise CalibrationError(
                        f"expected {len(self.mask)} calibration samples, got more: the data must be the same "
                        f"in every pass"
                    )
                batch = batch.select(self.mask[batch.samples])
            if batch.size:
                yield batch
        if first == 0:
            raise CalibrationError(
                "expected calibration data with at least one sample, got none: is the loader empty, or exhausted?"
            )

    @property
    def in_one_piece(self) -> bool:
        """Whether the data is a Tensor or a tuple of Tensors, which is split into batches here."""
        return isinstance(self.data, Tensor) or _is_arguments(self.data)

    def calls(self) -> Iterator[Arguments]:
        """Yield the arguments of all calls; tensors whose batches are not known yet are one call."""
        whole = self.in_one_piece and self.batched is None and self.batch_to_inputs is None
        for index, batch in enumerate([self.data] if whole else self._raw_batches()):
            yield self._arguments(batch, index)

    def _parts(self) -> Iterator[Any]:
        """Yield parts of data that is in one piece."""
        tensors = (self.data,) if isinstance(self.data, Tensor) else self.data
        flags = None if self.batch_to_inputs is not None else self.batched
        if flags is None:
            flags = (True,) * len(tensors)
        if len(flags) != len(tensors) or not any(flags):
            yield self.data  # and is told, or stays whole
            return
        lengths = {length(tensor) for tensor, flag in zip(tensors, flags, strict=True) if flag}
        if len(lengths) > 1 or None in lengths:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise CalibrationError(
                f"expected calibration tensors of one length along dimension 0, got shapes {shapes}: a tuple holds "
                "the arguments of one call; for a sequence of batches use a list, and with arguments that hold no "
                "batch, batched=(True, False, …)"
            )
        for start in range(0, lengths.pop() or 0, self.batch_size):
            part = samples_of(tensors, flags, slice(start, start + self.batch_size))
            yield part[0] if isinstance(self.data, Tensor) else part

    def _size(self, arguments: Arguments, index: int) -> int:
        """Return the number of samples."""
        if self.batched is None:
            size = next((size for size in map(length, arguments) if size is not None), None)
            if size is not None:
                return size
        elif len(self.batched) != len(arguments):
            raise CalibrationError(
                f"expected batched to say of each argument of the network whether it holds a batch, got "
                f"{len(self.batched)} values for the {len(arguments)} arguments of calibration batch {index}"
            )
        elif not any(self.batched):
            return 1
        else:
            sizes = [length(argument) for argument, flag in zip(arguments, self.batched, strict=True) if flag]
            if len(set(sizes)) == 1 and sizes[0] is not None:
                return sizes[0]
            raise CalibrationError(
                f"expected arguments of one length along dimension 0 where batched={self.batched} says that they hold "
                f"a batch, got {', '.join(map(described, arguments))} in calibration batch {index}"
            )
        raise CalibrationError(
            f"expected a Tensor (batch, …) among the arguments of calibration batch {index}, got "
            f"{', '.join(map(described, arguments)) or 'no arguments'}: map batches to arguments with batch_to_inputs"
        )

    def count(self) -> int:
        """Return the number of samples, by one pass through the data."""
        return sum(batch.size for batch in self)

    def split(self, seed: int = 0, fraction: float = 0.2) -> tuple["Calibration", "Calibration"]:
        """Return most of the samples, and those held out; see :func:`held_out_mask`."""
        given = np.ones(self.count(), dtype=bool) if self.mask is None else self.mask
        held_out = np.zeros_like(given)
        held_out[given] = held_out_mask(int(given.sum()), seed, fraction)
        return replace(self, mask=given & ~held_out), replace(self, mask=held_out)

    def first(self, most: int, seed: int = 0) -> "Calibration":
        """Return at most so many of the samples, by chance."""
        count = self.count()
        return self if count <= most else self.split(seed, most / count)[1]

    def total_batches(self) -> int | None:
        """Return the number of batches, where it is known without a pass."""
        if self.in_one_piece:
            return sum(1 for _ in self._parts())
        try:
            return len(self.data)
        except TypeError:
            return None

    def _raw_batches(self) -> Iterator[Any]:
        if self.in_one_piece:
            yield from self._parts()
        else:
            random = _RandomState(self.seed)
            with random:
                batches = iter(self.data)
            while True:
                with random:
                    batch = next(batches, self)  # self is no batch: it marks the end
                if batch is self:
                    return
                yield batch

    def _arguments(self, batch: Any, index: int) -> tuple[Any, ...]:
        inputs = batch if self.batch_to_inputs is None else self.batch_to_inputs(batch)
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if not isinstance(inputs, tuple | list):
            what = "calibration batch" if self.batch_to_inputs is None else "result of batch_to_inputs for batch"
            raise CalibrationError(
                f"expected {what} {index} to be a Tensor or a tuple or list of arguments, got "
                f"{type(inputs).__name__}: {_advice(inputs)}"
            )
        for position, argument in enumerate(inputs):
            for leaf in tree_leaves(argument):
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
                    raise NonFiniteError(
                        f"expected finite calibration data, got NaN or infinity in batch {index}, argument "
                        f"{position}: clean the data"
                    )
        return tuple(inputs)


class _RandomState:
    """A context with torch's CPU random numbers of its own, which go on in the next context."""

    def __init__(self, seed: int):
        self._own = torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._outer = torch.get_rng_state()
        torch.set_rng_state(self._own)

    def __exit__(self, *exception: object) -> None:
        self._own = torch.get_rng_state()
        torch.set_rng_state(self._outer)


def _is_arguments(data: Any) -> bool:
    return isinstance(data, tuple) and bool(data) and all(isinstance(item, Tensor) for item in data)


def described(argument: Any) -> str:
    """Return an argument in words: the shape of a Tensor, the kind of all others."""
    return str(tuple(argument.shape)) if isinstance(argument, Tensor) else type(argument).__name__


def _advice(data: Any) -> str:
    if isinstance(data, np.ndarray):
        return "convert it with torch.from_numpy"
    if isinstance(data, Mapping):
        return 'map batches to arguments, batch_to_inputs=lambda b: (b["x"],)'
    return "map batches to arguments with batch_to_inputs"
