"""The file of results: rows are kept as they are done, and found again by the next run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmor.adapters.layers.atomic import atomic_path
from torchmor.experiments.measure.comparison import Row


class ResultsFile:
    """Rows of an experiment in a file of JSON lines: the settings first, then a line for each row.

    Law: what was added is there after any interruption; a run with other settings never reads it.

    Parameters
    ----------
    path
        The file. If it holds rows of other settings, it is renamed to ``<name>-1.jsonl`` (or the next free number).
    settings
        All that rows depend on.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self._lines = [json.dumps({"settings": dict(settings)})]
        self._found: dict[str, Row | str] = {}
        self.renamed: Path | None = None
        if path.exists():
            first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
            if first == self._lines[0]:
                for line in lines:
                    self._keep(line)
            else:
                self.renamed = self._aside()

    def find(self, network: str, seed: int, method: str, sizes: Mapping[str, int], solver: str) -> Row | str | None:
        """Return a row, the words of a failure, or None for what was not measured yet."""
        return self._found.get(_key(network, seed, method, sizes, solver))

    def add(
        self, network: str, seed: int, method: str, sizes: Mapping[str, int], solver: str, found: Row | str
    ) -> None:
        """Add a row, or a failure in words, and write the file."""
        result = {"failure": found} if isinstance(found, str) else {"row": found.to_json()}
        key = {"network": network, "seed": seed, "method": method, "sizes": dict(sizes), "solver": solver}
        self._keep(json.dumps(key | result))
        with atomic_path(self.path) as temporary:
            temporary.write_text("\n".join(self._lines) + "\n", encoding="utf-8")

    def _keep(self, line: str) -> None:
        entry = json.loads(line)
        key = _key(*(entry[name] for name in ("network", "seed", "method", "sizes", "solver")))
        self._found[key] = Row.from_json(entry["row"]) if "row" in entry else entry["failure"]
        self._lines.append(line)

    def _aside(self) -> Path:
        number = 1
        while (free := self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")).exists():
            number += 1
        return self.path.rename(free)


def _key(network: str, seed: int, method: str, sizes: Mapping[str, int], solver: str) -> str:
    return json.dumps([network, seed, method, dict(sizes), solver], sort_keys=True)
