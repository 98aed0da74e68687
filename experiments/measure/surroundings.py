"""Where a measurement is made: versions, processor, threads."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import torch

_PACKAGES = ("torchmor", "torch", "torchdiffeq", "pymor", "numpy", "scipy")


def surroundings() -> dict[str, str | int]:
    """Return what wall times depend on, by name."""
    found = {"python": platform.python_version()}
    found |= {package: metadata.version(package) for package in _PACKAGES}
    found |= {"system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    return found | {"cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the linear algebra of NumPy and SciPy use this many threads, while the context lasts."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def threads_in_words(count: int | None = None) -> str:
    """Return a number of threads in words; by default, that of torch."""
    count = torch.get_num_threads() if count is None else count
    return f"{count} thread{'' if count == 1 else 's'}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
