"""Symmetries put to the test on an example: what changes the outputs is none.

An example decides about a symmetry only if it would show a false one. Whether it does is seen from
half of the symmetry, x -> g x without y -> g^-T y, which is none: where the outputs stay even so (a
last layer of zeros, a precision too coarse for the change), nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaopt.symmetry.discovery.restoring import Restoring
from metaopt.symmetry.groups import Symmetry
from metaopt.symmetry.modules import move_for_a_trial, touches

NORM = 0.5


@torch.no_grad()
def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Those in training mode and then in evaluation mode, with one state of the random numbers."""
    # Layers in place would change the user's inputs.
    example = pytree.tree_map_only(Tensor, Tensor.clone, example)
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
        tensors = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
        found += [x.to(torch.float64, copy=True) for x in tensors]
    return found


class Trial:
    """A model on an example, with some of its symmetries carried out and taken back.

    It is tried in place: what code of the model may hold elsewhere (in closures, globals, copies of
    its own) is part of it, and is not in a copy of the model. Afterwards the model is as it was, to
    the bit.

    Args:
        model: to try.
        example: the inputs: one tensor, a tuple of arguments, or a mapping of keyword arguments.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._model = model
        self._example = example
        self._guard = Restoring(model)
        self._before = self._outputs([])

    def _outputs(self, chosen: Sequence[Symmetry]) -> list[Tensor]:
        """Those with a random element of each symmetry."""
        touched = touches(self._model, chosen, NORM, seed=0)
        with self._guard.holding_tensors():
            move_for_a_trial(self._model, touched)
            return copy_context().run(_outputs, self._model, self._example)

    def _deviation(self, chosen: Sequence[Symmetry]) -> float:
        """The largest relative change of an output."""
        changes = [
            float((x - y).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
            for x, y in zip(self._before, self._outputs(chosen), strict=True)
        ]
        return max((math.inf if math.isnan(change) else change for change in changes), default=0.0)

    def deviations(self, symmetries: Sequence[Symmetry]) -> list[float]:
        """For each symmetry by how much it changes the outputs, where that is more than rounding.

        Returns:
            Relative changes; 0 within the square root of the precision of the parameters.
        """
        tolerance = _tolerance(self._model)
        if self._deviation(symmetries) <= tolerance:
            return [0.0] * len(symmetries)
        each = [self._deviation([symmetry]) for symmetry in symmetries]
        return [change if change > tolerance else 0.0 for change in each]

    def would_show(self, symmetry: Symmetry) -> bool:
        """Whether the outputs change under half of a symmetry."""
        half = replace(symmetry, outgoing=())
        return self._deviation([half]) > _tolerance(self._model)


def _tolerance(model: nn.Module) -> float:
    """Of relative changes of outputs: the square root of the precision of the parameters."""
    return max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()) ** 0.5
