"""Reports: one HTML file that holds everything, and the raw numbers beside it."""

import base64
import html
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmor.adapters.layers.atomic import atomic_path
from torchmor.experiments.measure.comparison import Row, best_reduced
from torchmor.experiments.measure.methods import METHODS
from torchmor.experiments.report.table import cells, header, notes

_STYLE = """
:root { color-scheme: light; --ink: #222; --quiet: #5d5d5d; --rule: #d8d8d8; --accent: #b34700; --mark: #fff4ea; }
body { font: 16px/1.6 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: var(--ink);
       background: #fff; max-width: 74rem; margin: 2.2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; margin-bottom: .6rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p, li, figcaption { max-width: 46rem; } li { margin: .3rem 0; } a { color: #1b5a8a; }
.contents { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .95rem; }
.findings { background: #f7f6f3; border-radius: .4rem; padding: .8rem 1.2rem .8rem 2.2rem; max-width: 54rem; }
.findings li { max-width: none; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .5rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { vertical-align: bottom; border-bottom: 2px solid var(--ink); font-weight: 600; }
th:first-child, td:first-child, .settings td, .words th, .words td,
.words2 th:nth-child(-n+3), .words2 td:nth-child(-n+3) { text-align: left; }
.words td:not(:first-child) { white-space: normal; min-width: 6.5rem; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: #fff; }
td small { display: block; color: var(--quiet); font-size: .9em; }
.settings td { white-space: normal; overflow-wrap: anywhere; } .settings td:first-child { white-space: nowrap; }
tr.group td { border-top: 1px solid var(--rule); } tr.best td, td.best, .scroll tr.best td:first-child {
  background: var(--mark); font-weight: 600; } td.best small { font-weight: 400; }
tr.weak td { color: #858585; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; display: block; }
figcaption, .notes { color: var(--quiet); font-size: .9rem; } .notes { padding-left: 1.1rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: #1b5a8a; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.1rem; max-width: 54rem; }
dt { font-weight: 600; } dd { margin: 0; } dt span { display: inline-block; width: 1.3em; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
@media (max-width: 40rem) {
  body { margin-top: 1rem; padding: 0 .9rem; } dl { display: block; } dd { margin-bottom: .6rem; }
  .settings td:first-child { white-space: normal; } .picture { overflow-x: auto; }
  .picture img { max-width: none; width: 46rem; }
  .scroll th:first-child, .scroll td:first-child { position: static; }
}
"""

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

    def to_html(self) -> str:
        """Return the part as HTML."""
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str

    def to_html(self) -> str:
        """Return the part as HTML."""
        return f"<h3>{html.escape(self.text)}</h3>"


@dataclass(frozen=True)
class Contents:
    """Links to sections, by their headings."""

    headings: Sequence[str]

    def to_html(self) -> str:
        """Return the part as HTML."""
        links = (f'<li><a href="#{_anchor(text)}">{html.escape(text)}</a></li>' for text in self.headings)
        return f'<ul class="contents">{"".join(links)}</ul>'


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

    def to_html(self) -> str:
        """Return the part as HTML."""
        lines = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences)
        return f'<ul class="{self.kind}">{lines}</ul>'


@dataclass(frozen=True)
class Explanations:
    """Methods, with what they do.

    Parameters
    ----------
    methods
        Keys of :data:`METHODS`.
    """

    methods: Iterable[str]

    def to_html(self) -> str:
        """Return the part as HTML."""
        lines = []
        for method in map(METHODS.__getitem__, self.methods):
            sign = f'<span style="color: {method.colour}">{_SIGNS[method.marker]}</span>'
            lines.append(f"<dt>{sign}{html.escape(method.words)}</dt><dd>{html.escape(method.explanation)}</dd>")
        return f"<dl>{''.join(lines)}</dl>"


@dataclass(frozen=True)
class Listing:
    """Text of fixed width."""

    text: str

    def to_html(self) -> str:
        """Return the part as HTML."""
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True)
class Picture:
    """A PNG picture; `caption` says what to see in it."""

    png: bytes
    caption: str

    def to_html(self) -> str:
        """Return the part as HTML."""
        data, caption = base64.b64encode(self.png).decode(), html.escape(self.caption)
        image = f'<div class="picture"><img src="data:image/png;base64,{data}" alt="{caption}"></div>'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


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

    def to_html(self) -> str:
        """Return the part as HTML."""
        titles = "".join(f"<th>{html.escape(title).replace(chr(10), '<br>')}</th>" for title in self.titles)
        lines = []
        for i, line in enumerate(self.lines):
            marks = {"best": self.best, "weak": self.weak, "group": self.groups}
            style = " ".join(name for name, numbers in marks.items() if i in numbers)
            entries = "".join(_entry(cell, (i, j) in self.best) for j, cell in enumerate(line))
            lines.append(f'<tr class="{style}">{entries}</tr>')
        small = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f'<div class="scroll"><table class="{self.kind}"><thead><tr>{titles}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>" + f'<ul class="notes">{small}</ul>' * bool(small)
        )


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison of one method with the full network."""

    rows: Sequence[Row]

    def to_html(self) -> str:
        """Return the part as HTML."""
        best = best_reduced(self.rows)
        methods = [row.method for row in self.rows]
        return Table(
            header(self.rows),
            [cells(row, self.rows) for row in self.rows],
            notes(self.rows),
            best=[i for i, row in enumerate(self.rows) if row is best],
            groups=[i for i in range(1, len(methods)) if methods[i] != methods[i - 1]],
        ).to_html()


@dataclass(frozen=True)
class Details:
    """Parts that are shown when they are asked for."""

    summary: str
    parts: Sequence["Part"]

    def to_html(self) -> str:
        """Return the part as HTML."""
        inside = "".join(part.to_html() for part in self.parts)
        return f"<details><summary>{html.escape(self.summary)}</summary>{inside}</details>"


@dataclass(frozen=True)
class Settings:
    """Names and values; of a mapping, each entry is in a line of its own."""

    values: Mapping[str, Any]

    def to_html(self) -> str:
        """Return the part as HTML."""
        lines = (
            f"<tr><td>{html.escape(name)}</td><td>{'<br>'.join(map(html.escape, _lines(value)))}</td></tr>"
            for name, value in self.values.items()
        )
        return f'<table class="settings">{"".join(lines)}</table>'


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
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, parts in sections.items():
        body += [f'<h2 id="{_anchor(heading)}">{html.escape(heading)}</h2>'] if heading else []
        body += [part.to_html() for part in parts]
    lines = "\n".join(body)
    text = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{lines}\n</body>\n</html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Row], settings: Mapping[str, Any]) -> None:
    """Write the raw numbers as JSON lines: the settings first, then one line for each row."""
    lines = [json.dumps({"settings": dict(settings)}), *(json.dumps(row.to_json()) for row in rows)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}: {' '.join(_lines(entry))}" for name, entry in value.items()]
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, list | tuple) for entry in value)
        return [", ".join("/".join(map(str, entry)) if nested else str(entry) for entry in value) or "none"]
    return [str(value)]


def _entry(cell: str, best: bool) -> str:
    first, *later = map(html.escape, cell.split("\n"))
    return f"<td{' class=best' * best}>{first}{''.join(f'<small>{line}</small>' for line in later)}</td>"


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")
