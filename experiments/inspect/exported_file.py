"""What an exported file holds, in words: ONNX, torch.export, AOTInductor and ExecuTorch.

Nothing in it is executed, and what is read of it is bounded, whoever wrote it.
"""

import json
import mmap
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from torchmor.adapters.export.note import KEY
from torchmor.engine.errors import FileFormatError, MissingPackageError
from torchmor.experiments.inspect.plain_text import printable
from torchmor.experiments.inspect.protobuf import Fields

SUFFIXES = (".onnx", ".pt2", ".pte")

#: Numbers of dtypes in the files of torch.export.
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16",
}  # fmt: skip

#: Those of ONNX, with the bytes of one number.
_ONNX_DTYPES = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2), 6: ("int32", 4),
    7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8), 12: ("uint32", 4), 13: ("uint64", 8),
    14: ("complex64", 8), 15: ("complex128", 16), 16: ("bfloat16", 2),
}  # fmt: skip

#: Most bytes of a description in JSON or of an ExecuTorch program, most files in a package, most axes of a tensor:
#: parsed, they take ten times and more.
_MOST_BYTES, _MOST_FILES, _MOST_AXES = 2**26, 100_000, 64


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
    size = path.stat().st_size
    if not path.is_file() and not path.is_dir():  # pipes would wait
        raise FileFormatError(f"expected a file, got {str(path)!r}, which is a device or pipe: copy it to a file")
    with path.open("rb"):  # a folder, or a file that may not be read
        pass
    read = {".onnx": _read_onnx, ".pt2": _read_package, ".pte": _read_executorch}[path.suffix]
    try:
        content = read(path)
        lines = list(_lines(content))
    except (FileFormatError, MissingPackageError):
        raise
    except Exception as error:  # the readers raise many kinds on damaged data
        raise FileFormatError(
            f"expected a whole {path.suffix} file, got {str(path)!r}, which is truncated, damaged or of another kind "
            f"({type(error).__name__}): export it again"
        ) from error
    return "\n".join(map(printable, [f"{path}: {content.kind}", f"{size:,} bytes", *lines]))


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
        yield f"layer {layer['name']!r}: {layer['kind']}" if layer["name"] else layer["kind"]
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


def _read_onnx(path: Path) -> Content:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    fields = Fields()
    model = _grouped(fields, data)
    (graph,), opsets = model[7], [_grouped(fields, opset) for opset in model[8]]
    notes = {_text(entry[1]): _text(entry[2]) for entry in (_grouped(fields, entry) for entry in model[14])}
    inputs: list[memoryview] = []
    outputs: list[memoryview] = []
    weights: dict[str, tuple[int, int]] = {}  # numbers and bytes
    operations: Counter[str] = Counter()
    for number, value in fields.of(graph):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            operations[_text(_grouped(fields, value)[4])] += 1
        elif number == 5:
            weight = _grouped(fields, value)
            count = prod(_axes([length for packed in weight[1] for length in fields.numbers(packed)]))
            weights[_text(weight[8])] = count, count * _ONNX_DTYPES.get(weight[2][0], ("", 1))[1]
        elif number in (11, 12):
            (inputs if number == 11 else outputs).append(value)
    found = [_onnx_tensor(fields, value) for value in inputs]
    return Content(
        "ONNX, " + ", ".join(f"{_text(opset[1]) or 'opset'} {opset[2][0]}" for opset in opsets),
        [words for name, words in found if name not in weights],
        [words for _, words in (_onnx_tensor(fields, value) for value in outputs)],
        sum(count for count, _ in weights.values()),
        sum(size for _, size in weights.values()),
        operations,
        json.loads(notes.get(KEY, "{}")),
    )


def _grouped(fields: Fields, message: Any) -> defaultdict[int, list[Any]]:
    """Return the values of a message's fields by number."""
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for number, value in fields.of(message):
        found[number].append(value)
    return found


def _text(values: list[Any]) -> str:
    return str(values[-1], "utf-8") if values else ""


def _onnx_tensor(fields: Fields, message: memoryview) -> tuple[str, str]:
    """Return name and words of an input or output."""
    value = _grouped(fields, message)
    (kind,) = _grouped(fields, value[2][0])[1]
    tensor = _grouped(fields, kind)
    axes = [_grouped(fields, axis) for shape in tensor[2] for axis in _grouped(fields, shape)[1]]
    lengths = [_text(axis[2]) or (axis[1] or [0])[0] for axis in axes]
    name, dtype = _text(value[1]), tensor[1][0]
    return name, _tensor(name, lengths, _ONNX_DTYPES.get(dtype, (f"dtype {dtype}", 1))[0])


def _axes(lengths: list[int]) -> list[int]:
    if len(lengths) > _MOST_AXES or not all(0 <= length < 2**63 for length in lengths):
        raise ValueError(f"a tensor of {len(lengths)} axes, or of impossible lengths")
    return lengths


def _check_package(path: Path) -> None:
    """Refuse archives with more files than torch writes: their list would be large in memory."""
    count, end = 0, b""
    with path.open("rb") as file:
        while data := file.read(2**20):
            count += (end + data).count(b"PK\x01\x02")  # each file of the list starts so
            end = data[-3:]
    if count > _MOST_FILES:
        raise ValueError(f"an archive of {count} files")


def _read_package(path: Path) -> Content:
    _check_package(path)
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:  # torch does not compress
            raise FileFormatError(
                f"expected a package as torch writes it, got {str(path)!r}, whose files are longer than itself when "
                "they are unpacked: unpack them and pack them without compression, or export it again"
            )
        damaged = archive.testzip()
        if damaged is not None:
            raise FileFormatError(f"{str(path)!r} is damaged: the checksum of {damaged} does not fit; export it again")
        files = {name.partition("/")[2]: name for name in archive.namelist()}
        sizes = {name: archive.getinfo(full).file_size for name, full in files.items()}

        def parsed(name: str) -> Any:
            if sizes[name] > _MOST_BYTES:
                raise ValueError(f"a description {name} of {sizes[name]:,} bytes")
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
        sum(prod(_axes(shape)) for shape in tensors.values()),
        sum(sizes[f"data/{folder}/{name}"] for folder, name in tensors),
        Counter(target for target in targets if not target.startswith(("aten._assert", "aten.sym_", "_operator"))),
        note,
    )


def _read_executorch(path: Path) -> Content:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"a program of more than {_MOST_BYTES:,} bytes")
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
