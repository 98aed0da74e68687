"""Data sets: formats, checksums, splits, and what is said where data is missing."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from torchmor.experiments.data import images as image_module
from torchmor.experiments.data.idx import read_idx, write_idx
from torchmor.experiments.data.images import load_images
from torchmor.experiments.data.labelled import DataError, Labelled, split
from torchmor.experiments.data.sequences import BUNDLED, load_sequences

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def arrays(seed=0, size=28):
    """Images and labels of a small data set in MNIST's form."""
    random = np.random.default_rng(seed)
    return [
        random.integers(0, 256, (50, size, size), np.uint8),
        np.arange(50, dtype=np.uint8) % 5,
        random.integers(0, 256, (10, size, size), np.uint8),
        np.arange(10, dtype=np.uint8) % 5,
    ]


@pytest.fixture
def small_fashion(monkeypatch):
    """Fashion-MNIST with the checksums of the small data set, nowhere on this machine."""
    md5 = tuple(hashlib.md5(write_idx(array)).hexdigest() for array in arrays())
    known = {name: replace(entry, md5=md5, folders=()) for name, entry in image_module._LARGE.items()}
    monkeypatch.setattr(image_module, "_LARGE", known)
    monkeypatch.setattr(image_module, "VALIDATION", 10)


def write(folder, values, *, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(FILES, values, strict=True):
        content = write_idx(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


# -- IDX files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (0, 2)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, shape, suffix):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / f"values{suffix}"
    path.write_bytes(gzip.compress(write_idx(values)) if suffix else write_idx(values))
    np.testing.assert_array_equal(read_idx(path), values)


def test_idx_of_known_bytes(tmp_path):
    (tmp_path / "file").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert read_idx(tmp_path / "file").tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with : get it again"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "begins with 00 00 0d 01"),
        (b"\0\0\x08\3\0\0\0\1", "expected an IDX file of unsigned bytes"),
        (b"\0\0\x08\1\0\0\0\3ab", r"expected 3 values of shape \(3,\).*got 2"),
        (b"\0\0\x08\1\0\0\0\3abcd", "got 4"),
    ],
)
def test_damaged_idx(tmp_path, content, said):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_idx(tmp_path / "file")


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(write_idx(np.arange(100, dtype=np.uint8)))
    for content in (whole[:-10], b"no gzip", whole[:30] + b"\xff" + whole[31:]):
        (tmp_path / "file.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"expected a gzip file in .*damaged"):
            read_idx(tmp_path / "file.gz")


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("where", [".", "fashion-mnist"])
def test_files_of_the_data_folder(small_fashion, tmp_path, compressed, where):
    write(tmp_path / where, arrays(), compressed=compressed)
    data = load_images("fashion-mnist", 0, tmp_path)
    assert data.name == "Fashion-MNIST, 28 × 28 pixels"
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 10)
    assert data.train.inputs.shape == (40, 1, 28, 28)
    np.testing.assert_array_equal((data.test.inputs[:, 0] * 255).round().numpy(), arrays()[2])
    assert data.test.labels.tolist() == arrays()[3].tolist()
    assert data.classes == 5


def test_another_checksum_is_refused(small_fashion, tmp_path):
    write(tmp_path, arrays(seed=1))
    with pytest.raises(
        DataError, match=r"MD5 checksum \w{32} from .*train-images-idx3-ubyte, got \w{32}: get it again"
    ):
        load_images("fashion-mnist", 0, tmp_path)


def test_incomplete_folder_is_named(small_fashion, tmp_path):
    write(tmp_path, arrays())
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(DataError, match=r"the four files of Fashion-MNIST in .*, got no t10k-labels-idx1-ubyte"):
        load_images("fashion-mnist", 0, tmp_path)


def test_absent_data_says_how_to_get_it(small_fashion, tmp_path):
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist.*train-images-idx3-ubyte.*--data-dir"):
        load_images("fashion-mnist", 0, tmp_path)


def test_mnist_offline_says_how_to_get_it(small_fashion, monkeypatch):
    def fetch(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(
        DataError, match=r"MNIST, which is not here \(URLError: .*\): connect to the internet.*--data-dir"
    ):
        load_images("mnist")


def test_mnist_from_openml_is_checked_like_the_files(small_fashion, monkeypatch):
    train, labels, test, test_labels = arrays()
    monkeypatch.setattr(image_module, "_TRAINING_IMAGES", len(train))
    bunch = SimpleNamespace(
        data=np.concatenate([train, test]).reshape(60, 784).astype(float),
        target=np.concatenate([labels, test_labels]).astype(str),
    )
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *args, **kwargs: bunch)
    data = load_images("mnist")
    np.testing.assert_array_equal((data.test.inputs[:, 0] * 255).round().numpy(), test)
    assert len(data.train) == 40
    bunch.data[0, 0] += 1
    with pytest.raises(DataError, match="from OpenML, got"):
        load_images("mnist")


