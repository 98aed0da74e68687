"""Whether plain data, as of JSON, is what type hints say."""

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

#: Integers are those of 64 bits, which torch can take.
_LARGEST = 2**63 - 1


def mismatch(value: Any, hint: Any, name: str) -> str | None:
    """Return how a value differs from a type hint, in words; None if it does not.

    Lists count as tuples, dicts as dataclasses and mappings, and integers as floats. Numbers must be finite, and texts
    encodable.

    Parameters
    ----------
    value
        Plain data, or a dataclass of plain data.
    hint
        A dataclass, a TypedDict, Any (for any plain data), or what is built of them.
    name
        What the value is, for the words.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is NotRequired:
        return mismatch(value, arguments[0], name)
    if origin in (Union, types.UnionType):
        found = [mismatch(value, argument, name) for argument in arguments]
        return None if None in found else found[0]
    if origin is Literal:
        return None if value in arguments else _other(value, " or ".join(map(repr, arguments)), name)
    if is_typeddict(hint) or is_dataclass(hint):
        return _record(value, hint, name)
    kind = origin or hint
    if kind in (tuple, list):
        return _sequence(value, arguments, name)
    if isinstance(kind, type) and hasattr(kind, "keys"):  # dict and Mapping
        return _mapping(value, arguments, name)
    if hint is Any:
        return _plain(value, name)
    return None if _KINDS[hint](value) else _other(value, _WORDS[hint], name)


def _record(value: Any, hint: Any, name: str) -> str | None:
    hints, needed = _fields(hint)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if not isinstance(value, dict):
        return _other(value, "an object", name)
    unknown, missing = sorted(map(ascii, value.keys() - hints)), sorted(needed - value.keys())
    if unknown or missing:
        words = f"none of {', '.join(missing)}" if missing else f"the unknown {', '.join(unknown)[:200]}"
        return f"expected {', '.join(hints)} in {name}, got {words}"
    return _first(mismatch(value[key], hints[key], f"{name}.{key}") for key in value)


def _sequence(value: Any, arguments: tuple[Any, ...], name: str) -> str | None:
    if not isinstance(value, list | tuple):
        return _other(value, "a list", name)
    if len(arguments) == 1 or arguments[-1:] == (...,):
        return _first(mismatch(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        return _other(value, f"a list of {len(arguments)}", name)
    return _first(mismatch(value[i], arguments[i], f"{name}[{i}]") for i in range(len(value)))


def _mapping(value: Any, arguments: tuple[Any, ...], name: str) -> str | None:
    if not isinstance(value, dict):
        return _other(value, "an object", name)
    keys = _first(mismatch(key, str, f"a name in {name}") for key in value)
    return keys or _first(mismatch(item, arguments[1], f"{name}[{key!r}]") for key, item in value.items())


def _plain(value: Any, name: str) -> str | None:
    if isinstance(value, list | tuple):
        return _sequence(value, (Any,), name)
    if isinstance(value, dict):
        return _mapping(value, (str, Any), name)
    allowed = value is None or any(test(value) for test in _KINDS.values())
    return None if allowed else _other(value, "plain data", name)


@cache
def _fields(hint: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Names of a record with their hints, and which of them it needs."""
    hints = get_type_hints(hint, include_extras=True)
    if is_typeddict(hint):
        return hints, hint.__required_keys__
    own = {field.name: field for field in fields(hint)}
    needed = {name for name, one in own.items() if one.default is one.default_factory is MISSING}
    return {name: hints[name] for name in own}, frozenset(needed)


def _first(found: Any) -> str | None:
    return next((words for words in found if words is not None), None)


def _other(value: Any, expected: str, name: str) -> str:
    shown = ascii(value) if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"
    return f"expected {expected} as {name}, got {shown if len(shown) < 80 else shown[:79] + '…'}"


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


def _is_text(value: Any) -> bool:
    # JSON can hold halves of surrogate pairs, which nothing can print
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


_KINDS = {
    bool: lambda value: isinstance(value, bool),
    int: _is_integer,
    float: lambda value: _is_integer(value) or (type(value) is float and isfinite(value)),
    str: _is_text,
    types.NoneType: lambda value: value is None,
}
_WORDS = dict(zip(_KINDS, ("true or false", "an integer of 64 bits", "a finite number", "a text", "null"), strict=True))
