"""The repository's own promises: telling file names, the make targets, the CI script, the linters' rules."""

import os
import subprocess

import pytest

from repository import FOLDERS, ROOT, modules

TARGETS = ("help", "demo", "test", "check", "test-export", "test-oldest", "test-newest", "lint", "bench", "clean")
UNTELLING = {"utils", "util", "helpers", "helper", "core", "misc", "common", "base", "tools"}


# As from a user's shell: `make test` would hand its own settings down.
SHELL = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


def make(*arguments: str, folder=ROOT) -> str:
    """Run make in a folder; return what it prints, or raise with what went wrong."""
    done = subprocess.run(["make", *arguments], cwd=folder, env=SHELL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def test_file_names_tell_their_concept():
    assert all(modules(folder) for folder in FOLDERS)
    untelling = [path for path in modules() for part in (path.stem, path.parent.name) if part in UNTELLING]
    assert not untelling


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_is_documented(target):
    assert f"  make {target} " in make("help")


def test_make_without_a_target_helps():
    assert make() == make("help")


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_exists(target):
    make("--dry-run", target)


@pytest.mark.parametrize(("installed_for", "installs"), [(None, True), ("here", False), ("/old place", True)])
def test_make_installs_once_for_each_place(tmp_path, installed_for, installs):
    """A copied ``.venv`` would run the code of the clone that it was made for."""
    clone = tmp_path / "a clone"
    (clone / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (clone / name).touch()
    (clone / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    if installed_for:
        place = str(clone) if installed_for == "here" else installed_for
        (clone / ".venv" / ".installed").write_text(f"{place}\n")
    assert ("pip install" in make("--dry-run", "lint", folder=clone)) == installs


def test_make_names_the_python_it_needs(tmp_path):
    """Expected, got, do."""
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    with pytest.raises(RuntimeError) as failure:
        make("lint", f"PYTHON={old}", folder=tmp_path)
    for text in ("expected Python >= 3.11, got", "Python 3.9.1", "do: make lint PYTHON="):
        assert text in str(failure.value)
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
