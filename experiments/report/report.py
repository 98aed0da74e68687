"""Reports: one HTML file that holds everything, and the raw numbers beside it."""

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from torchmor.adapters.layers.atomic import atomic_path
from torchmor.experiments.measure.comparison import Row, best_reduced
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.table import cells, header, notes

_SIGNS = {
    "s": "■",
    "p": "⬟",
    "h": "⬢",
    "H": "⬢",
    "8": "●",
    "x": "×",
    "o": "●",
    "^": "▲",
    "v": "▼",
    "d": "♦",
    "P": "✚",
    "X": "✖",
    "*": "★",
    "D": "◆",
}


@dataclass(frozen=True)
class Paragraph:
    """Text."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Contents:
    """Links to sections, by their headings."""

    headings: Sequence[str]


@dataclass(frozen=True)
class Points:
    """A list of sentences.

    Parameters
    ----------
    sentences
        The sentences.
    kind
        "findings" for those that stand out.
    """

    sentences: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Explanations:
    """Methods, with what they do.

    Parameters
    ----------
    methods
        Keys of :data:`METHODS`.
    """

    methods: Iterable[str]


@dataclass(frozen=True)
class Listing:
    """Text of fixed width."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG picture; `caption` says what to see in it."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    titles
        Of the columns; a title may have several lines.
    lines
        The entries; of several lines in one, the later ones are details.
    notes
        What a reader has to know.
    best
        Numbers of lines, and pairs of numbers of a line and a column, that stand out.
    weak
        Numbers of lines that stand back.
    groups
        Numbers of lines that begin something new.
    kind
        "words" or "words2" where all or three columns hold words, and the others numbers.
    """

    titles: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    best: Collection[int | tuple[int, int]] = ()
    weak: Collection[int] = ()
    groups: Collection[int] = ()
    kind: str = ""


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison of one method with the full network."""

    rows: Sequence[Row]


@dataclass(frozen=True)
class Details:
    """Parts that are shown when they are asked for."""

    summary: str
    parts: Sequence["Part"]


@dataclass(frozen=True)
class Settings:
    """Names and values; of a mapping, each entry is in a line of its own."""

    values: Mapping[str, Any]


Part = (
    Paragraph | Heading | Contents | Points | Explanations | Listing | Picture | Table | Comparison | Details | Settings
)


def write_report(path: Path, title: str, sections: Mapping[str, Iterable[Part]]) -> None:
    """Write a report to one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    path
        The file.
    title
        Its title.
    sections
        Heading → parts; "" has no heading.
    """
    text = _MACROS.document(title, sections)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Row], settings: Mapping[str, Any]) -> None:
    """Write the raw numbers as JSON lines: the settings first, then one line for each row."""
    lines = [json.dumps({"settings": dict(settings)}), *(json.dumps(row.to_json()) for row in rows)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def part_html(part: Part) -> Markup:
    """Return a part as HTML, by the macro of its class."""
    return getattr(_MACROS, type(part).__name__.lower())(part)


def _comparison_table(rows: Sequence[Row]) -> Table:
    best = best_reduced(rows)
    methods = [row.method for row in rows]
    return Table(
        header(rows),
        [cells(row, rows) for row in rows],
        notes(rows),
        best=[i for i, row in enumerate(rows) if row is best],
        groups=[i for i in range(1, len(methods)) if methods[i] != methods[i - 1]],
    )


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}: {' '.join(_lines(entry))}" for name, entry in value.items()]
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, list | tuple) for entry in value)
        return [", ".join("/".join(map(str, entry)) if nested else str(entry) for entry in value) or "none"]
    return [str(value)]


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


_JINJA = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_JINJA.filters |= {
    "html": part_html,
    "anchor": _anchor,
    "lines": _lines,
    "table": _comparison_table,
    "method": METHODS.__getitem__,
    "sign": _SIGNS.__getitem__,
    "base64": lambda data: base64.b64encode(data).decode(),
}
_MACROS: Any = _JINJA.get_template("report.html.jinja").module
