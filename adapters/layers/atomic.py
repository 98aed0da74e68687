"""Files are written whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there stays
    fcntl = None  # type: ignore[assignment]

#: Names of temporary files: short, for names have a largest length, and known, so that those of killed processes can
#: be told and removed.
_TEMPORARY = re.compile(r"\.torchmor-[0-9a-f]{8}(\..*)?")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; its content gets to `path` on success, and it is removed in any case.

    Of a link the target is written. A file that exists keeps its mode, a new one has that of the umask. Devices and
    pipes are written through. The file is on the disk when this returns. What a process that was killed has left in
    the folder is removed by the next one that writes there.

    Raises
    ------
    OSError
        The path cannot be written; it, and not the temporary path, is named.
    """
    try:
        mode = _mode(path)
        target = os.path.realpath(path)
        through = mode is not None and not stat.S_ISREG(mode)
        with _temporary(tempfile.gettempdir() if through else os.path.dirname(target), Path(path).suffix) as temporary:
            yield temporary
            if through:
                with temporary.open("rb") as source, open(path, "wb") as device:
                    shutil.copyfileobj(source, device)
            else:
                if mode is not None:
                    temporary.chmod(stat.S_IMODE(mode))
                _synchronise(temporary)
                os.replace(temporary, target)
                _synchronise(temporary.parent)
    except OSError as error:
        name = error.filename
        if error.errno is None or not (name is None or _TEMPORARY.fullmatch(os.path.basename(os.fsdecode(name)))):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _mode(path: str | os.PathLike[str]) -> int | None:
    """Return the mode of what is there, None for nothing; told now, before a long computation of what to write."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    for code, wrong in ((errno.EISDIR, stat.S_ISDIR(mode)), (errno.EACCES, not os.access(path, os.W_OK))):
        if wrong:
            raise OSError(code, os.strerror(code), os.fspath(path))
    return mode


@contextmanager
def _temporary(folder: str, suffix: str) -> Iterator[Path]:
    """Yield an empty file of our own, locked while it is in use."""
    _remove_stale(folder)
    while True:
        temporary = Path(folder, f".torchmor-{secrets.token_hex(4)}{suffix if len(suffix) <= 16 else ''}")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if _lock(handle) and temporary.exists():  # else another process took it for a stale one just now
            break
        os.close(handle)
    try:
        yield temporary
    finally:
        if fcntl is not None:
            os.close(handle)
        temporary.unlink(missing_ok=True)


def _lock(handle: int) -> bool:
    if fcntl is None:
        os.close(handle)  # an open file cannot be replaced there
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _remove_stale(folder: str) -> None:
    """Remove temporary files that no process holds."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for path in [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(handle)


def _synchronise(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(handle)