def test_unknown_images():
    with pytest.raises(
        DataError, match="expected one of the image data sets digits, fashion-mnist, mnist, got 'cifar'"
    ):
        load_images("cifar")


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_as_debian_has_it():
    data = load_images("fashion-mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.validation.labels.bincount().tolist() == [500] * 10
    assert data.train.inputs.min() == 0 and data.train.inputs.max() == 1


# -- splits ---------------------------------------------------------------------------------------------------------


def test_split_is_stratified_disjoint_and_a_function_of_the_seed():
    samples = Labelled(torch.arange(60.0)[:, None], torch.arange(60) % 3)
    rest, part = split(samples, 12, seed=1)
    assert part.labels.bincount().tolist() == [4, 4, 4]
    assert sorted([*rest.inputs.flatten().tolist(), *part.inputs.flatten().tolist()]) == list(range(60))
    assert torch.equal(split(samples, 12, seed=1)[1].inputs, part.inputs)
    assert not torch.equal(split(samples, 12, seed=2)[1].inputs, part.inputs)


def test_too_few_samples_to_split():
    with pytest.raises(DataError, match="expected enough samples of every class to split them, got too few"):
        split(Labelled(torch.zeros(3, 1), torch.tensor([0, 0, 1])), 0.5, seed=0)


# -- sequences ------------------------------------------------------------------------------------------------------


def test_digits_row_by_row():
    data, images = load_sequences("digits", seed=4), load_images("digits", seed=4)
    assert data.name == "Digits row by row, 8 steps of 8 channels"
    assert torch.equal(data.test.labels, images.test.labels)
    rows, image = data.train.inputs, images.train.inputs[:, 0]
    torch.testing.assert_close(rows.mean(dim=(0, 1)), torch.zeros(8), rtol=0, atol=1e-5)
    deviation = image.std(dim=(0, 1))
    torch.testing.assert_close(
        rows[5, 2] - rows[7, 3], (image[5, 2] - image[7, 3]) / torch.where(deviation > 0, deviation, 1.0)
    )


def test_unknown_sequences(tmp_path):
    with pytest.raises(DataError, match=r"japanese-vowels.*or the files Speech_TRAIN.ts and Speech_TEST.ts in"):
        load_sequences("Speech", 0, tmp_path)


HEADER = """@problemName Steps
@timeStamps false
@missing false
@univariate false
@equalLength false
@classLabel true up down
@data
"""
LINES = ["0,1,2:4,4,4:up", "0,2:1,0:down"]


def write_ts(folder, train=LINES * 5, test=LINES, header=HEADER):
    for part, lines in (("TRAIN", train), ("TEST", test)):
        (folder / f"Steps_{part}.ts").write_text(header + "\n".join(lines) + "\n")


def test_recordings_of_different_lengths(tmp_path):
    """The longest has 3 steps, so "0, 2" becomes "0, 1, 2" and "1, 0" becomes "1, 0.5, 0"."""
    pytest.importorskip("sktime", reason="needs torchmor[sequences]")
    write_ts(tmp_path)
    data = load_sequences("Steps", 0, tmp_path)
    assert data.name == "Steps, 3 steps of 2 channels"
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 2)
    assert data.test.labels.tolist() == [1, 0], "classes are numbered by name"
    plain = torch.tensor([[[0, 4], [1, 4], [2, 4]], [[0, 1], [1, 0.5], [2, 0]]])
    both = plain.repeat(4, 1, 1)  # the split takes as many of each class
    mean, deviation = both.mean(dim=(0, 1)), both.std(dim=(0, 1))
    torch.testing.assert_close(data.test.inputs, (plain - mean) / deviation)


def test_long_recordings_are_shortened(tmp_path):
    pytest.importorskip("sktime", reason="needs torchmor[sequences]")
    long = ",".join(str(i) for i in range(397))
    write_ts(tmp_path, [f"{long}:{long}:up", f"0,0:{long}:down"] * 5)
    data = load_sequences("Steps", 0, tmp_path)
    assert data.train.inputs.shape == (8, 100, 2)
    steps = data.train.inputs[:, :, 1].diff(dim=1)
    torch.testing.assert_close(steps, steps[:1, :1].expand_as(steps), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"test": ["0,1:1,1:sideways"]}, r"no others in the test file, got \['down', 'up'\] to"),
        ({"train": ["0,?:1,1:up", "0,1:1,1:down"] * 5}, "missing values"),
        ({"header": "no header\n"}, "expected a .ts file of labelled recordings"),
        ({"train": ["0,1:1,1:up"] * 10}, "at least two classes"),
    ],
)
def test_unusable_recordings(tmp_path, files, said):
    pytest.importorskip("sktime", reason="needs torchmor[sequences]")
    write_ts(tmp_path, **files)
    with pytest.raises(DataError, match=said):
        load_sequences("Steps", 0, tmp_path)


def test_without_sktime(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sktime", None)
    with pytest.raises(DataError, match=r"pip install 'torchmor\[sequences\]'"):
        load_sequences("japanese-vowels")


def test_japanese_vowels():
    pytest.importorskip("sktime", reason="needs torchmor[sequences]")
    data = load_sequences("japanese-vowels")
    assert (len(data.train), len(data.validation), len(data.test)) == (216, 54, 370)
    assert data.train.inputs.shape[1:] == (26, 12)
    assert data.train.labels.bincount().tolist() == [24] * 9
    assert torch.isfinite(data.test.inputs).all()


def test_bundled_recordings_are_checked(monkeypatch):
    pytest.importorskip("sktime", reason="needs torchmor[sequences]")
    problem, first, _ = BUNDLED["basic-motions"]
    monkeypatch.setitem(BUNDLED, "basic-motions", (problem, first, "0" * 64))
    with pytest.raises(DataError, match=r"SHA-256 checksum 0{64} in .*BasicMotions_TEST.ts.*install sktime again"):
        load_sequences("basic-motions")


def test_shortened():
    images = load_images("digits")
    short = images.shortened(30)
    assert short.name.startswith(images.name) and "at most 30" in short.name
    for name in ("train", "validation", "test"):
        part, whole = getattr(short, name), getattr(images, name)
        assert torch.equal(part.inputs, whole.inputs[:30]) and torch.equal(part.labels, whole.labels[:30])
