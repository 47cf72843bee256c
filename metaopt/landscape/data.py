"""Data as models are given them: pairs (inputs, targets), inputs with tensors somewhere in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

Data = Any
"""A pair (inputs, targets), or an iterable of such pairs that can be run through again."""


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """The tensors in inputs: a tensor, or tuples, lists and mappings of tensors and other things.

    Args:
        inputs: what a model is called with.
    """
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, tuple | list | Mapping):
        for one in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors_of(one)


def with_tensors(inputs: Any, tensors: Iterable[Tensor]) -> Any:
    """The same inputs with other tensors, in the order of ``tensors_of``."""
    left = iter(tensors)

    def filled(one: Any) -> Any:
        if isinstance(one, Tensor):
            return next(left)
        if isinstance(one, Mapping):
            return {key: filled(value) for key, value in one.items()}
        if isinstance(one, tuple | list):
            return tuple(filled(value) for value in one)
        return one

    return filled(inputs)


def rows(inputs: Any, part: slice) -> Any:
    """Some of the samples of inputs."""
    return with_tensors(inputs, (x[part] for x in tensors_of(inputs)))


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor)


def pairs_of(data: Data) -> Iterable[tuple[Any, Tensor]]:
    """An iterable of pairs that can be run through again; raises ``ValueError``."""
    wanted = "data must be a pair (inputs, targets), or an iterable of such pairs"
    if _is_pair(data):
        pairs: Any = [data]
    elif isinstance(data, Tensor | str | Mapping) or not isinstance(data, Iterable):
        raise ValueError(f"{wanted}, found {type(data).__name__}")
    elif isinstance(data, Iterator):
        raise ValueError(f"{wanted} that can be run through twice, found {type(data).__name__}")
    else:
        pairs = data
    return _Pairs(pairs, wanted)


class _Pairs:
    """Pairs that are looked at as they come."""

    def __init__(self, pairs: Iterable[Any], wanted: str) -> None:
        self._pairs, self._wanted = pairs, wanted

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for pair in self._pairs:
            if not _is_pair(pair) or pair[1].dim() == 0:
                raise ValueError(f"{self._wanted} of tensors, found {type(pair).__name__} in it")
            yield pair[0], pair[1]
