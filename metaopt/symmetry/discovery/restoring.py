"""Restores a model, and all that its code can change, after the code has run.

Kept are the attributes of modules and of plain objects, and the content of lists, dictionaries and
sets, wherever the model's code can reach them (``discovery.reachable``): in the model, in closures
and globals, in classes. The objects themselves are restored, not copies, so that other code which
shares them sees no change.
"""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaopt.symmetry.discovery.reachable import (
    CACHED,
    MISSING,
    contents,
    is_foreign,
    leading_nowhere,
    names_of,
    reachable,
    slots_of,
    values_of,
)
from metaopt.symmetry.discovery.watch import UntraceableError

PLAIN = (bool, int, float, str)
HOLDS_PLAIN = (dict, list, deque, CellType)
Restore = Callable[[], None]
Source = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How to read and how to set the state of a source of random numbers."""


class Restoring:
    """Keeps a record of what a model's code may change, and restores it.

    Args:
        model: the model whose code is going to run.

    Attributes:
        found: all objects that the code can reach.
        tensors: the tensors among them. Only ``holding_tensors`` restores their numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = found = reachable([model])
        self.tensors = [thing for thing in found if isinstance(thing, Tensor)]
        self._holders = [thing for thing in found if isinstance(thing, HOLDS_PLAIN)]
        functions = (thing for thing in found if isinstance(thing, FunctionType))
        self._named = names_of(function for function in functions if not is_foreign(function))
        self._sources = [*_global_sources(), *(s for x in found if (s := _source(x)))]
        self._draws = self._states()
        self._forgot = False
        self._restores = [restore for thing in found for restore in _restores(thing)]
        self._restores += [_of_name(*of_name) for of_name in values_of(self._named)]

    @functools.cached_property
    def nowhere(self) -> dict[int, Any]:
        """Those of ``found`` from which code reaches no tensor, by id."""
        return leading_nowhere(self.found)

    def drew(self) -> bool:
        """Whether random numbers were drawn since the record was made."""
        return _comparable(self._states()) != _comparable(self._draws)

    def restore(self) -> None:
        """Restore everything except the numbers in tensors."""
        for restore in self._restores:
            restore()
        if self._forgot:
            self.forget_cached()
        for (_, put), state in zip(self._sources, self._draws, strict=True):
            put(state)

    def plain(self) -> list[Any]:
        """The numbers, flags and texts that the code holds, and how long its lists are.

        Two of these differ if code that ran in between changed what may decide its way next time.
        """
        of_globals = {
            (id(namespace), name): value
            for namespace, name, value in values_of(self._named)
            if isinstance(value, PLAIN)
        }
        return [*(_plain(thing) for thing in self._holders), of_globals]

    @contextmanager
    def holding_tensors(self) -> Iterator[None]:
        """Restore everything, with the numbers in tensors, when the context is left."""
        # tensor.data has its own version counter: graphs that wait for a backward pass stay valid.
        kept = [
            (tensor, tensor.data, tensor.detach().clone())
            for tensor in self.tensors
            if not isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer)
        ]
        try:
            yield
        finally:
            for tensor, alias, numbers in kept:
                if not torch.equal(alias, numbers):
                    alias.copy_(numbers)
                if tensor.data_ptr() != alias.data_ptr():
                    tensor.data = alias
            self.restore()

    def hide_iterators(self) -> None:
        """Replace iterators, which cannot be rewound, by ones that raise, until ``restore``."""
        for thing in self._holders:
            if isinstance(thing, dict):
                for key in [key for key, value in dict.items(thing) if _is_iterator(value)]:
                    dict.__setitem__(thing, key, _Hidden())
            elif isinstance(thing, list):
                for i in [i for i, value in enumerate(list(thing)) if _is_iterator(value)]:
                    list.__setitem__(thing, i, _Hidden())
            elif isinstance(thing, CellType) and _is_iterator(contents(thing)):
                thing.cell_contents = _Hidden()
        for namespace, name, value in values_of(self._named):
            if _is_iterator(value):
                namespace[name] = _Hidden()

    def forget_cached(self) -> None:
        """Empty caches of functions, which hold no stand-ins yet, and with each ``restore``."""
        self._forgot = True
        for thing in self.found:
            if isinstance(thing, CACHED):
                thing.cache_clear()

    def _states(self) -> list[Any]:
        return [get() for get, _ in self._sources]


def _plain(thing: Any) -> Any:
    """What of an object of ``HOLDS_PLAIN`` decides ways of code: numbers, flags, texts, lengths."""
    if isinstance(thing, dict):
        return {key: value for key, value in dict.items(thing) if isinstance(value, PLAIN)}
    if isinstance(thing, CellType):
        held = contents(thing)
        return held if isinstance(held, PLAIN) else None
    return [value if isinstance(value, PLAIN) else None for value in thing]


class _Hidden(Iterator[Any]):
    """Stands in for an iterator; taking from it raises ``UntraceableError``."""

    def __next__(self) -> Any:
        raise UntraceableError("it takes from an iterator, which cannot go back")


def _is_iterator(thing: Any) -> bool:
    kind: Any = type(thing)
    return _iterates(kind)


