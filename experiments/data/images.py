"""Data sets of images."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from torchmor.experiments.data.idx import check, read_idx, write_idx
from torchmor.experiments.data.labelled import DataError, DataSet, Labelled, split

#: Validation images of the large data sets.
VALIDATION = 5000

#: Images of MNIST that are not its test part; OpenML has all in one table.
_TRAINING_IMAGES = 60_000

#: The four files: images and labels, to train and to test.
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class _Large:
    """A data set of MNIST's form.

    Parameters
    ----------
    title
        Its name.
    md5
        Checksums of the decompressed files; packagers compress them anew.
    folders
        Where else the files may be.
    hint
        How to get them.
    openml
        Name in OpenML; None where it is not loaded from there.
    """

    title: str
    md5: tuple[str, str, str, str]
    folders: tuple[Path, ...]
    hint: str
    openml: str | None


_LARGE = {
    "fashion-mnist": _Large(
        "Fashion-MNIST",
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        (Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package
        "on Debian and Ubuntu `apt-get install dataset-fashion-mnist`; elsewhere put",
        None,
    ),
    "mnist": _Large(
        "MNIST",
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        (),
        "connect to the internet, from where it is loaded once, or put",
        "mnist_784",
    ),
}

#: Names for :func:`load_images`.
IMAGES = ("digits", *_LARGE)


def load_images(name: str, seed: int = 0, data_dir: Path | None = None) -> DataSet:
    """Load a data set of images by name.

    The test part of Fashion-MNIST and MNIST is the official one; of their 60,000 other images, 5,000 validate.

    Parameters
    ----------
    name
        "digits", "fashion-mnist" or "mnist".
    seed
        Of the split.
    data_dir
        Folder with the four IDX files, compressed or not, or with a folder of the data set's name that has them.

    Raises
    ------
    DataError
        There is no such data set, or it is not here, or damaged.
    """
    if name not in IMAGES:
        raise DataError(f"expected one of the image data sets {', '.join(IMAGES)}, got '{name}'")
    if name == "digits":
        return digits(seed)
    known = _LARGE[name]
    found = _find_files(name, known, data_dir)
    if found is not None:
        arrays = [read_idx(path, md5) for path, md5 in zip(found, known.md5, strict=True)]
    elif known.openml is not None:
        arrays = _openml(name, known)
    else:
        raise _missing(name, known)
    to_train, test = (_labelled(*arrays[i : i + 2]) for i in (0, 2))
    train, validation = split(to_train, VALIDATION, seed)
    return DataSet(f"{known.title}, {_pixels(test)}", train, validation, test)


def digits(seed: int = 0) -> DataSet:
    """Load the 1,797 handwritten digits of 8 × 8 pixels that scikit-learn brings along.

    Law: the parts have 60, 20 and 20 % of the images, each class in proportion, and are a function of the seed.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    everything = Labelled(images, torch.from_numpy(bunch.target.astype(np.int64)))
    to_train, test = split(everything, 0.2, seed)
    train, validation = split(to_train, 0.25, seed)
    return DataSet(f"scikit-learn's digits, {_pixels(test)}", train, validation, test)


def _labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    scaled = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return Labelled(scaled, torch.from_numpy(labels.astype(np.int64)))


def _pixels(samples: Labelled) -> str:
    return " × ".join(map(str, samples.inputs.shape[-2:])) + " pixels"


def _find_files(name: str, known: _Large, data_dir: Path | None) -> list[Path] | None:
    """Return the four files, of the first folder that has any of them."""
    given = () if data_dir is None else (data_dir, data_dir / name)
    for folder in (*given, *known.folders):
        found = [[path for path in (folder / file, folder / f"{file}.gz") if path.is_file()] for file in _FILES]
        if any(found):
            absent = [file for file, paths in zip(_FILES, found, strict=True) if not paths]
            if absent:
                raise DataError(f"expected the four files of {known.title} in {folder}, got no {', '.join(absent)}")
            return [paths[0] for paths in found]
    return None


def _openml(name: str, known: _Large) -> list[np.ndarray]:
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of retries, before the error that counts
            bunch = fetch_openml(known.openml, version=1, as_frame=False, parser="liac-arff", n_retries=1, delay=0.1)
    except OSError as error:  # no connection, or no such answer
        raise _missing(name, known, f" ({type(error).__name__}: {error})") from error
    images = np.rint(bunch.data).astype(np.uint8).reshape(-1, 28, 28)
    labels = bunch.target.astype(np.uint8)
    count = _TRAINING_IMAGES
    arrays = [images[:count], labels[:count], images[count:], labels[count:]]
    for array, md5 in zip(arrays, known.md5, strict=True):
        check(write_idx(array), md5, "OpenML")
    return arrays


def _missing(name: str, known: _Large, why: str = "") -> DataError:
    return DataError(
        f"expected the data set {known.title}, which is not here{why}: {known.hint} {', '.join(_FILES)} (also .gz) "
        f"into a folder and say --data-dir FOLDER, or into FOLDER/{name}"
    )
