"""Adapters between torch networks and the reduction engine: the names that users call.

Names are imported when they are first used, so that running and loading a reduced layer imports torch, and neither
pyMOR nor SciPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, who don't see what is imported by name below
    from torchmor.adapters.export.executorch_file import export_executorch
    from torchmor.adapters.export.inductor_package import export_inductor
    from torchmor.adapters.export.onnx_file import export_onnx
    from torchmor.adapters.export.operators import export_operators
    from torchmor.adapters.export.program_file import export_program
    from torchmor.adapters.export.single_step import single_step
    from torchmor.adapters.folding.fold import fold
    from torchmor.adapters.layers.files import load, save
    from torchmor.adapters.layers.ode_layer import ODELayer
    from torchmor.adapters.layers.reduced_layer import ReducedODELayer
    from torchmor.adapters.models.to_pymor import full_order_model
    from torchmor.adapters.models.to_torch import to_module
    from torchmor.adapters.networks.recognise import find_ode_layers
    from torchmor.adapters.reduction.network_reductor import NetworkReductor
    from torchmor.adapters.reduction.reduce import reduce_network
    from torchmor.adapters.reduction.snapshots import collect_snapshots
    from torchmor.adapters.solving.steps import Steps
    from torchmor.adapters.tuning.distillation import distill

_MODULES = {
    "NetworkReductor": "reduction.network_reductor",
    "ODELayer": "layers.ode_layer",
    "ReducedODELayer": "layers.reduced_layer",
    "Steps": "solving.steps",
    "collect_snapshots": "reduction.snapshots",
    "distill": "tuning.distillation",
    "export_executorch": "export.executorch_file",
    "export_inductor": "export.inductor_package",
    "export_onnx": "export.onnx_file",
    "export_operators": "export.operators",
    "export_program": "export.program_file",
    "find_ode_layers": "networks.recognise",
    "fold": "folding.fold",
    "full_order_model": "models.to_pymor",
    "load": "layers.files",
    "reduce_network": "reduction.reduce",
    "save": "layers.files",
    "single_step": "export.single_step",
    "to_module": "models.to_torch",
}

#: What rooms below ask for when they run, of rooms above them; users have ``layer.rom``.
_UPWARD = {"reduced_order_model": "models.to_pymor"}

__all__ = [
    "NetworkReductor",
    "ODELayer",
    "ReducedODELayer",
    "Steps",
    "collect_snapshots",
    "distill",
    "export_executorch",
    "export_inductor",
    "export_onnx",
    "export_operators",
    "export_program",
    "find_ode_layers",
    "fold",
    "full_order_model",
    "load",
    "reduce_network",
    "save",
    "single_step",
    "to_module",
]


def __getattr__(name: str) -> Any:
    room = _MODULES.get(name) or _UPWARD.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{room}"), name)


def __dir__() -> list[str]:
    return __all__
