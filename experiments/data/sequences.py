"""Data sets of sequences."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmor.experiments.data.images import digits
from torchmor.experiments.data.labelled import DataError, DataSet, Labelled, split

#: Longer recordings are resampled to this many steps: a network takes a solver step for each.
MOST_STEPS = 100

#: Recordings that sktime brings along, with the SHA-256 checksums of their training and test files.
BUNDLED = {
    "japanese-vowels": (
        "JapaneseVowels",
        "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
        "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
    ),
    "basic-motions": (
        "BasicMotions",
        "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
        "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
    ),
    "italy-power-demand": (
        "ItalyPowerDemand",
        "341269cb7e6cef96846b30e774580beec79addb93848ba360145219115a74b7c",
        "26122451f87dd0387ef90b18bc8a86c041371b8a1c068004922b939971247144",
    ),
    "arrow-head": (
        "ArrowHead",
        "a83c470aaf611a5f5284377cce27a5fc9f6292bc3d110257b0fd4905ced5ee72",
        "5417dab42626d41df5e435bb22458c2df40dfad4bcd3b59559bbe72e20e84904",
    ),
}

#: Names for :func:`load_sequences`, beside those of a user's own files.
SEQUENCES = ("digits", *BUNDLED)


_Recordings = tuple[list[list[np.ndarray]], np.ndarray]


def load_sequences(name: str, seed: int = 0, data_dir: Path | None = None) -> DataSet:
    """Load a data set of sequences by name.

    Each channel is standardised by mean and deviation of the training part. Recordings of different lengths, and those
    of more than 100 steps, are resampled linearly, each over its own duration, to as many steps as the longest one of
    the training file has, but at most 100.

    Parameters
    ----------
    name
        "digits" (the rows of the images in turn, 8 steps of 8 channels), a key of `BUNDLED`, or the name of a problem
        of the UCR and UEA archives.
    seed
        Of the split of training and validation part, 80 and 20 %; the test part is that of the archive.
    data_dir
        Folder with NAME_TRAIN.ts and NAME_TEST.ts, or with a folder NAME that has them.

    Raises
    ------
    DataError
        There is no such data set, or it is not here, damaged, or not to be classified.
    """
    if name == "digits":
        data = digits(seed)
        parts = (Labelled(part.inputs[:, 0], part.labels) for part in (data.train, data.validation, data.test))
        return _standardised("Digits row by row", *parts)
    paths, checksums = _find_files(name, data_dir)
    to_train, test = _same_steps(*(_read(path, checksum) for path, checksum in zip(paths, checksums, strict=True)))
    train, validation = split(to_train, 0.2, seed)
    title = paths[0].name.removesuffix("_TRAIN.ts")
    return _standardised(title, train, validation, test)


def _find_files(name: str, data_dir: Path | None) -> tuple[list[Path], tuple[str | None, str | None]]:
    folders = [] if data_dir is None else [data_dir, data_dir / name]
    for folder in folders:
        paths = [folder / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]
        if all(path.is_file() for path in paths):
            return paths, (None, None)
    if name in BUNDLED:
        problem, train, test = BUNDLED[name]
        folder = Path(_sktime().__file__).parent / "datasets" / "data" / problem
        return [folder / f"{problem}_{part}.ts" for part in ("TRAIN", "TEST")], (train, test)
    where = "--data-dir FOLDER" if data_dir is None else f"{data_dir} or {data_dir / name}"
    raise DataError(
        f"expected one of the sequence data sets {', '.join(SEQUENCES)}, or the files {name}_TRAIN.ts and "
        f"{name}_TEST.ts in {where}, got neither: problems of the UCR and UEA archives come in such files"
    )


def _sktime() -> Any:
    try:
        import sktime
    except ModuleNotFoundError as error:
        raise DataError(
            "expected sktime, which reads recordings and brings some along, got no such package: pip install "
            "'torchmor[sequences]'"
        ) from error
    return sktime


def _read(path: Path, sha256: str | None) -> _Recordings:
    """Return the channels of each recording, (steps,) each, and the names of the classes."""
    import hashlib

    _sktime()
    from sktime.datasets import load_from_tsfile

    if sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise DataError(
                f"expected data with the SHA-256 checksum {sha256} in {path}, got {found}: install sktime again"
            )
    try:
        table, classes = load_from_tsfile(str(path), return_data_type="nested_univ")
    except Exception as error:  # sktime raises many kinds
        raise DataError(f"expected a .ts file of labelled recordings in {path}, got another ({error})") from error
    recordings = [[np.asarray(channel, dtype=np.float64) for channel in row] for row in table.to_numpy()]
    channels = [channel for recording in recordings for channel in recording]
    if not channels or not all(len(channel) and np.isfinite(channel).all() for channel in channels):
        raise DataError(f"expected complete recordings in {path}, got missing values: fill them in first")
    return recordings, np.asarray(classes)


def _same_steps(train: _Recordings, test: _Recordings) -> tuple[Labelled, Labelled]:
    steps = min(MOST_STEPS, max(len(channel) for recording in train[0] for channel in recording))
    names = sorted(set(train[1].tolist()))
    if len(names) < 2 or not set(test[1].tolist()) <= set(names):
        raise DataError(f"expected at least two classes, and no others in the test file, got {names} to train with")

    def labelled(recordings: list[list[np.ndarray]], classes: np.ndarray) -> Labelled:
        inputs = np.stack([_resampled(recording, steps) for recording in recordings]).astype(np.float32)
        return Labelled(torch.from_numpy(inputs), torch.from_numpy(np.searchsorted(names, classes)))

    return labelled(*train), labelled(*test)


def _resampled(recording: list[np.ndarray], steps: int) -> np.ndarray:
    """Return (steps, channels): each channel over its own duration."""
    new = np.linspace(0, 1, steps)
    same = [
        channel if len(channel) == steps else np.interp(new, np.linspace(0, 1, len(channel)), channel)
        for channel in recording
    ]
    return np.stack(same, axis=1)


def _standardised(title: str, train: Labelled, validation: Labelled, test: Labelled) -> DataSet:
    mean, deviation = train.inputs.mean(dim=(0, 1)), train.inputs.std(dim=(0, 1))
    deviation = torch.where(deviation > 0, deviation, 1.0)  # a channel that never changes stays at zero
    parts = [Labelled((part.inputs - mean) / deviation, part.labels) for part in (train, validation, test)]
    _, steps, channels = train.inputs.shape
    return DataSet(f"{title}, {steps} steps of {channels} channel{'s' * (channels > 1)}", *parts)
