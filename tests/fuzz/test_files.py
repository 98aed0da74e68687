"""Law of files: `load` raises an error that it documents, or returns what was saved, or at least what runs.

``pytest tests/fuzz/test_files.py --fuzz 1 --fuzz-from SEED`` tries one seed.
"""

import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fuzz.damaged_files import SAVED, damaged, original, signed_anew
from torchmor.adapters import load
from torchmor.adapters.layers.reduced_layer import ReducedODELayer
from torchmor.engine.errors import FileFormatError, TorchmorError, UnknownLayerError
from torchmor.engine.tableaux import TABLEAUX
from torchmor.experiments.inspect.saved_file import describe

MOST_BYTES = 2**30
MOST_S = 5.0


class TooLongError(Exception):
    """A solve that takes long, as its settings say."""


def test_files(fuzz_seeds, tmp_path):
    outcomes, failures, slowest = Counter(), [], (0.0, -1)
    for name in SAVED:
        original(name, tmp_path)
    before = peak_bytes(reset=True)
    for seed in fuzz_seeds:
        start = time.perf_counter()
        try:
            outcomes[outcome_of(seed, tmp_path)] += 1
        except Exception:
            failures.append(f"seed {seed}: {traceback.format_exc(limit=-3)}")
        slowest = max(slowest, (time.perf_counter() - start, seed))
    used = peak_bytes() - before
    print(f"{dict(outcomes)}, {used / 2**20:.0f} MiB, slowest {slowest[0]:.2f} s (seed {slowest[1]})")
    assert not failures, f"{len(failures)} of {len(fuzz_seeds)}:\n" + "\n".join(failures[:20])
    assert used < MOST_BYTES


def outcome_of(seed, folder):
    """Return what came of one damaged file, in words; raises if it breaks the law."""
    random = np.random.default_rng(seed)
    names = list(SAVED)
    name = names[random.integers(len(names))]
    saved, path = original(name, folder), folder / "small.safetensors"
    path.write_bytes(saved.data)
    signed = random.random() < 0.7
    if signed:
        signed_anew(path, random)
    else:
        path.write_bytes(damaged(saved.data, [original(other, folder).data for other in names], random))
    info(path)
    start = time.perf_counter()
    try:
        loaded = load(path, network=saved.network)
    except (FileFormatError, UnknownLayerError) as error:
        assert time.perf_counter() - start < MOST_S
        return f"{'signed' if signed else 'damaged'}: {type(error).__name__}"
    assert time.perf_counter() - start < MOST_S
    same_bytes = path.read_bytes() == saved.data
    found = values(loaded, saved)
    if signed and not same_bytes:
        return "signed: runs" if found is not None else "signed: runs into an error of the solver"
    (folder / "whole.safetensors").write_bytes(saved.data)
    expected = values(load(folder / "whole.safetensors", network=saved.network), saved)
    assert torch.equal(found, expected)
    return "the same"


def info(path):
    """Law: `torchmor info` raises the same error, or returns text without control characters."""
    start = time.perf_counter()
    try:
        text = describe(path)
    except FileFormatError:
        text = ""
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert len(text) < 2**20 and time.perf_counter() - start < MOST_S


def values(loaded, saved):
    """Return what a loaded layer or network computes; None for an error that its call documents."""
    layers = [layer for layer in loaded.modules() if isinstance(layer, ReducedODELayer)]
    for layer in layers:
        if layer.method not in TABLEAUX and not {"max_num_steps"} & layer.options.keys():
            layer.options = {**layer.options, "max_num_steps": 200} if "adams" not in layer.method else layer.options
    try:
        with warnings.catch_warnings(), time_limit(MOST_S), torch.no_grad():
            warnings.simplefilter("ignore")  # torchdiffeq's, of options that it does not know
            for layer in layers:
                value = layer(*arguments_of(layer))
            if saved.network is not None:
                value = loaded(*saved.arguments)
    except (TorchmorError, TooLongError):
        return None
    return value


def arguments_of(layer):
    y0 = torch.randn(2, *layer.state_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y0 = y0.to(layer.ode.output.weight.dtype)
    if layer.input_use == "none":
        return (y0,)
    return y0, lambda t: t.expand(2, layer.ode.input_size)


@contextmanager
def time_limit(seconds):
    def stop(*_):
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes(reset=False):
    """Return the largest resident memory of this process since the last reset."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux to measure memory")
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