@functools.lru_cache(maxsize=10_000)
def _iterates(kind: type) -> bool:
    return issubclass(kind, Iterator) and is_foreign(kind)


def _global_sources() -> list[Source]:
    sources: list[Source] = [
        (torch.get_rng_state, torch.set_rng_state),
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
    ]
    if torch.cuda.is_initialized():
        sources.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return sources


def _comparable(state: Any) -> Any:
    """The state of a random generator in a form that ``==`` can compare."""
    if isinstance(state, Tensor):
        state = state.numpy()
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if isinstance(state, dict):
        state = list(state.items())
    return [_comparable(part) for part in state] if isinstance(state, list | tuple) else state


def _source(thing: Any) -> Source | None:
    if isinstance(thing, torch.Generator):
        return thing.get_state, thing.set_state
    if isinstance(thing, random.Random) and not isinstance(thing, random.SystemRandom):
        return thing.getstate, thing.setstate
    if isinstance(thing, np.random.RandomState):
        return thing.get_state, thing.set_state
    if isinstance(thing, np.random.Generator):
        bits = thing.bit_generator
        return lambda: bits.state, functools.partial(setattr, bits, "state")
    return None


def _restores(thing: Any) -> Iterator[Restore]:
    """Functions that restore an object to its present content."""
    if isinstance(thing, torch.jit.ScriptModule):
        yield functools.partial(setattr, thing, "training", thing.training)
    elif isinstance(thing, dict):
        yield _of_items(thing)
    elif isinstance(thing, list):
        yield _of_list(thing)
    elif isinstance(thing, set):
        yield _of_collection(thing, set.update)
    elif isinstance(thing, deque):
        yield _of_collection(thing, deque.extend)
    elif isinstance(thing, np.ndarray) and not isinstance(thing, np.memmap):
        yield _of_bytes(thing)
    elif isinstance(thing, CellType):
        yield _of_cell(thing)
    elif isinstance(thing, CACHED):
        yield _of_cache(thing)
    elif isinstance(thing, type) and not is_foreign(thing):
        yield _of_class(thing)
    for name, value in slots_of(thing).items():
        yield _of_slot(thing, name, value)


def _same(found: Any, kept: Any) -> bool:
    """Whether two sequences hold the same objects, without calling their ``__eq__``."""
    return len(found) == len(kept) and all(a is b for a, b in zip(found, kept, strict=True))


def _of_items(found: dict[Any, Any]) -> Restore:
    kind: Any = OrderedDict if isinstance(found, OrderedDict) else dict
    keys, values = list(dict.keys(found)), list(dict.values(found))

    def restore() -> None:
        if not (_same(dict.keys(found), keys) and _same(dict.values(found), values)):
            kind.clear(found)
            kind.update(found, zip(keys, values, strict=True))

    return restore


def _of_list(found: list[Any]) -> Restore:
    kept = list(found)

    def restore() -> None:
        if not _same(found, kept):
            list.__setitem__(found, slice(None), kept)

    return restore


def _of_collection(found: Any, fill: Callable[[Any, Any], None]) -> Restore:
    kept = list(found)

    def restore() -> None:
        if not _same(list(found), kept):
            found.clear()
            fill(found, kept)

    return restore


def _of_bytes(found: Any) -> Restore:
    kept = found.copy()

    def restore() -> None:
        # Bytes are compared, since the == of objects in an array may run the user's code.
        if found.tobytes() != kept.tobytes():
            found[...] = kept

    return restore


def _of_cell(cell: CellType) -> Restore:
    kept = contents(cell)

    def restore() -> None:
        if kept is not MISSING:
            cell.cell_contents = kept
        elif contents(cell) is not MISSING:
            del cell.cell_contents

    return restore


def _of_cache(cached: Any) -> Restore:
    kept = cached.cache_info()

    def restore() -> None:
        nonlocal kept
        # Results for stand-ins cannot be told from the others, so that all are dropped.
        if cached.cache_info() != kept:
            cached.cache_clear()
            kept = cached.cache_info()

    return restore


def _of_name(namespace: dict[str, Any], name: str, value: Any) -> Restore:
    def restore() -> None:
        if namespace.get(name, MISSING) is not value:
            if value is MISSING:
                del namespace[name]
            else:
                namespace[name] = value

    return restore


def _of_slot(thing: Any, name: str, value: Any) -> Restore:
    def restore() -> None:
        if getattr(thing, name, MISSING) is value:
            return
        # Members of compiled code's classes that cannot be set may give new objects each time.
        with suppress(AttributeError):
            if value is MISSING:
                object.__delattr__(thing, name)
            else:
                # What cannot be written no code has written: it is computed when it is read.
                with suppress(AttributeError):
                    object.__setattr__(thing, name, value)

    return restore


def _of_class(kind: type) -> Restore:
    kept = dict(kind.__dict__)

    def restore() -> None:
        for name in [name for name in kind.__dict__ if name not in kept]:
            type.__delattr__(kind, name)
        for name, value in kept.items():
            if kind.__dict__.get(name, MISSING) is not value:
                type.__setattr__(kind, name, value)

    return restore
