"""Domains of functions that divide, and take roots and logarithms, of sampled stages: they are not left.

A sum of sampled stages is approximate, and where it is nearly zero, what divides by it is arbitrary. So it stays at a
distance from the end of the function's domain, of half of what calibration data have at least.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import inf

import numpy as np

from torchmor.engine import functions
from torchmor.engine.expressions import Expression, Instruction
from torchmor.engine.stages import Stage, StageChain

#: How near the end of a domain an argument may come, relative to those of calibration data.
MARGIN = 0.5

#: Primitive → ends of the domain of its last operand; (0, 0) for all numbers but zero.
_DOMAINS = {
    **dict.fromkeys(("div", "reciprocal"), (0.0, 0.0)),
    **dict.fromkeys(("sqrt", "rsqrt", "log", "log2", "log10"), (0.0, inf)),
    **dict.fromkeys(("asin", "acos", "atanh"), (-1.0, 1.0)),
    "log1p": (-1.0, inf),
    "acosh": (1.0, inf),
}


def bounded(
    chain: StageChain,
    values: Mapping[str, np.ndarray],
    points: Mapping[str, np.ndarray],
    absorbed: Collection[str] = (),
) -> StageChain:
    """Return a chain whose stages do not leave the domains of their functions, whatever sampled stages yield.

    Law: the values on the calibration data stay the same, and so does what depends on no sampled stage.

    Parameters
    ----------
    chain
        The chain of f.
    values
        Of all sources, on the calibration data.
    points
        Name of a sampled stage → its points.
    absorbed
        Stages that a fit does without.
    """
    inexact, stages = {*points, *absorbed}, []
    for stage in chain.stages:
        part = stage.restrict(points[stage.name]) if stage.name in points else stage
        if inexact & set(stage.argument.sources):
            inexact.add(stage.name)
            if stage.name not in absorbed and any(map(_domain, stage.expression.instructions)):
                stage = replace(stage, expression=_bounded(part, values, inexact))
        stages.append(stage)
    same = all(new is old for new, old in zip(stages, chain.stages, strict=True))
    return chain if same else replace(chain, stages=tuple(stages))


def _bounded(stage: Stage, values: Mapping[str, np.ndarray], inexact: Collection[str]) -> Expression:
    """Return the function of a stage with what depends on inexact sources clamped, where a domain ends."""
    expression, arity = stage.expression, stage.expression.arity
    seen = expression.slots(functions.VALUES, stage.split(stage.argument.apply(values)))
    wary = [not reads.isdisjoint(inexact) for reads in stage.sources_of_arguments()]
    moved = [f"%{i}" for i in range(arity)]
    program: list[Instruction] = []

    def append(instruction: Instruction) -> str:
        program.append(instruction)
        return f"%{arity + len(program) - 1}"

    for instruction in expression.instructions:
        slots = [int(o[1:]) if isinstance(o, str) else None for o in instruction.operands]
        operands = [o if s is None else moved[s] for s, o in zip(slots, instruction.operands, strict=True)]
        found = _domain(instruction)
        if found is not None and (slot := slots[found[0]]) is not None and wary[slot]:
            bounds = _bounds(seen[slot], found[1])
            if bounds:
                operands[found[0]] = append(Instruction("clamp", (moved[slot],), bounds))
        moved.append(append(Instruction(instruction.function, tuple(operands), instruction.parameters)))
        wary.append(any(wary[s] for s in slots if s is not None))
    return expression if len(program) == len(expression.instructions) else Expression(arity, tuple(program))


def _domain(instruction: Instruction) -> tuple[int, tuple[float, float]] | None:
    """Return which operand of an instruction has a domain, and its ends."""
    if instruction.function == "pow":
        exponent = instruction.operands[1]
        if isinstance(exponent, str) or not exponent.is_integer():
            return 0, (0.0, inf)
        return (0, (0.0, 0.0)) if exponent < 0 else None
    ends = _DOMAINS.get(instruction.function)
    return None if ends is None else (len(instruction.operands) - 1, ends)


def _bounds(seen: np.ndarray, ends: tuple[float, float]) -> tuple[tuple[str, float], ...]:
    """Return the least and the most that are allowed, as parameters to clamp by; none for data beyond the domain."""
    if not seen.size:
        return ()
    least, most = float(np.min(seen)), float(np.max(seen))
    lower, upper = ends
    if lower == upper:
        lower, upper = (lower, inf) if least > lower else (-inf, upper)
        if lower == -inf and not most < upper:
            return ()
    if not lower <= least <= most <= upper:
        return ()
    found = {"max": upper - MARGIN * (upper - most), "min": lower + MARGIN * (least - lower)}
    return tuple((name, float(bound)) for name, bound in found.items() if np.isfinite(bound))
