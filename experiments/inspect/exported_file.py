"""What an exported file holds, in words: ONNX, torch.export, AOTInductor and ExecuTorch. Nothing in it is executed."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from torchmor.adapters.export.note import KEY
from torchmor.engine.errors import FileFormatError, MissingPackageError

SUFFIXES = (".onnx", ".pt2", ".pte")

#: Numbers of dtypes in the files of torch.export.
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Parameters
    ----------
    kind
        Format, with the version of its operations.
    inputs, outputs
        In words, one entry each.
    parameters, parameter_bytes
        Numbers kept in the file, and their size.
    operations
        How often each operation occurs.
    note
        What torchmor noted; empty for files of others.
    """

    kind: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    parameters: int = 0
    parameter_bytes: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    note: Mapping[str, Any] = field(default_factory=dict)


def describe(path: Path) -> str:
    """Return what an exported file holds: inputs, outputs, operations, parameters, and what torchmor noted.

    Raises
    ------
    FileFormatError
        The file is damaged, or of another kind than its name says.
    MissingPackageError
        The package that reads this kind of file is not installed.
    OSError
        The file is missing, or may not be read.
    """
    data = path.read_bytes()
    read = {".onnx": _read_onnx, ".pt2": _read_package, ".pte": _read_executorch}[path.suffix]
    try:
        content = read(path, data)
        lines = list(_lines(content))
    except (FileFormatError, MissingPackageError):
        raise
    except Exception as error:  # the readers raise many kinds on damaged data
        raise FileFormatError(
            f"expected a whole {path.suffix} file, got {str(path)!r}, which is truncated, damaged or of another kind "
            f"({type(error).__name__}): export it again"
        ) from error
    return "\n".join([f"{path}: {content.kind}", f"{len(data):,} bytes", *lines])


def _lines(content: Content) -> Iterable[str]:
    for title, tensors in (("inputs", content.inputs), ("outputs", content.outputs)):
        yield f"{title:<11}" + ("; ".join(tensors) or "not noted")
    yield f"parameters {content.parameters:,} numbers, {content.parameter_bytes:,} bytes"
    if content.operations:
        total = sum(content.operations.values())
        counted = ", ".join(f"{count} {name}" for name, count in content.operations.most_common())
        yield f"operations {total:,}: {counted}"
    if not content.note:
        yield "written without torchmor"
        return
    note = content.note
    yield f"written by torchmor {note['torchmor']} with torch {note['torch']}, from a {note['module']}"
    for layer in note["layers"]:
        yield ""
        yield f"layer '{layer['name']}': {layer['kind']}" if layer["name"] else layer["kind"]
        yield f"  solver     {layer['solver']}"
        if "state_size" in layer:
            before = f"{' x '.join(map(str, layer['state_shape']))} -> " if "state_shape" in layer else ""
            yield f"  state      {before}{layer['state_size']:,}"
            yield f"  input      {layer['input_size']:,} channels" if layer["input_size"] else "  input      none"
        if "method" in layer:
            yield "  method     " + ", ".join(f"{key} {value}" for key, value in layer["method"].items())
        if "equation" in layer:
            yield "  equation"
            yield from (f"    {line}" for line in layer["equation"].splitlines())


def _tensor(name: str, shape: Iterable[Any], dtype: str) -> str:
    return f"{name} ({', '.join(map(str, shape))}) {dtype}"


def _noted(note: Mapping[str, Any], key: str) -> list[str]:
    return [_tensor(value["name"], value["shape"], value["dtype"]) for value in note.get(key, ())]


def _read_onnx(path: Path, data: bytes) -> Content:
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(f"reading {path} needs onnx: pip install 'torchmor[export]'") from error
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    constants = {tensor.name for tensor in model.graph.initializer}

    def words(value: Any) -> str:
        kind = value.type.tensor_type
        shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
        return _tensor(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))

    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    opset = ", ".join(f"{o.domain or 'opset'} {o.version}" for o in model.opset_import)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    return Content(
        f"ONNX, {opset}",
        [words(value) for value in model.graph.input if value.name not in constants],
        [words(value) for value in model.graph.output],
        sum(array.size for array in arrays),
        sum(array.nbytes for array in arrays),
        Counter(node.op_type for node in model.graph.node),
        json.loads(notes.get(KEY, "{}")),
    )


