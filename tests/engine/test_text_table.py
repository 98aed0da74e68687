import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmor.engine.text_table import text_table

_CELLS = st.text("abc →×", max_size=9).map(str.strip)
_ROWS = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(_CELLS, min_size=n, max_size=n), min_size=1, max_size=5))


@given(rows=_ROWS, right=st.sets(st.integers(0, 3)))
def test_a_column_starts_at_the_same_place_in_all_lines_and_no_line_ends_in_a_blank(rows, right):
    """Law: "a column starts at the same place in all lines, and no line ends in a blank"."""
    lines, start = text_table(rows, right), 0
    assert len(lines) == len(rows)
    for i, column in enumerate(zip(*rows, strict=True)):
        end = start + max(map(len, column))
        for line, cell in zip(lines, column, strict=True):
            shown = line[start:end].ljust(end - start)
            assert shown == (cell.rjust(end - start) if i in right else cell.ljust(end - start))
            assert not line[end : end + 2].strip()
        start = end + 2
    assert all(line == line.rstrip() and len(line) <= start - 2 for line in lines)


def test_an_example():
    assert text_table([("name", "size", "why"), ("state", "1,024", "")], right=[1]) == [
        "name    size  why",
        "state  1,024",
    ]


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        text_table([("a", "b"), ("c",)])
