"""The wire format of protocol buffers, read where it lies: what is not asked for is skipped."""

from collections.abc import Iterator

#: Most fields of a file that are looked at. A field can be two bytes, and would be a large object when parsed.
MOST_FIELDS = 2_000_000


class Fields:
    """The fields of messages of one file.

    Parameters
    ----------
    most
        How many fields may be looked at.
    """

    def __init__(self, most: int = MOST_FIELDS):
        self.left = most

    def of(self, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yield number and value of each field: an integer, or the bytes of a text, message or packed array.

        Raises
        ------
        ValueError
            This is no message, or there are too many fields.
        """
        place = 0
        while place < len(message):
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many fields")
            key, place = _varint(message, place)
            kind = key & 7
            if kind == 0:
                value, place = _varint(message, place)
                yield key >> 3, value
                continue
            if kind == 2:
                size, place = _varint(message, place)
            elif kind in _FIXED:
                size = _FIXED[kind]
            else:
                raise ValueError(f"a field of kind {kind}")
            if place + size > len(message):
                raise ValueError("a field that is cut")
            yield key >> 3, message[place : place + size]
            place += size

    def numbers(self, packed: int | memoryview) -> list[int]:
        """Return the integers of a repeated field, of which one value came, or an array of them."""
        found, place = [], 0
        if isinstance(packed, int):
            return [packed]
        while place < len(packed):
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many numbers")
            value, place = _varint(packed, place)
            found.append(value)
        return found


_FIXED = {1: 8, 5: 4}


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place] if place < len(message) else 0x80
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number that is cut")
