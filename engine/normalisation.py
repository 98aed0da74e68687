"""Normalisations: stages that divide by a statistic of many components, and fits that do without the statistic.

Group normalisation, for example, is a chain of squares, a deviation of each group, and a quotient. Once the squares are
evaluated at few points, the deviation is inexact, and it costs as much as all the rest. A fit absorbs it: the quotient
is fitted as a whole, as an affine function of what numerator and divisor depend on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from torchmor.engine.affine import AffineMap
from torchmor.engine.expressions import Expression, Instruction, Operand
from torchmor.engine.stages import Stage, StageChain

_QUOTIENT = Instruction("div", ("%0", "%1"))


def of_quotient(expression: Expression) -> Expression | None:
    """Return ψ of a function ``ψ(a_1 / a_2)``; None for all others."""
    first, *others = expression.instructions or (None,)
    slots = [operand for one in others for operand in one.operands if isinstance(operand, str)]
    if expression.arity != 2 or first != _QUOTIENT or {"%0", "%1"} & set(slots):
        return None

    def moved(operand: Operand) -> Operand:
        return f"%{int(operand[1:]) - 2}" if isinstance(operand, str) else operand

    return Expression(
        1, tuple(Instruction(one.function, tuple(map(moved, one.operands)), one.parameters) for one in others)
    )


def absorbed_stages(chain: StageChain, exact: Collection[str] = ()) -> frozenset[str]:
    """Return the stages that a fit absorbs: inexact statistics of normalisations, and quotients that are no more.

    A statistic is all that serves only the divisor of a stage ``ψ(a_1 / a_2)``. If ψ is the identity, the stage itself
    is absorbed too where some other stage before it remains.

    Parameters
    ----------
    chain
        The chain of f.
    exact
        Names of the stages that the reduction keeps: a statistic of those only stays, as it costs no accuracy.
    """
    found: set[str] = set()
    for stage in chain.stages:
        psi = of_quotient(stage.expression)
        if stage.name in exact or psi is None:
            continue
        statistic = _statistic(chain, stage)
        if statistic <= set(exact):
            continue
        found |= statistic
        remaining = {name for name in sources_read(chain, stage.argument, found) if name not in ("y", "u", "t")}
        if not psi.instructions and remaining:
            found.add(stage.name)
    return frozenset(found)


def sources_read(chain: StageChain, affine: AffineMap, absorbed: Collection[str]) -> tuple[str, ...]:
    """Return what a map depends on, with what absorbed stages depend on in their place, in the order of evaluation."""
    maps = chain.named_maps

    def expanded(sources: Iterable[str]) -> set[str]:
        return {deeper for name in sources for deeper in (expanded(maps[name].sources) if name in absorbed else {name})}

    found = expanded(affine.sources)
    return tuple(name for name in ("y", "u", "t", *maps) if name in found)


def fitted_argument(stage: Stage, values: Mapping[str, np.ndarray]) -> tuple[Expression, np.ndarray]:
    """Return the function of a stage that reads absorbed ones, and the values that its argument is fitted to.

    Parameters
    ----------
    stage
        The stage, at all or some of its components.
    values
        Of all sources.
    """
    true, psi = stage.argument.apply(values), of_quotient(stage.expression)
    if psi is None:
        return stage.expression, true
    numerator, divisor = stage.split(true)
    return psi, numerator / divisor


def _statistic(chain: StageChain, stage: Stage) -> set[str]:
    """Return the stages that serve only the divisor of a stage; none if the divisor depends on others too."""
    maps = chain.named_maps
    found = set(_divisor_sources(stage))
    if not found <= maps.keys():
        return set()
    while True:
        more = {
            source
            for name in found
            for source in maps[name].sources
            if source in maps and _readers(chain, source) <= found
        }
        if more <= found:
            return found
        found |= more


def _divisor_sources(stage: Stage) -> list[str]:
    """Return what the second argument of a stage reads."""
    rng = np.random.default_rng(0)

    def moves(source: str, size: int) -> bool:
        return bool(np.any(stage.argument.derivative({source: rng.normal(size=(size, 1))})[stage.size :]))

    return [s for s, size in zip(stage.argument.sources, stage.argument.sizes, strict=True) if moves(s, size)]


def _readers(chain: StageChain, source: str) -> set[str]:
    return {name for name, affine in chain.named_maps.items() if source in affine.sources}
