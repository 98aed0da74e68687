"""What `fold` did to a network, in numbers and words. Pure Python."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FoldedPart:
    """What became of the projection or the lifting of a reduced layer, in one of its calls.

    Parameters
    ----------
    layer
        Name of the layer.
    part
        "projection", "lifting", or "both".
    result
        "exact", "approximate", or "kept".
    what
        What it was merged with, or why it was not.
    before, after
        Multiply–adds for each sample: of what is no longer evaluated, and of what takes its place. Where it was kept,
        those of the best alternative; None where there is none.
    """

    layer: str
    part: str
    result: str
    what: str
    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class FoldExplanation:
    """What `fold` did; ``print(folded.explain())`` to read it.

    Parameters
    ----------
    parts
        The projections and liftings, in the order of evaluation.
    operations
        Multiply–adds of the network for one sample, (before, after).
    written
        Bytes that it writes for one sample, (before, after).
    errors
        Relative differences from the network that was folded, by name.
    """

    parts: tuple[FoldedPart, ...]
    operations: tuple[int, int]
    written: tuple[int, int]
    errors: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether the folded network is the same function, to rounding."""
        return all(part.result != "approximate" for part in self.parts)

    def __str__(self):
        rows = [("layer", "part", "result", "multiply-adds", "merged with, or why not")]
        for part in self.parts:
            numbers = "-" if part.result == "kept" else f"{part.before:,} -> {part.after:,}"
            rows.append((part.layer or "(network)", part.part, part.result, numbers, part.what))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        (operations, fewer), (written, less) = self.operations, self.written
        return "\n".join(
            [
                "Folded network, in eval mode: "
                + ("the same function" if self.exact else "an approximation, by a sampled encoder"),
                "",
                *("  ".join([c.ljust(w) for c, w in zip(row, widths, strict=False)] + [row[4]]) for row in rows),
                "",
                f"whole network: {operations:,} -> {fewer:,} multiply-adds, {written:,} -> {less:,} bytes written, for "
                "each sample",
                *(f"relative difference of {name}: {error:.2g}" for name, error in self.errors.items()),
            ]
        )

    __repr__ = __str__
