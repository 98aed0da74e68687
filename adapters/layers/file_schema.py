"""What the configuration of a saved file must be, checked as a whole before anything is built of it."""

import math
from collections.abc import Generator, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from torchmor.adapters.layers.own_forward import SolveForm
from torchmor.adapters.layers.solved_block import CallForm
from torchmor.adapters.layers.typed_data import mismatch
from torchmor.adapters.solving.solve_settings import FIXED_GRID_METHODS, SolveSettings

#: Most bytes of the configuration, most values inside of values, and most steps of a fixed size: far more than any
#: layer needs, and little enough to read and run.
MOST_BYTES, MOST_DEPTH, MOST_STEPS = 2**24, 50, 10**6

#: Most axes of a state: torch has 64, and batch and times come before.
_MOST_AXES = 60

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_Number = float | None


class OdeEntry(TypedDict):
    """A reduced ODE function: sources (name, size) and rows of each stage's map, the output's last."""

    state_size: int
    input_size: int
    expressions: list[dict[str, Any]]
    maps: list[tuple[list[tuple[str, int]], int]]


class LayerEntry(TypedDict):
    """A reduced layer."""

    settings: SolveSettings
    state_shape: list[int]
    state_dim: int | None
    input_use: Literal["required", "optional", "none"]
    ode: OdeEntry
    explanation: dict[str, Any] | None
    usual_distance: NotRequired[float | None]


class Configuration(TypedDict):
    """All that a file holds beside tensors."""

    format: str
    version: int
    layers: dict[str, LayerEntry]
    blocks: NotRequired[dict[str, CallForm]]
    own_forwards: NotRequired[dict[str, SolveForm]]


class Options(TypedDict, total=False):
    """Options of torchdiffeq's solvers; it ignores others, with a warning."""

    first_step: _Number
    min_step: float
    max_step: float
    step_size: _Number
    safety: float
    ifactor: float
    dfactor: float
    max_num_steps: float
    max_iters: int
    max_order: int
    perturb: bool
    interp: Literal["linear", "cubic"]
    solver: Literal["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"]
    grid_constructor: None  # else a function
    jump_t: list[float] | None
    step_t: list[float] | None


#: Ranges (lowest, highest, whether the lowest is allowed) of options outside of which solvers never end.
_RANGES = {
    "first_step": (0, math.inf, False),
    "min_step": (0, math.inf, True),
    "max_step": (0, math.inf, False),
    "step_size": (0, math.inf, False),
    "safety": (0, 1, False),
    "ifactor": (1, math.inf, True),
    "dfactor": (0, 0.99, False),
    "max_num_steps": (1, math.inf, True),
    "max_iters": (1, 10**4, True),
    "max_order": (1, 12, True),
}


