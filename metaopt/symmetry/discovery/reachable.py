"""The objects that code can reach from an object, and so may read or change.

The walk goes from an object to its attributes, its items and the functions of its class, and from a
function to its closure, its defaults and the globals that it names. It does not enter the code of
torch, numpy, the standard library and this package, which holds no objects of the user's.
"""

from __future__ import annotations

import dis
import functools
import sys
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis)}
    | {torch.dtype, torch.device, torch.Size, torch.layout}
)
HOLDERS = ("torch", "types", "collections", "weakref", "argparse")
"""Modules other than the user's whose objects hold what the user gives them."""
CONTAINERS = (list, tuple, set, frozenset, deque)
CACHED = type(functools.lru_cache(lambda: None))
MISSING = object()
Named = tuple[dict[str, Any], str, Any]
"""A namespace, a name in it, and its value, or ``MISSING``."""
_BY_NAME = {
    number: int(name == "LOAD_GLOBAL")
    for name, number in dis.opmap.items()
    if name.endswith(("GLOBAL", "_NAME"))
}
"""Instructions that go by the name of a global, and by how many bits its number is shifted."""


def is_foreign(thing: Any) -> bool:
    """Whether a class, function or module is not part of the user's code."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return is_foreign_name(str(name))


@functools.cache
def is_foreign_name(module: str) -> bool:
    """Whether the module of this name is not part of the user's code."""
    top = module.partition(".")[0]
    return top in ("torch", "numpy", "metaopt") or top in sys.stdlib_module_names


def reachable(roots: Iterable[Any], known: Collection[int] = ()) -> list[Any]:
    """All objects that code can reach from ``roots``, each once, without numbers and strings.

    Args:
        roots: where the walk begins.
        known: the ids of objects that it does not enter, and that are kept alive elsewhere.
    """
    seen: dict[int, Any] = {}
    left = list(roots)
    while left:
        found = left.pop()
        if type(found) in ATOMS or id(found) in seen or id(found) in known:
            continue
        seen[id(found)] = found
        left += _behind(found)
    return list(seen.values())


def leading_nowhere(found: Iterable[Any]) -> dict[int, Any]:
    """Of objects, and of all that they lead to, those from which code reaches no tensor, by id."""
    # They are walked again: some objects give new ones each time that they are asked.
    seen: dict[int, Any] = {}
    before: dict[int, list[int]] = {}
    left = list(found)
    while left:
        thing = left.pop()
        if type(thing) in ATOMS or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        for behind in _behind(thing):
            if type(behind) not in ATOMS:
                before.setdefault(id(behind), []).append(id(thing))
                left.append(behind)
    leading = [number for number, thing in seen.items() if isinstance(thing, Tensor)]
    nowhere = dict(seen)
    while leading:
        number = leading.pop()
        if nowhere.pop(number, None) is not None:
            leading += before.get(number, ())
    return nowhere


def named_globals(function: FunctionType) -> list[Named]:
    """(namespace, name, value) of the globals of a function and of the modules that it names."""
    namespace = function.__globals__
    return [
        found
        for used, names in _names(function.__code__)
        for name in used
        for found in _values(namespace, name, names)
    ]


def names_of(
    functions: Iterable[FunctionType],
) -> list[tuple[dict[str, Any], str, Collection[str]]]:
    """(namespace, name, all names beside it) of the globals of functions, each name once."""
    found: dict[tuple[int, str], tuple[dict[str, Any], str, dict[str, None]]] = {}
    for function in functions:
        namespace = function.__globals__
        for used, names in _names(function.__code__):
            for name in used:
                beside = found.setdefault((id(namespace), name), (namespace, name, {}))[2]
                beside.update(dict.fromkeys(names))
    return list(found.values())


def values_of(named: Iterable[tuple[dict[str, Any], str, Collection[str]]]) -> list[Named]:
    """What ``named_globals`` finds now, of ``names_of``; each once."""
    found = (value for one in named for value in _values(*one))
    return list({(id(value[0]), value[1]): value for value in found}.values())


