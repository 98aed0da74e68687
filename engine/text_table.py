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
    aligned = [str.rjust if i in right else str.ljust for i in range(len(widths))]
    return ["  ".join(put(*cell) for put, *cell in zip(aligned, row, widths, strict=True)).rstrip() for row in rows]
