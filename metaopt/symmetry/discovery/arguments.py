"""What the arguments of a node of a symbolic trace say, and what code does with numbers."""

from __future__ import annotations

import inspect
import operator
from contextlib import suppress
from types import FunctionType
from typing import Any

from torch import dtype, fx

from metaopt.symmetry.discovery.flow import Unknown, Variable, mapped
from metaopt.symmetry.discovery.names import TO_INTEGERS

INPLACE = frozenset(
    f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
)
"""Operators that write to their first operand."""


def taken(node: fx.Node) -> int:
    """How many of the tensors that a node returns the code takes; 0 if that is not known."""
    places = [user.args[1] if user.target is operator.getitem else None for user in node.users]
    numbers = [place for place in places if isinstance(place, int) and place >= 0]
    return max(numbers) + 1 if numbers and len(numbers) == len(places) else 0


def pieces(name: str, args: Any, kwargs: Any) -> int:
    """How many tensors ``chunk`` or ``split`` returns (``chunk`` at most); 0 if it is not known."""
    names = {"chunk": "chunks", "split": "split_size_or_sections"}
    asked = args[1] if len(args) > 1 else kwargs.get(names.get(name, ""))
    if name == "split" and isinstance(asked, tuple | list):
        return len(asked)
    return asked if name == "chunk" and isinstance(asked, int) else 0


def item(thing: Any, place: Any) -> Any:
    """An item of a tuple, or of what is not known."""
    try:
        return thing[place]
    except (TypeError, IndexError, KeyError):
        return Unknown()


def is_of_numbers(function: Any) -> bool:
    """Whether a function of Python computes numbers from numbers."""
    module = str(getattr(function, "__module__", ""))
    return module in ("_operator", "operator", "math", "builtins")


def computed(function: Any, args: Any, kwargs: Any) -> Any:
    """A number computed from numbers; unknown if one of them is."""
    unknown: list[Unknown] = []
    mapped((args, kwargs), Unknown, unknown.append)
    if unknown and function is not operator.getitem:
        return Unknown()
    try:
        return function(*args, **kwargs)
    except Exception:
        return Unknown()


def written(name: str, function: Any, args: Any, kwargs: Any) -> Variable | None:
    """The argument that a function or method writes to, as far as its name and flags tell."""
    target = kwargs.get("out")
    given = dict(kwargs)
    if isinstance(function, FunctionType):
        with suppress(TypeError, ValueError):
            given |= inspect.signature(function).bind(*args, **kwargs).arguments
    ends = name.endswith("_") and not name.endswith("__")
    if ends or name in INPLACE or given.get("inplace") is True:
        target = args[0] if args else given.get("input")
    return target if isinstance(target, Variable) else None


def cast(name: str, args: Any, kwargs: Any) -> str:
    """``identity`` if a tensor becomes one of real numbers, ``cast`` if that is not known.

    Args:
        name: how the operation is called: ``to``, ``long``.
        args: its arguments, the tensor first.
        kwargs: by name.
    """
    given = [*args[1:], *kwargs.values()]
    dtypes = [one for one in given if isinstance(one, dtype)]
    if dtypes:
        return "identity" if dtypes[0].is_floating_point else "cast"
    # ``type`` also takes the name of a dtype.
    unknown = name == "type" or any(isinstance(one, Unknown | Variable) for one in given)
    return "cast" if unknown or name in TO_INTEGERS else "identity"
