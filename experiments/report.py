"""Reports: one HTML file that holds everything, and the raw numbers beside it."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchmor.adapters.atomic import atomic_path
from torchmor.experiments.comparison import Row, best_reduced
from torchmor.experiments.table import cells, header, notes

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; max-width: 64rem; margin: 2rem auto;
       padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p, li { max-width: 46rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; }
th { vertical-align: bottom; border-bottom: 2px solid #222; font-weight: 600; }
th:first-child, td:first-child, .settings td { text-align: left; }
.settings td { white-space: normal; vertical-align: top; }
tr.group td { border-top: 1px solid #bbb; } tr.best td { background: #fff1e4; font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption, .notes { color: #555; font-size: .88rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
"""


@dataclass(frozen=True)
class Paragraph:
    """Text."""

    text: str

    def to_html(self) -> str:
        """Return the part as HTML."""
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    sentences: Sequence[str]

    def to_html(self) -> str:
        """Return the part as HTML."""
        return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences) + "</ul>"


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
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison."""

    rows: Sequence[Row]

    def to_html(self) -> str:
        """Return the part as HTML."""
        titles = "".join(f"<th>{html.escape(title).replace(chr(10), '<br>')}</th>" for title in header(self.rows))
        best, before, lines = best_reduced(self.rows), self.rows[0], []
        for row in self.rows:
            style = " ".join(["best"] * (row is best) + ["group"] * (row.kind != before.kind))
            entries = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row, self.rows))
            lines.append(f'<tr class="{style}">{entries}</tr>')
            before = row
        small = "".join(f"<li>{html.escape(note)}</li>" for note in notes(self.rows))
        return (
            f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
            f'<ul class="notes">{small}</ul>'
        )


@dataclass(frozen=True)
class Settings:
    """Names and values."""

    values: Mapping[str, Any]

    def to_html(self) -> str:
        """Return the part as HTML."""
        lines = (
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.values.items()
        )
        return f'<table class="settings">{"".join(lines)}</table>'


Part = Paragraph | Points | Listing | Picture | Comparison | Settings


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
        body += [f"<h2>{html.escape(heading)}</h2>"] if heading else []
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
