"""Where an ODE function reads values besides its arguments: closures, attributes, defaults."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: Steps from a function to a value: ("cell", name), ("default", i), ("keyword", name), ("argument", i), ("self", ""),
#: ("function", ""), ("attribute", name), ("item", key), ("global", name).
Place = tuple[tuple[str, Any], ...]

#: Values that are looked at lie at most so many steps away.
DEPTH = 8

_OF_MODULES = frozenset(vars(nn.Module())) - {"_buffers"} | {"forward"}
_FOREIGN = ("torch", "torchdiffeq", "torchdyn", "torchmor", "numpy", "builtins", "functools", "collections")


def values(func: Any) -> dict[Place, Any]:
    """Return tensors and numbers that a function can read, by their places; parameters are its own, and left out."""
    found: dict[Place, Any] = {}
    seen: set[int] = set()

    def look(place: Place, value: Any) -> None:
        if isinstance(value, nn.Parameter) or len(place) > DEPTH:
            return
        if place and isinstance(value, Tensor | float | int):
            found[place] = value
        elif id(value) not in seen:
            seen.add(id(value))
            for step, inner in steps(value):
                look((*place, step), inner)

    look((), func)
    return found


def functions(func: Any) -> dict[Place, Any]:
    """Return the functions that modules and objects hold in attributes, by their places: a forward may set them."""
    found: dict[Place, Any] = {}
    seen: set[int] = set()

    def look(place: Place, value: Any) -> None:
        if id(value) in seen or len(place) > DEPTH:
            return
        seen.add(id(value))
        if place and place[-1][0] == "attribute" and isinstance(value, types.FunctionType | functools.partial):
            found[place] = value
        for step, inner in steps(value):
            look((*place, step), inner)

    look((), func)
    return found


@contextmanager
def holding(func: Any, held: Mapping[Place, Any]) -> Iterator[None]:
    """Give back functions to places that have none, while the context lasts: a forward may reset them at its end."""
    empty = {place: value for place, value in held.items() if _nothing_at(func, place)}
    try:
        for place, value in empty.items():
            put(func, place, value)
        yield
    finally:
        for place in empty:
            put(func, place, None)


def _nothing_at(func: Any, place: Place) -> bool:
    *path, (_, name) = place
    return getattr(get(func, tuple(path)), name, None) is None


def get(func: Any, place: Place) -> Any:
    """Return the value at a place.

    Raises
    ------
    LookupError, AttributeError
        There is none.
    """
    for step in place:
        func = getattr(func, step[1]) if step[0] == "attribute" else dict(steps(func))[step]
    return func


def put(func: Any, place: Place, value: Any) -> None:
    """Put a value at a place."""
    *path, (kind, key) = place
    owner = get(func, tuple(path))
    if kind == "cell":
        owner.__closure__[owner.__code__.co_freevars.index(key)].cell_contents = value
    elif kind == "default":
        owner.__defaults__ = (*owner.__defaults__[:key], value, *owner.__defaults__[key + 1 :])
    elif kind == "argument":
        given = (*owner.args[:key], value, *owner.args[key + 1 :])
        owner.__setstate__((owner.func, given, owner.keywords, vars(owner)))
    elif kind == "keyword" and isinstance(owner, functools.partial):
        owner.keywords[key] = value
    elif kind == "keyword":
        owner.__kwdefaults__[key] = value
    elif kind == "item":
        owner[key] = value
    elif kind == "global":
        owner.__globals__[key] = value
    else:
        setattr(owner, key, value)


def words(place: Place) -> str:
    """Return a place as a reader of the function knows it: the name of a variable, or a path of attributes."""
    names = [str(key) for kind, key in place if kind not in ("self", "function")]
    return ".".join(names) or "the function"


def steps(value: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    """Yield what a function, module or object holds, with the step that leads there."""
    if isinstance(value, types.MethodType):
        yield ("self", ""), value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield ("cell", name), cell.cell_contents
            except ValueError:  # not filled yet
                continue
        used = ((name, value.__globals__.get(name)) for name in value.__code__.co_names)
        yield from (
            (("global", name), one) for name, one in used if isinstance(one, Tensor | float | int | dict | list)
        )
        yield from ((("default", i), one) for i, one in enumerate(value.__defaults__ or ()))
        yield from ((("keyword", name), one) for name, one in (value.__kwdefaults__ or {}).items())
    elif isinstance(value, functools.partial):
        yield ("function", ""), value.func
        yield from ((("argument", i), one) for i, one in enumerate(value.args))
        yield from ((("keyword", name), one) for name, one in value.keywords.items())
    elif isinstance(value, nn.Module):
        yield from ((("attribute", name), one) for name, one in vars(value).items() if name not in _OF_MODULES)
        yield from ((("attribute", name), one) for name, one in value._buffers.items())
        yield from ((("attribute", name), one) for name, one in value._modules.items())
    elif isinstance(value, dict):
        yield from ((("item", key), one) for key, one in value.items())
    elif isinstance(value, list):
        yield from ((("item", i), one) for i, one in enumerate(value))
    elif type(value).__module__.partition(".")[0] not in _FOREIGN and hasattr(value, "__dict__"):
        yield from ((("attribute", name), one) for name, one in vars(value).items())


def identity(func: Any, module: nn.Module) -> str:
    """Return what tells an ODE function from others that a module could solve, the same in copies of the module."""
    if isinstance(func, nn.Module):
        path = next((name for name, one in module.named_modules() if one is func), None)
        return type(func).__qualname__ if path is None else f"self.{path}".removesuffix(".")
    if isinstance(func, types.MethodType):
        return f"{identity(func.__self__, module)}.{func.__name__}"
    if isinstance(func, functools.partial):
        return f"partial({identity(func.func, module)})"
    if isinstance(func, types.FunctionType):
        kinds = (nn.Module, types.FunctionType, types.MethodType, functools.partial)
        uses = [identity(one, module) for _, one in steps(func) if isinstance(one, kinds) and one is not func]
        return f"{func.__qualname__}({', '.join([*uses, *func.__code__.co_freevars, *func.__code__.co_names])})"
    return type(func).__qualname__
