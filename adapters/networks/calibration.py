"""Calibration data: batches of network arguments that can be read again and again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmor.engine.errors import CalibrationError, NonFiniteError

_FORMS = (
    "a Tensor, a tuple of Tensors (the arguments of one call), or a re-iterable of batches, "
    "each a Tensor or a tuple or list of arguments"
)


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of one call of the network.

    Parameters
    ----------
    arguments
        The arguments; those that are tensors of length `size` along dimension 0 are batched.
    samples
        Indices (size,) of the samples in the calibration data.
    index
        Position of the batch in the calibration data.
    """

    arguments: tuple[Any, ...]
    samples: np.ndarray
    index: int

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def select(self, rows: np.ndarray) -> "Batch":
        """Return the batch of the samples where the mask `rows` (size,) is true."""
        kept = torch.from_numpy(np.flatnonzero(rows))

        def part(argument: Any) -> Any:
            return argument[kept.to(argument.device)] if _batch_size(argument) == self.size else argument

        return Batch(tuple(map(part, self.arguments)), self.samples[rows], self.index)


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

    Raises
    ------
    CalibrationError
        The data is empty, can be read only once, or is in no form of those above.
    NonFiniteError
        An argument contains NaN or infinity; the message names the batch.
    """

    data: Any
    batch_size: int = 256
    batch_to_inputs: Callable[[Any], Any] | None = None
    seed: int = 0
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        data = self.data
        if self.batch_size < 1:
            raise CalibrationError(f"expected batch_size to be at least 1, got {self.batch_size}")
        if isinstance(data, Tensor) or _is_arguments(data):
            lengths = {_batch_size(tensor) for tensor in (data if isinstance(data, tuple) else (data,))}
            if len(lengths) > 1 or None in lengths:
                shapes = [tuple(tensor.shape) for tensor in data] if isinstance(data, tuple) else ()
                raise CalibrationError(
                    f"expected calibration tensors of one length along dimension 0, got shapes {shapes}: the "
                    f"tuple holds the arguments of one call; for a sequence of batches use a list"
                )
            if lengths == {0}:
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
        for index, batch in enumerate(self._raw_batches()):
            arguments = self._arguments(batch, index)
            size = next((size for size in map(_batch_size, arguments) if size is not None), None)
            if size is None:
                raise CalibrationError(
                    f"expected a Tensor (batch, …) among the arguments of calibration batch {index}, got "
                    f"{', '.join(type(argument).__name__ for argument in arguments) or 'no arguments'}: "
                    f"map batches to arguments with batch_to_inputs"
                )
            batch = Batch(arguments, np.arange(first, first + size), index)
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

    def count(self) -> int:
        """Return the number of samples, by one pass through the data."""
        return sum(batch.size for batch in self)

    def split(self, seed: int = 0, fraction: float = 0.2) -> tuple["Calibration", "Calibration"]:
        """Return the samples to fit to, and those held out; see :func:`held_out_mask`."""
        held_out = held_out_mask(replace(self, mask=None).count(), seed, fraction)
        kept = np.ones_like(held_out) if self.mask is None else self.mask
        return replace(self, mask=kept & ~held_out), replace(self, mask=kept & held_out)

    def total_batches(self) -> int | None:
        """Return the number of batches, where it is known without a pass."""
        if isinstance(self.data, Tensor) or _is_arguments(self.data):
            length = len(self.data if isinstance(self.data, Tensor) else self.data[0])
            return -(-length // self.batch_size)
        try:
            return len(self.data)
        except TypeError:
            return None

    def _raw_batches(self) -> Iterator[Any]:
        if isinstance(self.data, Tensor):
            yield from self.data.split(self.batch_size)
        elif _is_arguments(self.data):
            yield from zip(*(tensor.split(self.batch_size) for tensor in self.data), strict=True)
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
            if isinstance(argument, Tensor) and argument.is_floating_point() and not argument.isfinite().all():
                raise NonFiniteError(
                    f"expected finite calibration data, got NaN or infinity in batch {index}, argument "
                    f"{position}: clean the data"
                )
        return tuple(inputs)


def held_out_mask(n_samples: int, seed: int = 0, fraction: float = 0.2) -> np.ndarray:
    """Choose the samples that are held out from a fit.

    Law: the mask (n_samples,) has round(fraction · n_samples) true entries, but at least one true and one
    false if there are two samples or more, and is a function of the arguments.
    """
    count = min(max(round(fraction * n_samples), 1), n_samples - 1) if n_samples > 1 else 0
    mask = np.zeros(n_samples, dtype=bool)
    mask[np.random.default_rng(seed).permutation(n_samples)[:count]] = True
    return mask


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


def _batch_size(argument: Any) -> int | None:
    return argument.shape[0] if isinstance(argument, Tensor) and argument.ndim else None


def _advice(data: Any) -> str:
    if isinstance(data, np.ndarray):
        return "convert it with torch.from_numpy"
    if isinstance(data, Mapping):
        return 'map batches to arguments, batch_to_inputs=lambda b: (b["x"],)'
    return "map batches to arguments with batch_to_inputs"
