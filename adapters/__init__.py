"""Adapters between torch networks and the reduction engine: the names that users call.

Names are imported when they are first used, so that running and loading a reduced layer imports torch, and neither
pyMOR nor SciPy.
"""

import importlib

_MODULES = {
    "NetworkReductor": "network_reductor",
    "ODELayer": "ode_layer",
    "ReducedODELayer": "reduced_layer",
    "collect_snapshots": "snapshots",
    "distill": "distillation",
    "export_executorch": "export.executorch_file",
    "export_inductor": "export.inductor_package",
    "export_onnx": "export.onnx_file",
    "export_operators": "export.operators",
    "export_program": "export.program_file",
    "find_ode_layers": "recognise",
    "fold": "deployment",
    "full_order_model": "pymor_models",
    "load": "files",
    "reduce_network": "reduce",
    "save": "files",
    "single_step": "export.single_step",
    "to_module": "folded_modules",
}

__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return __all__