def _values(namespace: dict[str, Any], name: str, names: Iterable[str]) -> Iterator[Named]:
    """A global, and those of its names that it has, if it is a module of the user's."""
    value = namespace.get(name, MISSING)
    yield namespace, name, value
    if isinstance(value, ModuleType) and not is_foreign(value):
        own = vars(value)
        yield from ((own, n, own[n]) for n in names if n in own)


@functools.cache
def _names(code: CodeType) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Names of globals, and all names, of code and of each code within it that has the former."""
    pairs = ((_global_names(part), part.co_names) for part in _with_nested(code))
    return [(used, names) for used, names in pairs if used]


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


@functools.cache
def _global_names(code: CodeType) -> tuple[str, ...]:
    """The names that code reads, sets or deletes as globals, and not as attributes.

    They are those of the instructions in ``_BY_NAME`` of ``dis.get_instructions``, which makes so
    much of each instruction that a search for the symmetries of a large model took twice as long.
    """
    used: dict[str, None] = {}
    high = 0  # what EXTENDED_ARG puts before the next argument
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        index = high | argument
        high = index << 8 if operation == dis.EXTENDED_ARG else 0
        if operation in _BY_NAME:
            used[code.co_names[index >> _BY_NAME[operation]]] = None
    return tuple(used)


def asks_for_tensors(code: CodeType) -> bool:
    """Whether code may take another branch for a tensor than for the stand-in of a trace."""
    names = {name for part in _with_nested(code) for name in part.co_names}
    asks_for_types = not names.isdisjoint(("isinstance", "type"))
    return "is_tensor" in names or ("Tensor" in names and asks_for_types)


def slots_of(thing: Any) -> dict[str, Any]:
    """The values, or ``MISSING``, of the ``__slots__`` of an object of a user's class, by name."""
    kind: Any = type(thing)
    return {name: getattr(thing, name, MISSING) for name in _slots(kind)}


@functools.lru_cache(maxsize=10_000)
def _slots(kind: type) -> tuple[str, ...]:
    kinds = [base for base in kind.__mro__ if not is_foreign(base)]
    members = [member for base in kinds for member in base.__dict__.values()]
    return tuple(m.__name__ for m in members if isinstance(m, MemberDescriptorType))


def attributes(thing: Any) -> dict[str, Any] | None:
    """The ``__dict__`` of an object, read without running code of its class, or None."""
    try:
        found = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def contents(cell: CellType) -> Any:
    """The content of a closure's cell, or ``MISSING`` if the cell is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _behind(thing: Any) -> Iterable[Any]:
    """The objects that an object leads to directly."""
    if isinstance(thing, FunctionType):
        return [] if is_foreign(thing) else _behind_function(thing)
    if isinstance(thing, type):
        return [] if is_foreign(thing) else [*thing.__dict__.values(), *thing.__bases__]
    if isinstance(thing, CellType):
        return [contents(thing)]
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, BuiltinMethodType):
        return [thing.__self__]
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, staticmethod | classmethod | CACHED):
        return [thing.__wrapped__]
    if isinstance(thing, property):
        return [thing.fget, thing.fset]
    if isinstance(thing, functools.cached_property):
        return [thing.func]
    if isinstance(thing, np.ndarray):
        # A numpy array may be a view of a tensor's memory, and then holds the tensor.
        return [thing.base]
    if isinstance(thing, weakref.ref):
        return [thing()]
    if isinstance(thing, torch.jit.ScriptModule):
        return [*thing.parameters(), *thing.buffers(), *thing.children()]
    return _behind_object(thing)


def _behind_function(function: FunctionType) -> list[Any]:
    return [
        *(function.__closure__ or ()),
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
        function.__dict__,
        *(value for _, _, value in named_globals(function)),
    ]


def _behind_object(thing: Any) -> Iterable[Any]:
    kind = type(thing)
    items: Iterable[Any] = ()
    if isinstance(thing, dict):
        items = chain(dict.keys(thing), dict.values(thing))
    elif isinstance(thing, CONTAINERS):
        items = list(thing)
    is_known = not is_foreign(kind) or kind.__module__.partition(".")[0] in HOLDERS
    if not (is_known or isinstance(thing, nn.Module | Tensor)):
        return items
    return chain(items, slots_of(thing).values(), [attributes(thing), kind])
