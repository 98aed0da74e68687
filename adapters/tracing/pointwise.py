"""Componentwise functions of affine values, on their way to become stages."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from torchmor.adapters.tracing.affine_regions import AffineNode
from torchmor.engine.expressions import Expression, apply_primitive

#: Primitives whose values are truth values.
TRUTH = frozenset("gt ge lt le eq ne logical_not logical_and logical_or".split())


@dataclass(eq=False)
class Pointwise:
    """A componentwise function of affine values of one shape, not yet a stage.

    Parameters
    ----------
    leaves, expression, shape
        Arguments, function, and the shape of all of them.
    as_affine
        Returns the value as an affine function of stages that others may share; None makes it a stage itself.
    """

    leaves: tuple[AffineNode, ...]
    expression: Expression
    shape: torch.Size
    as_affine: Callable[[], AffineNode] | None = None

    @property
    def is_truth(self) -> bool:
        """Whether the values are truth values."""
        return bool(self.expression.instructions) and self.expression.instructions[-1].function in TRUTH


def expand(node: AffineNode, shape: Sequence[int]) -> AffineNode:
    """Broadcast a value to a shape."""
    if node.shape == torch.Size(shape):
        return node
    return AffineNode.call(torch.broadcast_to, (node, tuple(shape)), {})


def fuse(
    primitive: str,
    operands: Sequence[AffineNode | Pointwise | float],
    shape: torch.Size,
    parameters: Mapping[str, Any] | None = None,
) -> Pointwise:
    """Apply a primitive, as one componentwise function of all leaves of its operands.

    Affine operands are broadcast to the shape; componentwise ones have it.
    """
    parts = [x if isinstance(x, float | Pointwise) else Pointwise((expand(x, shape),), _VALUE, shape) for x in operands]
    leaves = tuple(dict.fromkeys(leaf for p in parts if not isinstance(p, float) for leaf in p.leaves))
    position = {leaf: i for i, leaf in enumerate(leaves)}
    expressions = [
        p if isinstance(p, float) else p.expression.with_arguments([position[x] for x in p.leaves], len(leaves))
        for p in parts
    ]
    return Pointwise(leaves, apply_primitive(primitive, expressions, parameters), shape)


def rearrange(
    value: Pointwise, move: Callable[[AffineNode], AffineNode], affine: Callable[[Pointwise], AffineNode]
) -> Pointwise | list[Pointwise]:
    """Move entries of a componentwise function; what splits it returns the list of its parts.

    Law: ``move(φ(a, b)) == φ(move(a), move(b))``.

    Parameters
    ----------
    move
        Moves the entries of an affine value.
    affine
        Returns a componentwise value as an affine one.
    """
    moved = [move(leaf) for leaf in value.leaves]
    if isinstance(moved[0].shape, torch.Size):
        return Pointwise(tuple(moved), value.expression, moved[0].shape, lambda: move(affine(value)))

    def part(split: AffineNode, i: int) -> AffineNode:
        return AffineNode.call(operator.getitem, (split, i), {})

    def whole_part(i: int) -> AffineNode:
        return part(move(affine(value)), i)

    return [
        Pointwise(tuple(part(leaf, i) for leaf in moved), value.expression, shape, partial(whole_part, i))
        for i, shape in enumerate(moved[0].shape)
    ]


_VALUE = Expression(1, ())
