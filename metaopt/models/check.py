"""Symmetries put to the test on an example: what changes the outputs is none.

An example decides about a symmetry only if it would show a false one. Whether it does is seen from
half of the symmetry, x -> g x without y -> g^-T y, which is none: where the outputs stay even so (a
last layer of zeros, a precision too coarse for the change), nothing is decided.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaopt.models.groups import Symmetry
from metaopt.models.movement import move, touches

NORM = 0.5


@torch.no_grad()
def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Those in training mode and then in evaluation mode, with one state of the random numbers."""
    arguments: Sequence[Any] = ()
    keywords: Mapping[str, Any] = {}
    if isinstance(example, Mapping):
        keywords = example
    elif isinstance(example, tuple | list):
        arguments = example
    else:
        arguments = (example,)
    found: list[Tensor] = []
    for training in (True, False):
        model.train(training)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            leaves = pytree.tree_leaves(model(*arguments, **keywords))
        found += [x.double() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    return found


def _deviation(model: nn.Module, chosen: Sequence[Symmetry], example: Any) -> float:
    """The largest relative change of an output under a random element of each."""
    trial = copy.deepcopy(model)
    move(trial, touches(trial, chosen, NORM, seed=0))
    before, after = _outputs(copy.deepcopy(model), example), _outputs(trial, example)
    changes = [
        float((x - y).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
        for x, y in zip(before, after, strict=True)
    ]
    return max((math.inf if math.isnan(change) else change for change in changes), default=0.0)


def _tolerance(model: nn.Module) -> float:
    """Of relative changes of outputs: the square root of the precision of the parameters."""
    return max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()) ** 0.5


def deviations(model: nn.Module, symmetries: Sequence[Symmetry], example: Any) -> list[float]:
    """For each symmetry by how much it changes the outputs, where that is more than rounding.

    Args:
        model: copied; it stays as it is.
        symmetries: of it.
        example: the inputs: one tensor, a tuple of arguments, or a mapping of keyword arguments.

    Returns:
        Relative changes; 0 within the square root of the precision of the parameters.
    """
    tolerance = _tolerance(model)
    if _deviation(model, symmetries, example) <= tolerance:
        return [0.0] * len(symmetries)
    each = [_deviation(model, [symmetry], example) for symmetry in symmetries]
    return [change if change > tolerance else 0.0 for change in each]


def would_show(model: nn.Module, symmetry: Symmetry, example: Any) -> bool:
    """Whether the outputs on an example change under half of a symmetry.

    Args:
        model: copied; it stays as it is.
        symmetry: of it.
        example: as for ``deviations``.
    """
    half = replace(symmetry, outgoing=())
    return _deviation(model, [half], example) > _tolerance(model)