def _read_package(path: Path, data: bytes) -> Content:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise FileFormatError(f"{str(path)!r} is damaged: the checksum of {damaged} does not fit; export it again")
        files = {name.partition("/")[2]: name for name in archive.namelist()}
        sizes = {name: archive.getinfo(full).file_size for name, full in files.items()}

        def parsed(name: str) -> Any:
            return json.loads(archive.read(files[name]))

        metadata = [name for name in files if name.endswith("wrapper_metadata.json")]
        if metadata:
            return _compiled(parsed(metadata[0]))
        note = parsed(f"extra/{KEY}") if f"extra/{KEY}" in files else {}
        tensors = {
            (folder, entry["path_name"]): [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
            for folder in ("weights", "constants")
            for entry in parsed(f"data/{folder}/model_{folder}_config.json")["config"].values()
        }
        return _program(parsed("models/model.json"), tensors, sizes, note)


def _compiled(metadata: Mapping[str, str]) -> Content:
    note = json.loads(metadata.get(KEY, "{}"))
    target = " ".join(metadata.get(f"AOTI_{key}", "") for key in ("PLATFORM", "MACHINE", "DEVICE_KEY"))
    return Content(
        f"AOTInductor package for {target}",
        _noted(note, "inputs"),
        _noted(note, "outputs"),
        note.get("parameters", 0),
        note.get("parameter_bytes", 0),
        note=note,
    )


def _program(
    model: Mapping[str, Any],
    tensors: Mapping[tuple[str, str], list[int]],
    sizes: Mapping[str, int],
    note: Mapping[str, Any],
) -> Content:
    module = model["graph_module"]
    values, signature = module["graph"]["tensor_values"], module["signature"]
    symbols = list(model["range_constraints"])

    def length(size: Mapping[str, Any]) -> int | str:
        if "as_int" in size:
            return size["as_int"]
        symbol = re.sub(r"Symbol\('(\w+)'[^)]*\)", r"\1", size["as_expr"]["expr_str"])
        return symbol.replace(symbols[0], "batch") if len(symbols) == 1 else symbol

    def words(spec: Mapping[str, Any]) -> str:
        name = spec["arg"]["as_tensor"]["name"]
        value = values[name]
        return _tensor(name, map(length, value["sizes"]), _DTYPES.get(value["dtype"], f"dtype {value['dtype']}"))

    targets = [node["target"].removeprefix("torch.ops.") for node in module["graph"]["nodes"]]
    return Content(
        f"torch.export program of torch {model['torch_version']}, operations of aten, opset "
        f"{model['opset_version']['aten']}",
        [words(spec["user_input"]) for spec in signature["input_specs"] if "user_input" in spec],
        [words(spec["user_output"]) for spec in signature["output_specs"] if "user_output" in spec],
        sum(prod(shape) for shape in tensors.values()),
        sum(sizes[f"data/{folder}/{name}"] for folder, name in tensors),
        Counter(target for target in targets if not target.startswith(("aten._assert", "aten.sym_", "_operator"))),
        note,
    )


def _read_executorch(path: Path, data: bytes) -> Content:
    if data[4:8] != b"ET12":
        raise FileFormatError(f"expected an ExecuTorch program, got {str(path)!r} of another kind, or damaged")
    try:
        from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise MissingPackageError(f"reading {path} needs executorch: pip install executorch") from error
    program = deserialize_pte_binary(data).program
    plans = {plan.name: plan for plan in program.execution_plan}
    plan = plans["forward"]
    note = {}
    if KEY in plans:
        note = json.loads(plans[KEY].values[plans[KEY].outputs[0]].val.string_val)
    operations = Counter(operator.name for operator in plan.operators)
    operations.update(f"{delegate.id} subgraph" for delegate in plan.delegates)
    return Content(
        f"ExecuTorch program, version {program.version}",
        _noted(note, "inputs"),
        _noted(note, "outputs"),
        note.get("parameters", 0),
        note.get("parameter_bytes", 0),
        operations,
        note,
    )
