"""An explanation as HTML for notebooks: plain tables in the colours of the page around. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from torchmor.engine.explanation_text import (
    Table,
    curve_caption,
    curve_table,
    details,
    headlines,
    legend,
    parts_table,
)

if TYPE_CHECKING:
    from torchmor.engine.explanation import Explanation


def as_html(explanation: Explanation) -> str:
    """Return an explanation as an element of HTML, which needs no style sheet: all texts of it are escaped."""
    inside = [_labelled(details(explanation)), _table(parts_table(explanation)), *map(_paragraph, legend(explanation))]
    if explanation.curve:
        inside += [_paragraph(curve_caption(explanation)), _table(curve_table(explanation))]
    hidden = f"<details><summary>details</summary>{''.join(inside)}</details>"
    return f"<div>{_labelled(headlines(explanation))}{hidden}</div>"


def _labelled(lines: Iterable[tuple[str, str]]) -> str:
    rows = (f"<tr>{_cell('th', label)}{_cell('td', text)}</tr>" for label, text in lines)
    return f"<table>{''.join(rows)}</table>"


def _table(table: Table) -> str:
    rows = []
    for number, row in enumerate(table.rows):
        cells = (_cell("td" if number else "th", text, i in table.right) for i, text in enumerate(row))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _cell(tag: str, text: str, right: bool = False) -> str:
    return f'<{tag} style="text-align:{"right" if right else "left"}">{escape(text)}</{tag}>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
