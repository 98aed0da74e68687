"""The repository's own promises: telling file names, the make targets, the CI script, the linters' rules."""

import os
import subprocess

import pytest

from repository import ROOT, modules

TARGETS = ("help", "demo", "test", "lint", "bench", "clean")
UNTELLING = {"utils", "util", "helpers", "helper", "core", "misc", "common", "base", "tools"}


def make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_file_names_tell_their_concept():
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


def test_make_names_the_python_it_needs(tmp_path):
    """Expected, got, do."""
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        ["make", "lint", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "expected Python >= 3.11, got" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert "do: make lint PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
