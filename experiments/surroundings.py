"""Where a measurement was made: versions, processor, threads."""

import os
import platform
from importlib import metadata

import torch

_PACKAGES = ("torchmor", "torch", "torchdiffeq", "pymor", "numpy", "scipy")


def surroundings() -> dict[str, str | int]:
    """Return what wall times depend on, by name."""
    found = {"python": platform.python_version()}
    found |= {package: metadata.version(package) for package in _PACKAGES}
    found |= {"system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    return found | {"cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
