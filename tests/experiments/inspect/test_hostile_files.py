"""`torchmor info` on files that someone made to harm: it reads a bounded part, and prints no commands to terminals."""

import json
import os
import tracemalloc
import zipfile

import pytest

from torchmor.engine.errors import FileFormatError
from torchmor.experiments.cli import main
from torchmor.experiments.inspect import exported_file
from torchmor.experiments.inspect.exported_file import describe
from torchmor.experiments.inspect.plain_text import printable
from torchmor.experiments.inspect.protobuf import Fields

ESCAPE = "\x1b[31mred\x9b\n\u202e"


def varint(value):
    head = b""
    while value >= 0x80:
        head += bytes([value & 0x7F | 0x80])
        value >>= 7
    return head + bytes([value])


def field(number, value):
    """A field of a protocol buffer: an integer, a text or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, lengths, dtype=11):
    axes = b"".join(field(1, field(2 if isinstance(length, str) else 1, length)) for length in lengths)
    return field(1, name) + field(2, field(1, field(1, dtype) + field(2, axes)))


def onnx(graph, note="{}"):
    return (
        field(1, 9)
        + field(7, graph)
        + field(8, field(1, "") + field(2, 20))
        + field(14, field(1, "torchmor") + field(2, note))
    )


def peak_of(action):
    tracemalloc.start()
    try:
        action()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def refuse(path, match="export it again"):
    with pytest.raises(FileFormatError, match=match):
        describe(path)


def test_onnx_without_its_package(tmp_path):
    path = tmp_path / "net.onnx"
    weight = field(1, 3) + field(1, 4) + field(2, 1) + field(8, "w") + field(9, bytes(48))
    packed = field(1, varint(2) + varint(5)) + field(2, 11) + field(8, "v")
    graph = field(1, field(4, "Gemm")) + field(5, weight) + field(5, packed)
    path.write_bytes(
        onnx(
            graph
            + field(11, tensor("x", ["batch", 3]))
            + field(11, tensor("w", [3, 4]))
            + field(12, tensor("y", ["batch", 4], 1))
        )
    )
    text = describe(path)
    for words in (
        "ONNX, opset 20",
        "inputs     x (batch, 3) float64\n",
        "y (batch, 4) float32",
        "22 numbers, 128 bytes",
        "1: 1 Gemm",
    ):
        assert words in text


@pytest.mark.parametrize(
    "graph",
    [
        b"\x0a\x00" * 200_000,  # nodes of two bytes
        field(5, field(1, b"\x01" * 400_000)),  # a tensor of many axes
        field(5, field(1, 2**64 - 1) + field(2, 1) + field(8, "w")),  # a negative length
        field(11, b"\x0b"),  # a kind that does not exist
        field(11, b"\x0a\x7f"),
        b"\xff" * 20,
    ],
)
def test_onnx_bombs(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(exported_file, "Fields", lambda: Fields(100_000))
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx(graph))
    assert peak_of(lambda: refuse(path)) < 20 * 2**20


def test_fields_are_bounded():
    message = memoryview(b"\x08\x01" * 11)
    assert list(Fields(11).of(message)) == [(1, 1)] * 11
    with pytest.raises(ValueError, match="too many"):
        list(Fields(10).of(message))


def test_archives_that_unpack_to_more_than_they_are(tmp_path):
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", bytes(50 * 2**20))
    assert peak_of(lambda: refuse(path, "longer than itself when they are unpacked")) < 10 * 2**20


def test_archives_of_many_files_and_long_descriptions(tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("models/model.json", "data/weights/model_weights_config.json", "extra/torchmor"):
            archive.writestr(f"net/{name}", b"[" * 100)
    monkeypatch.setattr(exported_file, "_MOST_FILES", 2)
    refuse(path)
    monkeypatch.setattr(exported_file, "_MOST_FILES", 3)
    monkeypatch.setattr(exported_file, "_MOST_BYTES", 99)
    refuse(path)


def test_what_is_printed_holds_no_commands_to_terminals(tmp_path, capsys):
    layer = {
        "name": ESCAPE,
        "kind": ESCAPE,
        "solver": ESCAPE,
        "equation": f"{ESCAPE}\n{ESCAPE}",
        "method": {ESCAPE: ESCAPE},
    }
    note = {"torchmor": ESCAPE, "torch": ESCAPE, "module": ESCAPE, "layers": [layer]}
    path = tmp_path / "net.onnx"
    graph = field(1, field(4, ESCAPE)) + field(11, tensor(ESCAPE, [ESCAPE])) + field(12, tensor(ESCAPE, [1]))
    path.write_bytes(onnx(graph, json.dumps(note)))
    with pytest.raises(SystemExit):
        main(["info", str(path)])
    text = capsys.readouterr().out
    assert "\\x1b[31mred\\x9b\\n\\u202e" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_errors_hold_no_commands_to_terminals(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "\x1b[31m.onnx")])
    assert "\\x1b[31m.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [*exported_file.SUFFIXES, ".safetensors"])
def test_pipes_and_folders(suffix, tmp_path, capsys):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    for name, words in (("pipe", "a device or pipe"), ("folder", "Is a directory")):
        with pytest.raises(SystemExit) as caught:
            main(["info", str(tmp_path / f"{name}{suffix}")])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and words in error and error.count("\n") == 1


def test_printable():
    assert printable("é × → 'a' \\") == "é × → 'a' \\"
    assert printable("\x00\r\ud800") == "\\x00\\r\\ud800"
