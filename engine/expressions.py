"""Componentwise functions as data: small straight-line programs over a fixed set of primitives.

Pure Python. What a primitive computes is said by a table, ``name -> callable(*operands, **parameters)``:
`torchmor.engine.functions` for NumPy, `torchmor.adapters.layers.torch_functions` for torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from math import isfinite
from reprlib import repr as short
from typing import Any

from torchmor.engine.errors import FileFormatError, UnsupportedOperationError

Operand = str | float
Parameter = float | str | bool

_ONE = (
    "identity neg reciprocal square sqrt rsqrt abs sign exp exp2 expm1 log log2 log10 log1p "
    "sin cos tan sinh cosh tanh asin acos atan asinh acosh atanh erf erfc "
    "sigmoid log_sigmoid relu leaky_relu elu celu selu gelu silu mish softplus softsign tanhshrink "
    "hardtanh hardsigmoid hardswish softshrink hardshrink threshold clamp logical_not"
)
_TWO = "add sub mul div pow atan2 hypot logaddexp maximum minimum prelu gt ge lt le eq ne logical_and logical_or"

#: All primitives and their numbers of operands.
PRIMITIVES: dict[str, int] = dict.fromkeys(_ONE.split(), 1) | dict.fromkeys(_TWO.split(), 2) | {"where": 3}

#: The parameters of the primitives that have some, named as in torch.nn.functional. All of them are
#: optional, but clamp needs one.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "leaky_relu": ("negative_slope",),
    "elu": ("alpha", "scale", "input_scale"),
    "celu": ("alpha",),
    "gelu": ("approximate",),
    "softplus": ("beta", "threshold"),
    "hardtanh": ("min_val", "max_val"),
    "softshrink": ("lambd",),
    "hardshrink": ("lambd",),
    "threshold": ("threshold", "value"),
    "clamp": ("min", "max"),
}

#: Instructions, and arguments, that an expression has at most.
MOST_INSTRUCTIONS = 2048

#: A part of a formula that is longer gets a name of its own; a text that is longer is cut in the middle.
LONGEST_PART, LONGEST_TEXT = 100, 500

_SLOT = re.compile(r"%(0|[1-9][0-9]{0,8})")
_INFIX = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_NEG, _POW, _ATOM = 3, 4, 5  # how tightly the rest of Python's syntax binds


@dataclass(frozen=True)
class Instruction:
    """One primitive applied to slots and constants.

    Parameters
    ----------
    function
        A name in `PRIMITIVES`.
    operands
        ``"%i"`` is slot i, a float is a constant; at least one operand is a slot.
    parameters
        Pairs of name and value, sorted by name.
    """

    function: str
    operands: tuple[Operand, ...]
    parameters: tuple[tuple[str, Parameter], ...] = ()

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all others: numbers by their repr, as 0.0 == -0.0 and NaN != NaN."""
        return self.function, tuple(map(repr, self.operands)), tuple(map(repr, self.parameters))

    @cached_property
    def last_slot(self) -> int:
        """The last slot that it reads; ValueError where it is none of `PRIMITIVES` and `PARAMETERS`."""
        _check(self)
        return max(int(o[1:]) for o in self.operands if isinstance(o, str))


