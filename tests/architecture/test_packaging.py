"""The distribution holds every module under its installed name, and its metadata fit."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from repository import FOLDERS, PYPROJECT, ROOT

PROJECT = PYPROJECT["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]


def test_every_package_folder_is_listed():
    """A sub-package that is not listed works in editable mode, and is missing from the wheel."""
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    names = {f"torchmor.{folder.relative_to(ROOT).as_posix().replace('/', '.')}" for folder in folders}
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(names)
    assert setuptools["package-dir"] == {f"torchmor.{folder}": folder for folder in FOLDERS}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_torchmor_is_a_namespace():
    assert not (ROOT / "torchmor").exists()
    assert not (ROOT / "__init__.py").exists()


def test_wheel_holds_every_file(tmp_path):
    """Built from a copy: a leftover ``build/lib`` would leak deleted modules."""
    source = tmp_path / "a source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("torchmor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = [
        path for end in ("*.py", "py.typed", "*.jinja") for folder in FOLDERS for path in (ROOT / folder).rglob(end)
    ]
    assert files == {f"torchmor/{path.relative_to(ROOT).as_posix()}" for path in here}
    assert {f"torchmor/{folder}/py.typed" for folder in FOLDERS} < files


def test_version_is_the_distributions():
    """A namespace has no ``__version__``."""
    assert metadata.version("torchmor") == PROJECT["version"]


def test_command_line_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="torchmor")
    assert callable(script.load())


def pinned(name: str) -> dict[str, str]:
    """The versions that a file of constraints pins."""
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_oldest_constraints_are_the_lower_bounds(requirement):
    """`make test-oldest` runs with what pyproject.toml promises, and no requirement is without a bound."""
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    assert pinned("constraints-oldest.txt")[canonicalize_name(requirement.name)] == bound.version


def test_oldest_constraints_pin_nothing_else():
    assert set(pinned("constraints-oldest.txt")) == {canonicalize_name(one.name) for one in REQUIREMENTS}


def test_torch_is_not_promised_to_be_older_than_tested():
    assert pinned("constraints-oldest.txt")["torch"] == pinned("constraints.txt")["torch"]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_constraints_pin_every_requirement(requirement):
    """``constraints.txt`` pins a version in the range of ``pyproject.toml``: nothing resolves freely."""
    pins = pinned("constraints.txt")
    name = canonicalize_name(requirement.name)
    assert name in pins
    assert requirement.specifier.contains(pins[name])
