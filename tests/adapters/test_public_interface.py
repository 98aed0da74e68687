"""The names and signatures that users call, as they are pinned in the design."""

import inspect
import subprocess
import sys

import pytest

from torchmor import adapters

REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "ODELayer": {
        "func": REQUIRED,
        "t": (0.0, 1.0),
        "method": "dopri5",
        "rtol": 1e-3,
        "atol": 1e-3,
        "options": None,
        "adjoint": False,
        "output": "final",
        "input_times": None,
        "interpolation": "linear",
    },
    "reduce_network": {
        "network": REQUIRED,
        "name": REQUIRED,
        "calibration": REQUIRED,
        "*": None,
        "state_dim": None,
        "points": None,
        "modes": None,
        "basis": "balanced",
        "selection": "omp",
        "fit": "least_squares",
        "energy_rtol": None,
        "max_loss": None,
        "speedup": None,
        "metric": "relative",
        "objective": None,
        "validation": None,
        "solver": None,
        "batch_to_inputs": None,
        "batch_size": 256,
        "seed": 0,
        "progress": True,
        "input_attribute": None,
        "batched": None,
        "tune": None,
        "effort": 1,
        "confidence": None,
        "augment": None,
    },
    "find_ode_layers": {"network": REQUIRED, "example": REQUIRED},
    "distill": {
        "network": REQUIRED,
        "reduced": REQUIRED,
        "calibration": REQUIRED,
        "*": None,
        "validation": None,
        "epochs": 10,
        "augment": None,
    },
    "full_order_model": {"layer": REQUIRED, "example_state": REQUIRED, "example_input": None, "t": None},
    "collect_snapshots": {"network": REQUIRED, "name": REQUIRED, "calibration": REQUIRED, "*": None, "batch_size": 256},
    "to_module": {"rom_or_operator": REQUIRED},
    "save": {"small_or_layer": REQUIRED, "path": REQUIRED},
    "load": {"path": REQUIRED, "network": None},
    "export_operators": {"layer": REQUIRED, "path": REQUIRED},
    "fold": {"small": REQUIRED, "example": REQUIRED},
    "export_onnx": {"module": REQUIRED, "path": REQUIRED, "example": REQUIRED},
    "export_program": {"module": REQUIRED, "path": REQUIRED, "example": REQUIRED},
    "export_inductor": {"module": REQUIRED, "path": REQUIRED, "example": REQUIRED},
    "export_executorch": {"module": REQUIRED, "path": REQUIRED, "example": REQUIRED, "*": None, "max_batch": 256},
    "single_step": {"layer": REQUIRED},
}
#: Functions that have more parameters than those pinned: optional ones, after them.
EXTENDED = (
    "collect_snapshots",
    "distill",
    "fold",
    "to_module",
    "export_onnx",
    "export_program",
    "export_inductor",
    "export_executorch",
)


def parameters(function):
    """Names and defaults in order, with "*" where keyword-only parameters begin."""
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found.setdefault("*", None)
        found[parameter.name] = parameter.default
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    pinned, found = SIGNATURES[name], parameters(getattr(adapters, name))
    if name in EXTENDED:
        assert list(pinned.items()) == list(found.items())[: len(pinned)]
        assert REQUIRED not in list(found.values())[len(pinned) :]
    else:
        assert list(found.items()) == list(pinned.items())


@pytest.mark.parametrize("name", ["ODELayer", "ReducedODELayer"])
def test_call_of_a_layer(name):
    layer = getattr(adapters, name)
    assert list(parameters(layer.forward).items()) == [("self", REQUIRED), ("y0", REQUIRED), ("u", None), ("t", None)]


def test_attributes_of_a_reduced_layer():
    for name in ("explain", "rom", "fom", "bases", "singular_values", "points", "distance"):
        assert inspect.getdoc(getattr(adapters.ReducedODELayer, name))


def test_names():
    names = {*SIGNATURES, "NetworkReductor", "ReducedODELayer", "Steps"}
    assert set(adapters.__all__) == names == set(dir(adapters)) & set(adapters.__all__)
    assert adapters.__all__ == sorted(adapters.__all__)
    for name in adapters.__all__:
        assert getattr(adapters, name).__name__ == name
        assert inspect.getdoc(getattr(adapters, name)).count("\n") > 5
    namespace = {}
    exec("from torchmor.adapters import *", namespace)
    assert set(adapters.__all__) <= set(namespace)


def test_unknown_name():
    with pytest.raises(AttributeError, match=r"module 'torchmor\.adapters' has no attribute 'reduced'$"):
        _ = adapters.reduced
    with pytest.raises(ImportError, match="cannot import name 'distil'"):
        from torchmor.adapters import distil  # noqa: F401 - its name is distill
    assert not hasattr(adapters, "unfold")


LAZY = """
import sys
import torchmor.adapters
assert "torch" not in sys.modules, "nothing before it is used"
assert "reduce_network" in dir(torchmor.adapters)
from torchmor.adapters import load, save, ODELayer, ReducedODELayer
heavy = {"pymor", "scipy", "torchdiffeq", "rich"} & set(sys.modules)
assert not heavy, heavy
from torchmor.adapters import reduce_network
assert "pymor" in sys.modules
"""


@pytest.mark.slow
def test_names_are_imported_when_they_are_used():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
