"""Where the repository lies and what it holds, for the tests that look at the project itself."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "adapters", "experiments")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules(*folders: str) -> list[Path]:
    """All Python files of the given folders, by default of all installed folders."""
    return sorted(path for folder in folders or FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """The installed name of a Python file: ``engine/points.py`` is ``torchmor.engine.points``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("torchmor", *parts)).removesuffix(".__init__")
