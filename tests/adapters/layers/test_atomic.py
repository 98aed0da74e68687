"""Files are written whole or not at all."""

import os

import pytest

from torchmor.adapters.layers.atomic import atomic_path


def test_replaces_the_file_on_success(tmp_path):
    path = tmp_path / "a file.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".txt" and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_leaves_the_old_file_on_failure(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(str(path)) as temporary:  # noqa: PT012 - the failure of the writer
        temporary.write_text("half of")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_missing_folder_and_folder_in_the_way(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "missing" / "file.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "folder") as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_respect_the_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("new")
        assert os.umask(umask) == umask
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_path("file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