@dataclass(frozen=True)
class Expression:
    """A componentwise function φ(a_0, …, a_{arity-1}) as a straight-line program.

    Slots 0 to arity - 1 are the arguments, each instruction fills the next slot, and the last slot is the
    result: ``Expression(1, ())`` is the identity, ``Expression(1, (Instruction("silu", ("%0",)),))`` is SiLU.
    What occurs in several places is one slot, and nothing here takes longer than there are instructions.

    Raises
    ------
    ValueError
        A primitive is unknown, or has other operands or parameters than `PRIMITIVES` and `PARAMETERS` say.
    UnsupportedOperationError
        There are more than `MOST_INSTRUCTIONS` instructions or arguments.
    """

    arity: int
    instructions: tuple[Instruction, ...]

    def __post_init__(self) -> None:
        if self.arity < 1:
            raise ValueError(f"expected an expression of at least one argument, got arity {self.arity}")
        if max(self.arity, len(self.instructions)) > MOST_INSTRUCTIONS:
            raise UnsupportedOperationError(
                f"expected a componentwise function of at most {MOST_INSTRUCTIONS} operations and arguments, got "
                f"{len(self.instructions)} operations of {self.arity}: write it with fewer operations, for example a "
                "series as a polynomial, or a loop with fewer turns"
            )
        for slot, instruction in enumerate(self.instructions, start=self.arity):
            if instruction.last_slot >= slot:
                raise ValueError(
                    f"expected an operand of {instruction.function} in %0 … %{slot - 1}, got '%{instruction.last_slot}'"
                )

    @property
    def _is_lean(self) -> bool:
        """Whether no instruction is there twice, or for nothing, as in all that `substitute` returns."""
        keys = {instruction.key for instruction in self.instructions if instruction.function != "identity"}
        return len(keys) == len(self.instructions)

    @classmethod
    def of(cls, function: str, /, **parameters: Parameter | None) -> "Expression":
        """One primitive of its arguments: ``Expression.of("leaky_relu", negative_slope=0.1)``.

        Parameters that are None count as absent.
        """
        arity = PRIMITIVES.get(function, 1)
        operands = tuple(f"%{i}" for i in range(arity))
        return cls(arity, (Instruction(function, operands, _sorted(parameters)),))

    @classmethod
    def argument(cls, index: int, arity: int = 1) -> "Expression":
        """The projection (a_0, …, a_{arity-1}) ↦ a_index."""
        if not 0 <= index < arity:
            raise ValueError(f"expected an argument in 0 … {arity - 1}, got {index}")
        return cls(
            arity,
            () if index == arity - 1 else (Instruction("identity", (f"%{index}",)),),
        )

    def evaluate(self, table: Mapping[str, Callable[..., Any]], arguments: Sequence[Any]) -> Any:
        """Value at arrays or tensors that broadcast against each other; constants stay Python floats."""
        return self.slots(table, arguments)[-1]

    def slots(self, table: Mapping[str, Callable[..., Any]], arguments: Sequence[Any]) -> list[Any]:
        """Values of all slots, as `evaluate` computes them."""
        slots = list(arguments)
        for instruction in self.instructions:
            operands = [slots[int(o[1:])] if isinstance(o, str) else o for o in instruction.operands]
            slots.append(table[instruction.function](*operands, **dict(instruction.parameters)))
        return slots

    def substitute(self, operands: Sequence["Expression | float"]) -> "Expression":
        """Composition φ(e_0(a), …, e_{arity-1}(a)), each instruction that occurs in several places once.

        ``φ.substitute(e).evaluate(table, a) == φ.evaluate(table, [e_i.evaluate(table, a) …])``.

        Parameters
        ----------
        operands
            One per argument: expressions of the same argument list, or constants, not all constants.

        Raises
        ------
        ValueError
            Wrong number of operands, different arities, or constants only.
        """
        arities = {e.arity for e in operands if isinstance(e, Expression)}
        if len(operands) != self.arity or len(arities) != 1:
            raise ValueError(
                f"expected {self.arity} operands, expressions of one arity or constants, got {len(operands)} "
                f"of arities {sorted(arities)}"
            )
        (arity,) = arities
        arguments = [f"%{i}" for i in range(arity)]
        first = next(e for e in operands if isinstance(e, Expression))
        program = list(first.instructions) if first._is_lean else []
        filled = {instruction.key: f"%{slot}" for slot, instruction in enumerate(program, start=arity)}

        def append(expression: Expression, inputs: Sequence[Operand]) -> Operand:
            slots, left = list(inputs), expression.instructions
            if slots == arguments:  # what is there already is taken as it is
                same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(program, left, strict=False)))
                slots, left = [*slots, *(f"%{arity + i}" for i in range(same))], left[same:]
            for instruction in left:
                values = tuple(slots[int(o[1:])] if isinstance(o, str) else o for o in instruction.operands)
                if instruction.function == "identity":
                    slots.append(values[0])
                    continue
                if values != instruction.operands:
                    instruction = Instruction(instruction.function, values, instruction.parameters)
                if instruction.key not in filled:
                    filled[instruction.key] = f"%{arity + len(program)}"
                    program.append(instruction)
                slots.append(filled[instruction.key])
            return slots[-1]

        found = [append(e, arguments) if isinstance(e, Expression) else float(e) for e in operands]
        result = append(self, found)
        if result != f"%{arity + len(program) - 1}":
            program.append(Instruction("identity", (result,)))
        return Expression(arity, tuple(program))

    def with_arguments(self, mapping: Sequence[int], arity: int) -> "Expression":
        """The same function in a longer argument list: argument i becomes argument ``mapping[i]``."""
        if arity == self.arity and list(mapping) == list(range(arity)):
            return self
        return self.substitute([Expression.argument(i, arity) for i in mapping])

    def to_json(self) -> dict[str, Any]:
        """As data of strict JSON; a number that is not finite becomes a string."""
        return {
            "arity": self.arity,
            "instructions": [
                {
                    "function": instruction.function,
                    "operands": [_to_json(o) for o in instruction.operands],
                    "parameters": {name: _to_json(value) for name, value in instruction.parameters},
                }
                for instruction in self.instructions
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Expression":
        """Inverse of `to_json`: ``Expression.from_json(e.to_json()) == e``.

        Raises
        ------
        FileFormatError
            The data is no expression, one of other primitives than `PRIMITIVES`, or of more than `MOST_INSTRUCTIONS`.
        """
        try:
            arity, instructions = _unpack(data, int, "arity", "instructions")
            program = []
            for entry in _typed(instructions, list):
                function, operands, parameters = _unpack(entry, str, "function", "operands", "parameters")
                program.append(
                    Instruction(
                        function,
                        tuple(_from_json(o) for o in _typed(operands, list)),
                        _sorted({name: _from_json(p) for name, p in _typed(parameters, dict).items()}),
                    )
                )
            return cls(arity, tuple(program))
        except (TypeError, ValueError, OverflowError, UnsupportedOperationError) as error:
            raise FileFormatError(
                f"the file holds a damaged or unknown expression: {error}; save it again, with a version of "
                f"torchmor not newer than this one"
            ) from error

    def text(self, names: Sequence[str], result: str | None = None) -> str:
        """As a formula in the given names of the arguments, in Python's syntax: ``"a * sigmoid(b)"``.

        Parts that occur several times get names: ``"p1 = a * b; p1 * sigmoid(p1)"``. Long texts are cut in the middle.

        Parameters
        ----------
        names
            Of the arguments.
        result
            Name of the value, for an assignment: ``"g = a * sigmoid(b)"``.
        """
        part = "p"
        while any(name.startswith(part) for name in names):
            part += "_"
        parts, formula = self._formulas(names, part)
        text = "; ".join([*parts, formula if result is None else f"{result} = {formula}"])
        half = LONGEST_TEXT // 2
        return text if len(text) <= LONGEST_TEXT else f"{text[:half]} … {text[-half:]}"

    def statements(self, names: Sequence[str], result: str, part: str) -> list[str]:
        """As a program of assignments, the last one to the result, in Python's syntax.

        Law: executed, it assigns the value to `result`. The statements are as many as there are instructions at most,
        and each is short.

        Parameters
        ----------
        names
            Of the arguments.
        result
            Name of the value.
        part
            Parts that occur several times, or are long, are named ``part1``, ``part2``, ….
        """
        parts, formula = self._formulas(names, part)
        return [*parts, f"{result} = {formula}"]

    def _formulas(self, names: Sequence[str], part: str) -> tuple[list[str], str]:
        """Return the assignments to named parts, and the formula of the value."""
        uses = [0] * (self.arity + len(self.instructions) - 1) + [1]
        for slot, instruction in reversed(list(enumerate(self.instructions, start=self.arity))):
            for operand in instruction.operands if uses[slot] else ():
                if isinstance(operand, str):
                    uses[int(operand[1:])] += 1
        parts: list[str] = []
        slots = [(name, _ATOM) for name in names]
        for slot, instruction in enumerate(self.instructions, start=self.arity):
            if not uses[slot]:  # nothing reads it
                slots.append(("", _ATOM))
                continue
            operands = [slots[int(o[1:])] if isinstance(o, str) else _number(o) for o in instruction.operands]
            formula = _formula(instruction, operands)
            shared = uses[slot] > 1 and not formula[0].isidentifier()
            if slot < len(uses) - 1 and (shared or len(formula[0]) > LONGEST_PART):
                parts.append(f"{part}{len(parts) + 1} = {formula[0]}")
                formula = f"{part}{len(parts)}", _ATOM
            slots.append(formula)
        return parts, slots[-1][0]


def apply_primitive(
    function: str,
    operands: Sequence[Expression | float],
    parameters: Mapping[str, Parameter | None] | None = None,
) -> Expression:
    """The expression ``function(*operands, **parameters)``, with common parts of the operands shared.

    Raises
    ------
    ValueError
        As `Expression` and `Expression.substitute`.
    """
    return Expression.of(function, **(parameters or {})).substitute(operands)


def _check(instruction: Instruction) -> None:
    """Raise ValueError unless the instruction can fill a slot."""
    function, operands = instruction.function, instruction.operands
    if function not in PRIMITIVES:
        raise ValueError(f"expected a primitive, got {short(function)}; known are {', '.join(PRIMITIVES)}")
    if len(operands) != PRIMITIVES[function] or not any(isinstance(o, str) for o in operands):
        raise ValueError(
            f"expected {PRIMITIVES[function]} operands of {function}, not all constant, got {short(operands)}"
        )
    for operand in operands:
        if isinstance(operand, str) and not _SLOT.fullmatch(operand):
            raise ValueError(f"expected an operand of {function} like '%0', got {short(operand)}")
    if function == "clamp" and not instruction.parameters:
        raise ValueError("expected min or max of clamp, got neither")
    for name, value in instruction.parameters:
        if name not in PARAMETERS.get(function, ()):
            raise ValueError(f"expected a parameter of {function}: {PARAMETERS.get(function, ())}, got {short(name)}")
        if value not in ("none", "tanh") if name == "approximate" else not isinstance(value, float):
            raise ValueError(f"expected a value of {function}'s parameter {name}, got {short(value)}")


def _sorted(
    parameters: Mapping[str, Parameter | None],
) -> tuple[tuple[str, Parameter], ...]:
    return tuple(
        sorted(
            (name, value if isinstance(value, str) else float(value))
            for name, value in parameters.items()
            if value is not None
        )
    )


def _to_json(value: Parameter) -> Parameter:
    return repr(value) if isinstance(value, float) and not isfinite(value) else value


def _from_json(value: Any) -> Operand:
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"expected a number or a string, got {short(value)}")
    return value if isinstance(value, str) else float(value)


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, got {short(value)}")
    return value


def _unpack(data: Any, first: type, *keys: str) -> tuple[Any, ...]:
    """The values of a dict of exactly these keys, the first of the given type."""
    if set(_typed(data, dict)) != set(keys):
        raise ValueError(f"expected the keys {keys}, got {short(tuple(data))}")
    return (_typed(data[keys[0]], first), *(data[key] for key in keys[1:]))


def _number(value: float) -> tuple[str, int]:
    text = repr(value).removesuffix(".0")
    return text, _NEG if text.startswith("-") else _ATOM


def _formula(instruction: Instruction, operands: list[tuple[str, int]]) -> tuple[str, int]:
    """Text of an instruction and how tightly it binds, from those of its operands."""

    def bound(index: int, precedence: int) -> str:
        text, own = operands[index]
        return text if own >= precedence else f"({text})"

    function = instruction.function
    if function == "identity":
        return operands[0]
    if function == "neg":
        return f"-{bound(0, _NEG)}", _NEG
    if function == "pow":
        return f"{bound(0, _ATOM)} ** {bound(1, _NEG)}", _POW
    if function in _INFIX:
        sign, precedence = _INFIX[function]
        return f"{bound(0, precedence)} {sign} {bound(1, precedence + 1)}", precedence
    named = [
        f"{name}={value!r}" if isinstance(value, str) else f"{name}={_number(value)[0]}"
        for name, value in instruction.parameters
    ]
    return f"{function}({', '.join([text for text, _ in operands] + named)})", _ATOM
