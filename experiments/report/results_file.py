"""The file of results: rows are kept as they are done, and found again by the next run."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, Self, TypeVar

try:
    import fcntl
except ImportError:  # Windows: two runs on one file may lose rows there
    fcntl = None  # type: ignore[assignment]


class Kept(Protocol):
    """What a file of results holds: a row that is made into plain data and back."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the row that `to_json` made the data of."""


_Row = TypeVar("_Row", bound=Kept)


class ResultsFile(Generic[_Row]):
    """Rows of an experiment in a file of JSON lines: the settings first, then a line for each row.

    Law: what was added is there after any interruption, also where several runs add to the file at once; a run with
    other settings never reads it.

    Parameters
    ----------
    path
        The file. If it holds rows of other settings, it is renamed to ``<name>-1.jsonl`` (or the next free number); a
        run that is still adding to it goes on there.
    settings
        All that rows depend on.
    kind
        Class of the rows.

    Attributes
    ----------
    renamed
        Where rows of other settings are now; None if there were none.
    damaged
        Number of lines that are no whole rows, as a run that was killed leaves them; those rows are measured again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], kind: type[_Row]):
        self.path, self._kind = path, kind
        self._lines = [json.dumps({"settings": dict(settings)})]
        self._found: dict[str, _Row | str] = {}
        self.renamed: Path | None = None
        self.damaged = 0
        if not path.exists():
            return
        with _locked(path) as file:
            content = file.read()
            if content.split(b"\n", 1)[0] != self._first:
                self.renamed = self._aside()
                return
            content = self._mended(file, content)
        for line in content.split(b"\n")[1:]:
            try:
                if line:
                    self._keep(line.decode())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self.damaged += 1

    def find(self, network: str, seed: int, method: str, sizes: Mapping[str, int], solver: str) -> _Row | str | None:
        """Return a row, the words of a failure, or None for what was not measured yet."""
        return self._found.get(_key(network, seed, method, sizes, solver))

    def add(
        self, network: str, seed: int, method: str, sizes: Mapping[str, int], solver: str, found: _Row | str
    ) -> None:
        """Add a row, or a failure in words, to the file."""
        result = {"failure": found} if isinstance(found, str) else {"row": found.to_json()}
        key = {"network": network, "seed": seed, "method": method, "sizes": dict(sizes), "solver": solver}
        self._keep(json.dumps(key | result))
        while True:
            with _locked(self._own()) as file:
                content = file.read()
                if content and content.split(b"\n", 1)[0] != self._first:
                    continue  # another run was faster
                end = len(self._mended(file, content))
                _append(file, "".join(f"{line}\n" for line in self._lines[-1 if end else 0 :]).encode(), end)
                return

    @property
    def _first(self) -> bytes:
        return self._lines[0].encode()

    def _own(self) -> Path:
        """Return the file of our settings: `path`, or where a run with other settings has put it."""
        for path in (self.path, *sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))):
            if path.exists():
                with path.open("rb") as file:
                    first = file.readline()
                if first.rstrip(b"\n") == self._first:
                    return path
        if self.path.exists() and self.path.stat().st_size:
            self._aside()
        return self.path

    def _mended(self, file: BinaryIO, content: bytes) -> bytes:
        """End the last line, or remove what a run that was killed has left of it."""
        whole, newline, last = content.rpartition(b"\n")
        if not last:
            return content
        try:
            json.loads(last)
        except (ValueError, RecursionError):
            self.damaged += 1
            file.truncate(len(whole + newline))
            return whole + newline
        _append(file, b"\n", len(content))
        return content + b"\n"

    def _keep(self, line: str) -> None:
        entry = json.loads(line)
        key = _key(*(entry[name] for name in ("network", "seed", "method", "sizes", "solver")))
        self._found[key] = self._kind.from_json(entry["row"]) if "row" in entry else entry["failure"]
        self._lines.append(line)

    def _aside(self) -> Path:
        number = 1
        while (free := self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")).exists():
            number += 1
        return self.path.rename(free)


def _append(file: BinaryIO, data: bytes, end: int) -> None:
    """Append whole lines, or nothing."""
    try:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except BaseException:  # a full disk, or Ctrl-C
        with suppress(OSError):
            file.truncate(end)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read and append, which no other run has open so; it is made if it is missing."""
    while True:
        with path.open("a+b", buffering=0) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # renamed while we waited
            file.seek(0)
            yield file
            return


def _key(network: str, seed: int, method: str, sizes: Mapping[str, int], solver: str) -> str:
    return json.dumps([network, seed, method, dict(sizes), solver], sort_keys=True)