def fault(config: Any, tensors: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a configuration and the tensors beside it, in words; None if nothing is.

    Law: of a configuration without a fault, layers can be built that run.
    """
    return next(_faults(config, tensors), None)


def too_deep(value: Any) -> bool:
    """Whether data has more values inside of values than any configuration."""
    level = [value]
    for _ in range(MOST_DEPTH):
        nested = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [one for parts in nested for one in parts if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _faults(config: Any, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    if words := mismatch(config, Configuration, "the configuration"):
        yield words
        return  # what follows relies on the types
    if not config["layers"]:
        yield "expected a layer at least, got no layers"
    for name, entry in config["layers"].items():
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        yield from (f"layer {name!r} is damaged: {words}" for words in _faults_of_layer(entry, own))
    for name, form in config.get("blocks", {}).items():
        layer = config["layers"].get(f"{name}.layer".removeprefix("."))
        if layer is None:
            yield f"expected a layer in the block {name!r}, got none"
        else:
            yield from (f"block {name!r} is damaged: {words}" for words in _faults_of_form(form, layer))
    for name, solve in config.get("own_forwards", {}).items():
        layer = config["layers"].get(f"{name}.{solve['layer']}".removeprefix("."))
        if layer is None:
            yield f"expected a layer {solve['layer']!r} in {name!r}, got none"
        else:
            yield from (f"module {name!r} is damaged: {words}" for words in _faults_of_solve(solve, layer))


def _faults_of_layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    ode, shape, rank = entry["ode"], entry["state_shape"], entry["state_dim"]
    size = math.prod(shape[:_MOST_AXES])
    if not 1 <= len(shape) <= _MOST_AXES or min(shape) < 1:
        yield f"expected a state shape of 1 … {_MOST_AXES} positive lengths, got {_short(shape)}"
    elif ode["state_size"] != (size if rank is None else rank) or ode["state_size"] < 1:
        yield f"expected an ODE of {size if rank is None else rank} unknowns, got {ode['state_size']}"
    if not (entry.get("usual_distance") or 0) >= 0:
        yield f"expected a usual distance of at least 0, got {entry.get('usual_distance')}"
    sizes = yield from _faults_of_ode(ode, entry["input_use"])
    wanted = {f"ode.{name}": shape for name, shape in sizes.items()}
    if rank is not None:
        wanted |= {"encode.weight": (rank, size), "encode.bias": (rank,)}
        wanted |= {"decode.weight": (size, rank), "decode.bias": (size,)}
    yield from _faults_of_tensors(wanted, tensors)
    yield from _faults_of_settings(entry["settings"], tensors["ode.output.weight"].dtype)


def _faults_of_ode(ode: OdeEntry, input_use: str) -> Generator[str, None, dict[str, tuple[int, ...]]]:
    """Yield what is wrong, and return the shapes that the tensors must have."""
    maps, expressions = ode["maps"], ode["expressions"]
    shapes: dict[str, tuple[int, ...]] = {}
    if len(maps) != len(expressions) + 1:
        yield f"expected a map for each of {len(expressions)} stages and one for the output, got {len(maps)} maps"
    known = {"y": ode["state_size"], "t": 1}
    if input_use != "none" and ode["input_size"] > 0:
        known["u"] = ode["input_size"]
    if ode["input_size"] < 0:
        yield f"expected an input of at least 0 channels, got {ode['input_size']}"
    for number, (sources, rows) in enumerate(maps, start=1):
        name = "output" if number == len(maps) else f"stages.{number - 1}"
        if len(dict(sources)) != len(sources) or not all(known.get(source) == size for source, size in sources):
            yield (
                f"expected the sources of {name} among {', '.join(f'{s} ({n})' for s, n in known.items())}, got "
                f"{_short(', '.join(f'{s} ({n})' for s, n in sources))}"
            )
        shapes |= {f"{name}.weight": (rows, sum(size for _, size in sources)), f"{name}.bias": (rows,)}
        if name == "output":
            break
        arity: Any = expressions[number - 1].get("arity")
        if type(arity) is not int or not 1 <= arity <= max(rows, 1) or rows % arity:
            yield f"expected {rows} rows of {name} to be shared by its arguments, got {_short(arity)} arguments"
        known[f"g{number}"] = rows // arity
    if maps[-1][1] != ode["state_size"]:
        yield f"expected an output of {ode['state_size']} rows, got {maps[-1][1]}"
    return shapes


def _faults_of_tensors(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() - tensors.keys()):
        yield f"Missing key '{name}' among the tensors"
    for name in sorted(tensors.keys() - wanted.keys()):
        yield f"Unexpected key {name!r} among the tensors"
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            yield f"size mismatch for {name}: expected the shape {shape}, got {tuple(tensors[name].shape)}"
    dtypes = {tensors[name].dtype for name in wanted}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        yield f"expected tensors of one dtype, {', '.join(map(str, _DTYPES))}, got {', '.join(map(str, dtypes))}"


def _faults_of_settings(settings: Mapping[str, Any], dtype: torch.dtype) -> Iterator[str]:
    options, t = settings.get("options", {}), settings.get("t", SolveSettings.t)
    if words := mismatch(
        {name: options[name] for name in options if name in Options.__annotations__}, Options, "options"
    ):
        yield words
    for name in ("norm", "dtype"):
        if name in options:
            yield f"expected no options['{name}'], which is no plain data, got {_short(options[name])}"
    try:
        SolveSettings(**settings)
    except ValueError as error:
        yield str(error)
    for name, (low, high, closed) in _RANGES.items():
        value = options.get(name)
        if value is not None and not (low <= value <= high and (closed or value > low)):
            yield f"expected options['{name}'] from {low} to {high}, got {value}"
    duration, largest = abs(t[-1] - t[0]), torch.finfo(dtype).max
    if not max(duration, *map(abs, t)) <= largest:
        yield f"expected times that {dtype} can hold, got {t[0]} … {t[-1]}"
    step = options.get("step_size")
    if step is not None and settings.get("method") in FIXED_GRID_METHODS and not duration / step <= MOST_STEPS:
        yield f"expected at most {MOST_STEPS:,} steps, got steps of {step} from {t[0]} to {t[-1]}"


def _faults_of_form(form: Mapping[str, Any], layer: Mapping[str, Any]) -> Iterator[str]:
    settings, names = layer["settings"], form["parameters"]
    values: dict[str, Any] = {name: getattr(CallForm, name, None) for name in CallForm.__annotations__} | dict(form)
    used = [values["state"], *values["times"], *([] if values["input"] is None else [values["input"]])]
    if len(set(names)) != len(names) or len(set(used)) != len(used):
        yield "expected names that differ"
    if not set(used) | {name for name, _ in values["constants"]} <= set(names):
        yield f"expected the state, times, input and constants among the parameters {_short(names)}, got others"
    path = values["input_attribute"]
    if path is not None and not all(part.isidentifier() for part in path.split(".")):
        yield f"expected a path of attributes as the input, got {_short(path)}"
    reads = values["input"] is not None or path is not None
    if layer["input_use"] == ("none" if reads else "required"):
        yield "expected an input where the layer takes one, and only there"
    batch_dims, kept, zeros, entries = (values[name] for name in ("batch_dims", "times_kept", "zeros", "entries"))
    first = layer["state_shape"][0] if batch_dims == 1 else None  # the length along dimension 1
    if batch_dims not in (1, 2):
        yield f"expected 1 or 2 dimensions of batch, got {batch_dims}"
    if not 0 <= zeros < (first or 1):
        yield f"expected zeros for a part of the state, got {zeros}"
    if entries is not None and not (first and min(entries[0], entries[1] - 1) >= 0 and sum(entries) <= first):
        yield f"expected entries that the state has, got {_short(entries)}"
    if (kept == -1) != (settings.get("output", SolveSettings.output) == "final"):
        yield "expected a layer that returns what the block keeps"
    count = math.inf if len(values["times"]) == 1 else len(values["times"]) or len(settings.get("t", SolveSettings.t))
    indices = [] if kept is None or kept == -1 else [kept] if isinstance(kept, int) else kept
    if not all(0 <= index < count for index in indices) or not 0 <= values["times_skipped"] < count:
        yield "expected times that there are, got other numbers"
    axes = batch_dims + len(layer["state_shape"]) + (0 if isinstance(kept, int) else 1)
    if values["axes"] is not None and sorted(values["axes"]) != list(range(axes)):
        yield f"expected a permutation of {axes} axes, got {_short(values['axes'])}"
    if values["times_returned"] not in (-1, 0, 1):
        yield f"expected the times to be returned 0 times, or with sign 1 or -1, got {values['times_returned']}"
    if values["method"] not in ("forward", "trajectory"):
        yield f"expected the forward or trajectory of a module, got {_short(values['method'])}"
    times = values["t"]
    steps = [after - before for before, after in pairwise(times)]
    if len(times) < 2 or not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        yield "expected times that increase or decrease"


def _faults_of_solve(form: Mapping[str, Any], layer: Mapping[str, Any]) -> Iterator[str]:
    inputs = form.get("inputs", ())
    if not form["layer"].isidentifier():
        yield f"expected a name of a layer, got {_short(form['layer'])}"
    if layer["settings"].get("output", SolveSettings.output) != "trajectory":
        yield "expected a layer that returns its states at all times"
    if layer["input_use"] == ("none" if inputs else "required"):
        yield "expected an input where the layer takes one, and only there"
    if form.get("batch_dims", 1) not in (0, 1, 2):
        yield f"expected 0 to 2 dimensions of batch, got {form['batch_dims']}"
    for one in inputs:
        if not isinstance(getattr(torch, one["dtype"].removeprefix("torch."), None), torch.dtype):
            yield f"expected a dtype of an input, got {_short(one['dtype'])}"
        if not all(length >= 0 for length in one["shape"]):
            yield f"expected the shape of an input, got {_short(one['shape'])}"


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) < 80 else f"{text[:79]}…"
