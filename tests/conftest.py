"""One thread, fixed seeds and a deterministic hypothesis for all tests.

Tests choose float64 themselves; the default dtype stays as users have it. A test that needs a GPU is marked
``gpu`` and is skipped where there is none; one that compiles C++ is marked ``inductor``.
"""

import os
import shutil
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch load; subprocesses inherit it

import hypothesis
import pytest
import torch
from pymor.tools.random import new_rng

from torchmor.adapters.networks.timing import Timing
from torchmor.adapters.reduction import clock

torch.set_num_threads(1)  # several workers share the cores, and same thread count means same bits

hypothesis.settings.register_profile("torchmor", deadline=None, derandomize=True)
hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=10)
hypothesis.settings.load_profile("torchmor")


def pytest_addoption(parser):
    """Add what `make check` and `make fuzz` ask for."""
    parser.addoption("--quick", action="store_true", help="leave out slow tests, and 19 of 20 cases of all others")
    parser.addoption("--fuzz", type=int, default=200, metavar="N", help="random cases of each fuzz in tests/fuzz")
    parser.addoption("--fuzz-from", type=int, default=0, metavar="SEED", help="seed of the first of them")


def pytest_configure(config):
    """Try few examples of each property with ``--quick``."""
    if config.getoption("quick"):
        hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(config, items):
    """Skip the tests marked ``gpu`` and ``inductor`` where they cannot run; with ``--quick``, leave most cases out."""
    if config.getoption("quick"):
        cases = Counter()
        chosen = {True: [], False: []}
        for item in items:
            test = item.nodeid.partition("[")[0]
            chosen[item.get_closest_marker("slow") is None and cases[test] % 20 == 0].append(item)
            cases[test] += 1
        config.hook.pytest_deselected(items=chosen[False])
        items[:] = chosen[True]
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device, there is none"
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        reasons["inductor"] = "needs a C++ compiler"
    elif " " in torch.__file__:
        reasons["inductor"] = "torch's inductor does not quote the path of torch, which has a space"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def fuzz_seeds(request):
    """Seeds of the random cases of a fuzz; a failing one is tried alone by ``--fuzz 1 --fuzz-from SEED``."""
    first, count = request.config.getoption("fuzz_from"), request.config.getoption("fuzz")
    return range(first, first + count)


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Start each test from the same random state of torch and pyMOR, in any order of tests."""
    torch.manual_seed(0)
    with new_rng(0):
        yield


@pytest.fixture(autouse=True)
def fake_clock(request, monkeypatch):
    """Let every reduced network be twice as fast as the full one, untimed, but where a test wants the truth."""

    def times(calls, **_):
        seconds = {"reduced": 1e-3, "full": 2e-3}
        return {who: Timing(*3 * [seconds[who[0]]], 1, 1) for who in calls}

    if request.node.get_closest_marker("real_clock") is None:
        monkeypatch.setattr(clock, "compare_times", times)
