"""Checks that a saved state belongs to this run, before anything is restored from it.

An error that still occurs while restoring, such as a lack of memory, then is what it seems to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.base.errors import shown
from metaopt.base.network import Weights

LARGEST_COUNT = 2**53
"""The largest number of steps: floating-point numbers of JSON are exact up to here."""


def require_like(saved: Any, like: Any, place: str) -> None:
    """Raise ``ValueError``, one line, unless ``saved`` has the same structure as ``like``.

    Keys, lengths, and shapes and dtypes of tensors are compared; numbers may differ.

    Args:
        saved: a part of a saved state.
        like: the same part of the state of this run.
        place: the name of this part, for the error message.
    """
    match like:
        case Tensor():
            alike = isinstance(saved, Tensor) and _kind(saved) == _kind(like)
        case Mapping():
            alike = isinstance(saved, Mapping) and saved.keys() == like.keys()
        case list() | tuple():
            alike = isinstance(saved, list | tuple) and len(saved) == len(like)
        case _:
            alike = isinstance(saved, int | float) == isinstance(like, int | float)
    if not alike:
        raise ValueError(f"{place}: found {_told(saved)}, expected {_told(like)}")
    if isinstance(like, Mapping):
        for key, value in like.items():
            require_like(saved[key], value, f"{place}.{key}")
    elif isinstance(like, list | tuple):
        for i, value in enumerate(like):
            require_like(saved[i], value, f"{place}[{i}]")


def require_plain(saved: Any, place: str) -> None:
    """Raise ``ValueError``, one line, if anything in ``saved`` is not plain data.

    Without this check, a tensor in the place of a number would fail when it is compared.

    Args:
        saved: a part of a saved state.
        place: the name of this part, for the error message.
    """
    left = [saved]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            left += value
        elif not (value is None or isinstance(value, bool | int | float | str)):
            raise ValueError(f"{place}: found {_told(value)} in it, expected plain data")


def require_within(saved: Any, most: float, place: str) -> None:
    """Raise ``ValueError``, one line, unless ``saved`` is a number from 0 to ``most``.

    Args:
        saved: a part of a saved state; a whole number if ``most`` is one.
        most: the largest that makes sense.
        place: the name of this part, for the error message.
    """
    if type(saved) not in ((int,) if isinstance(most, int) else (int, float)) or not (
        0 <= saved <= most
    ):
        raise ValueError(f"{place}: found {shown(saved)}, expected a number from 0 to {most:g}")


def require_adam(saved: Any, groups: Sequence[Sequence[nn.Parameter]]) -> None:
    """Raise unless a state of Adam is of these groups; other versions of torch keep other options.

    Args:
        saved: the ``state_dict`` of Adam.
        groups: the parameters of each group.

    Raises:
        LookupError, TypeError, ValueError: where it is not.
    """
    parameters = [parameter for group in groups for parameter in group]
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != [len(group) for group in groups] or not saved["state"].keys() <= {
        *range(len(parameters))
    }:
        raise ValueError(f"adam: found groups of {sizes} parameters")
    for i, entry in saved["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            require_like(entry[name], parameters[i].detach(), f"adam.state[{i}].{name}")
        require_like(entry["step"], torch.zeros(()), f"adam.state[{i}].step")


def require_parts(parts: Any, weights: Weights, batch: int, rules: Iterable[str]) -> None:
    """Raise unless the parts of an inner state fit these weights and rules.

    Args:
        parts: the parts of all processes (``shares.Part``).
        weights: weights of the expected shapes, of at least one trajectory.
        batch: the number of trajectories in all parts together.
        rules: the names of the rules.

    Raises:
        LookupError, TypeError, ValueError: where they are not.
    """
    counts = [part["count"] for part in parts]
    if sum(counts) != batch or min(counts) < 1:
        raise ValueError(f"inner.parts: found {counts} trajectories, expected {batch}")
    for i, part in enumerate(parts):
        like = tuple(W.new_empty(part["count"], *W.shape[1:], device="cpu") for W in weights)
        require_like(part["weights"], like, f"inner.parts[{i}].weights")
        if not all(isinstance(own, Mapping) for own in part["optimizer"].values()):
            raise ValueError("inner.parts: an older version of metaopt wrote them")
        names = {rule: [*own] for rule, own in part["optimizer"].items()}
        if names != {rule: [*own] for rule, own in parts[0]["optimizer"].items()}:
            raise ValueError(f"inner.parts[{i}].optimizer: other tensors than in inner.parts[0]")
    if unknown := parts[0]["optimizer"].keys() - {*rules}:
        raise ValueError(f"inner.parts: found rules {', '.join(sorted(unknown))}")


def _kind(tensor: Tensor) -> tuple[list[int], torch.dtype]:
    return [*tensor.shape], tensor.dtype


def _told(value: Any) -> str:
    match value:
        case Tensor():
            return f"{[*value.shape]} of {value.dtype}"
        case Mapping():
            return f"{{{', '.join(map(str, value))}}}"[:120]
        case list() | tuple():
            return f"{len(value)} of them"
        case _:
            return f"{type(value).__name__}"
