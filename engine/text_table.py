"""Tables as lines of text. Pure Python: what prints itself runs where torch alone is installed."""

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return a line for each row, with columns as wide as their widest cell and two spaces between.

    Law: a column starts at the same place in all lines, and no line ends in a blank.

    Parameters
    ----------
    rows
        Cells, as many in each row; the headings are the first row.
    right
        Indices of the columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = [">" if i in right else "<" for i in range(len(widths))]
    form = "  ".join(f"{{:{sign}{width}}}" for sign, width in zip(signs, widths, strict=True))
    return [form.format(*row).rstrip() for row in rows]
