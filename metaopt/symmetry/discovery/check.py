"""Tests symmetries on an example: one that changes the outputs is false.

An example proves something only if a false symmetry would change the outputs on it. To find out,
half of the symmetry is applied, x -> g x without y -> g^-T y, which is no symmetry. If even this
does not change the outputs (the last layer is zero, or the precision too coarse), the example
decides nothing.
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
    """The model's outputs in training and then in evaluation mode, from fixed random numbers."""
    # Layers that work in place would change the user's inputs.
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
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        # Places and flags are outputs as well as numbers are.
        tensors = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
        found += [x.to(torch.float64, copy=True) for x in tensors]
    return found


class Trial:
    """Applies symmetries to a model, runs it on an example, and restores it.

    The model itself is changed, not a copy, because its code may hold tensors elsewhere (in
    closures, globals, its own copies) that a copy would miss. Afterwards the model is restored bit
    for bit.

    Args:
        model: the model to run.
        example: the inputs: one tensor, a tuple of arguments, or a mapping of keyword arguments.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._model = model
        self._example = example
        self._guard = Restoring(model)
        self._before = self._outputs([])

    def _outputs(self, chosen: Sequence[Symmetry]) -> list[Tensor]:
        """The outputs after a random element of each of these symmetries."""
        touched = touches(self._model, chosen, NORM, seed=0)
        with self._guard.holding_tensors():
            move_for_a_trial(self._model, touched)
            return copy_context().run(_outputs, self._model, self._example)

    def _deviation(self, chosen: Sequence[Symmetry]) -> float:
        """The largest relative change ||x - y|| / ||x|| of an output x."""
        changes = [
            float((x - y).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
            for x, y in zip(self._before, self._outputs(chosen), strict=True)
        ]
        return max((math.inf if math.isnan(change) else change for change in changes), default=0.0)

    def deviations(self, symmetries: Sequence[Symmetry]) -> list[float]:
        """By how much each symmetry changes the outputs.

        Returns:
            One relative change for each symmetry; 0 if it is at most the square root of the machine
            precision of the parameters.
        """
        tolerance = _tolerance(self._model)
        if self._deviation(symmetries) <= tolerance:
            return [0.0] * len(symmetries)
        each = [self._deviation([symmetry]) for symmetry in symmetries]
        return [change if change > tolerance else 0.0 for change in each]

    def would_show(self, symmetry: Symmetry) -> bool:
        """Whether half of the symmetry changes the outputs, so that the example can decide."""
        half = replace(symmetry, outgoing=())
        return self._deviation([half]) > _tolerance(self._model)


def _tolerance(model: nn.Module) -> float:
    """The relative change that counts as rounding: sqrt of the parameters' machine precision."""
    return max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()) ** 0.5
