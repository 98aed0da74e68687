"""Normalisations: stages that divide by a statistic of many components, and fits that do without the statistic.

Group normalisation, for example, is a chain of squares, a deviation of each group, and a quotient. Once the squares are
evaluated at few points, the deviation is inexact, and it costs as much as all the rest. A fit absorbs it: the quotient
is fitted as a whole, as an affine function of what numerator and divisor depend on. What else the stage reads, such as
the argument of a gate, stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from torchmor.engine import functions
from torchmor.engine.affine import AffineMap
from torchmor.engine.expressions import Expression, Instruction
from torchmor.engine.stages import Stage, StageChain


@dataclass(frozen=True)
class Quotients:
    """A function in terms of quotients: ``φ(a) = ψ(q_1(a), …, q_p(a), a_i, a_j, …)``.

    Parameters
    ----------
    psi
        ψ.
    quotients
        The q, functions of all arguments of φ.
    others
        Which arguments i, j, … ψ reads beside the quotients.
    numerators, divisors
        Which arguments the quotients read; ψ depends on the divisors through the quotients only.
    """

    psi: Expression
    quotients: tuple[Expression, ...]
    others: tuple[int, ...]
    numerators: frozenset[int]
    divisors: frozenset[int]


def of_quotients(expression: Expression, inverses: Collection[int] = ()) -> Quotients | None:
    """Return a function ``ψ(a_1 / h(a_2), …)`` in terms of its quotients; None for all others.

    A quotient is an argument, divided by a root, a power, a sum, … of others, or multiplied by the inverse of one. A
    divisor of other functions, as of exponentials, varies too much for a normalisation.

    Parameters
    ----------
    expression
        The function.
    inverses
        Arguments that are such an inverse themselves.
    """
    arity = expression.arity
    depends, plain = [frozenset({i}) for i in range(arity)], [True] * arity
    inverse = [i in inverses for i in range(arity)]
    found: dict[int, tuple[int, frozenset[int]]] = {}  # slot → numerator, divisors
    for slot, instruction in enumerate(expression.instructions, start=arity):
        operands = [int(o[1:]) if isinstance(o, str) else None for o in instruction.operands]
        depends.append(frozenset().union(*(depends[o] for o in operands if o is not None)))
        plain.append(instruction.function in _PLAIN and all(plain[o] for o in operands if o is not None))
        inverse.append(_inverts(instruction))
        for up, down in _fractions(instruction.function, operands, inverse):
            numerator, divisors = found.get(up, (up, frozenset()))
            if numerator < arity and plain[down] and numerator not in depends[down]:
                found.setdefault(slot, (numerator, divisors | depends[down]))
    while found:
        ends, others = _ends(expression, found)
        read = frozenset().union(*(found[slot][1] for slot in ends))
        fails = {slot for slot in ends if found[slot][1] & others or found[slot][0] in read}
        if not fails:
            break
        found = {slot: one for slot, one in found.items() if slot not in fails}
    if not found or not ends:
        return None
    return Quotients(
        _rest(expression, ends, sorted(others)),
        tuple(Expression(arity, expression.instructions[: slot - arity + 1]) for slot in ends),
        tuple(sorted(others)),
        frozenset(found[slot][0] for slot in ends),
        read,
    )


def quotients_of(chain: StageChain, stage: Stage) -> Quotients | None:
    """Return the function of a stage in terms of its quotients; None where it has none."""
    inverted = {
        one.name
        for one in chain.stages
        if {i.function for i in one.expression.instructions} <= _PLAIN
        and any(map(_inverts, one.expression.instructions[-1:]))
    }
    inverses: list[int] = []
    if inverted & set(stage.argument.sources):
        inverses = [i for i, reads in enumerate(stage.sources_of_arguments()) if reads and reads <= inverted]
    return of_quotients(stage.expression, inverses)


def absorbed_stages(chain: StageChain, exact: Collection[str] = ()) -> frozenset[str]:
    """Return the stages that a fit absorbs: inexact statistics of normalisations, and quotients that are no more.

    A statistic is all that serves only the quotients of stages ``ψ(a_1 / h(a_2), …)``: their divisors, and numerators
    that depend on more. If ψ is the identity, the stage itself is absorbed too where some other stage before it
    remains.

    Parameters
    ----------
    chain
        The chain of f.
    exact
        Names of the stages that the reduction keeps: a statistic of those only stays, as it costs no accuracy.
    """
    forms: dict[str, Quotients] = {}
    divided: dict[str, set[str]] = {}  # stage → what its divisors read
    readers: dict[str, set[str]] = {}  # source → what reads it for other ends than quotients
    for stage in chain.stages:
        form = None if stage.name in exact else quotients_of(chain, stage)
        others = set(stage.argument.sources)
        if form is not None:
            reads = stage.sources_of_arguments()
            statistic = {source for i in form.divisors for source in reads[i]}
            beside = [reads[i] - statistic for i in form.numerators]
            if all(beside):  # of exp(x) / Σ exp(x) nothing would be left
                forms[stage.name], divided[stage.name] = form, statistic
                others = set().union(*beside, *(reads[i] for i in form.others))
        for source in others:
            readers.setdefault(source, set()).add(stage.name)
    for source in chain.output.sources:
        readers.setdefault(source, set()).add("output")
    found: set[str] = set()
    for stage in chain.stages:
        statistic = _statistic(chain, divided.get(stage.name, ()), readers)
        if statistic <= set(exact):
            continue
        found |= statistic
        remaining = {name for name in sources_read(chain, stage.argument, found) if name not in ("y", "u", "t")}
        if forms[stage.name].psi == _IDENTITY and remaining:
            found.add(stage.name)
    return frozenset(found)


def sources_read(chain: StageChain, affine: AffineMap, absorbed: Collection[str]) -> tuple[str, ...]:
    """Return what a map depends on, with what absorbed stages depend on in their place, in the order of evaluation."""
    maps = chain.named_maps
    found, left = set(), list(affine.sources)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += maps[name].sources if name in absorbed else ()
    return tuple(name for name in ("y", "u", "t", *maps) if name in found and name not in absorbed)


def absorbing_form(chain: StageChain, stage: Stage, absorbed: Collection[str]) -> Quotients | None:
    """Return the function of a stage in terms of its quotients, if what they divide by is absorbed."""
    form = quotients_of(chain, stage)
    if form is None:
        return None
    reads = stage.sources_of_arguments()
    return None if all(reads[i].isdisjoint(absorbed) for i in form.divisors) else form


def fitted_argument(
    stage: Stage, form: Quotients | None, values: Mapping[str, np.ndarray]
) -> tuple[Expression, np.ndarray]:
    """Return the function of a stage that reads absorbed ones, and the values that its argument is fitted to.

    Parameters
    ----------
    stage
        The stage, at all or some of its components.
    form
        Its function as of :func:`absorbing_form`.
    values
        Of all sources.
    """
    true = stage.argument.apply(values)
    if form is None:
        return stage.expression, true
    arguments = stage.split(true)
    quotients = [functions.evaluate(quotient, arguments) for quotient in form.quotients]
    return form.psi, np.concatenate([*quotients, *(arguments[i] for i in form.others)])


def _statistic(chain: StageChain, divided: Iterable[str], readers: Mapping[str, set[str]]) -> set[str]:
    """Return the stages that serve only quotients; none if their divisors depend on others too."""
    maps, found = chain.named_maps, set(divided)
    if not all(source in maps and not readers.get(source) for source in found):
        return set()
    while True:
        more = {
            source
            for name in found
            for source in maps[name].sources
            if source in maps and readers.get(source, set()) <= found
        }
        if more <= found:
            return found
        found |= more


def _inverts(instruction: Instruction) -> bool:
    """Whether an instruction is the reciprocal, or the inverse of a power, of one slot."""
    first, *others = instruction.operands
    if instruction.function == "pow":
        return isinstance(others[0], float) and others[0] < 0
    return instruction.function in ("rsqrt", "reciprocal") or (instruction.function == "div" and type(first) is float)


def _fractions(function: str, operands: list[int | None], inverse: list[bool]) -> list[tuple[int, int]]:
    """Return which slots an instruction may divide by which: numerator and divisor."""
    if function not in ("mul", "div") or None in operands:
        return []
    a, b = operands
    pairs = [(a, b)] if function == "div" else [(a, b)] * inverse[b] + [(b, a)] * inverse[a]
    return pairs


def _ends(expression: Expression, quotients: Collection[int]) -> tuple[list[int], set[int]]:
    """Return the slots among given ones that the result reads, and the arguments that it reads otherwise."""
    arity = expression.arity
    ends, others, left, seen = [], set(), [arity + len(expression.instructions) - 1], set()
    while left:
        slot = left.pop()
        if slot in seen:
            continue
        seen.add(slot)
        if slot in quotients:
            ends.append(slot)
        elif slot < arity:
            others.add(slot)
        else:
            left += [int(o[1:]) for o in expression.instructions[slot - arity].operands if isinstance(o, str)]
    return sorted(ends), others


def _rest(expression: Expression, ends: list[int], others: list[int]) -> Expression:
    """Return a function as one of some of its slots, and of some of its arguments."""
    slots = {slot: f"%{i}" for i, slot in enumerate([*ends, *others])}
    arity, program = len(slots), []
    for slot, one in enumerate(expression.instructions, start=expression.arity):
        read = [int(o[1:]) for o in one.operands if isinstance(o, str)]
        if slot not in slots and slots.keys() >= set(read):
            slots[slot] = f"%{arity + len(program)}"
            operands = tuple(slots[int(o[1:])] if isinstance(o, str) else o for o in one.operands)
            program.append(Instruction(one.function, operands, one.parameters))
    return Expression(arity, tuple(program))


_IDENTITY = Expression(1, ())

#: Functions that a divisor consists of.
_PLAIN = frozenset(
    "identity add sub mul div reciprocal square sqrt rsqrt pow abs relu clamp maximum hypot threshold".split()
)
