"""Text of files that anybody may have written, as it can be printed."""


def printable(line: str) -> str:
    """Return a line with control characters, and all others that do not print, as escapes.

    Terminals take some of them for commands.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in line
    )
