"""Files are written whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from torchmor.adapters.layers.atomic import atomic_path


def write(path, text="new"):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


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
    with pytest.raises(FileNotFoundError, match=r"missing.file\.txt"), atomic_path(tmp_path / "missing" / "file.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "folder"):
        pytest.fail("told before anything is computed")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_respect_the_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        write(tmp_path / "file")
        assert os.umask(umask) == umask
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_file_that_exists_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("file")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("exists", [True, False])
def test_the_target_of_a_link_is_written(tmp_path, exists):
    folder, link = tmp_path / "elsewhere", tmp_path / "link.txt"
    folder.mkdir()
    link.symlink_to(Path("elsewhere") / "file.txt")
    if exists:
        (folder / "file.txt").write_text("old")
    write(link)
    assert link.is_symlink() and (folder / "file.txt").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link.txt"] and os.listdir(folder) == ["file.txt"]


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"), atomic_path(tmp_path / "a"):
        pass
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_devices_are_written_through(device):
    before = os.stat(device)
    if device == "/dev/full":
        with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
            write(device)
    else:
        write(device)
    assert os.stat(device).st_rdev == before.st_rdev and stat.S_ISCHR(os.stat(device).st_mode)


def test_pipes_are_written_through(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join(10)
    assert found == ["new"] and stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["x" * 255, "x" * 5 + "." + "y" * 249, "é" * 127])
def test_the_longest_names(tmp_path, name):
    write(tmp_path / name)
    assert (tmp_path / name).read_text() == "new" and os.listdir(tmp_path) == [name]


def test_file_and_folder_are_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write(tmp_path / "file")
    assert len(synced) == 2 and synced[0].startswith(f"{tmp_path}/.torchmor-") and synced[1] == str(tmp_path)


KILLED = """
import os, signal, sys
from torchmor.adapters.layers.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    with atomic_path(tmp_path / "other") as temporary:
        assert sorted(os.listdir(tmp_path)) == sorted(["file.txt", temporary.name])
        write(path)  # the other file is in use, and stays
        temporary.write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "other"]


def test_files_of_others_stay(tmp_path):
    for name in (".torchmor-x", ".torchmor-12345678x", "torchmor-12345678"):
        (tmp_path / name).write_text("of others")
    write(tmp_path / "file")
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_write_protected_file_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError), atomic_path(path):
        pytest.fail("told before anything is computed")
    assert path.read_text() == "old"


@pytest.mark.parametrize("error", [OSError("of the writer"), OSError(5, "of a disk", "another file")])
def test_errors_of_others_stay_as_they_are(tmp_path, error):
    with pytest.raises(OSError, match=r"of the writer|of a disk: 'another file'"), atomic_path(tmp_path / "file"):
        raise error


def test_errors_name_the_path(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left", *paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left: '.*/file'$"):
        write(tmp_path / "file")
    assert os.listdir(tmp_path) == []
