"""Tests symmetries on an example: one that changes the outputs is false.

An example proves something only if a false symmetry would change the outputs on it. To find out,
half of the symmetry is applied, x -> g x without y -> g^-T y, which is no symmetry. If even this
does not change the outputs (the last layer is zero, or the precision too coarse), the example
decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
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
        self._tolerance = _rounding(parameter.dtype for parameter in model.parameters())

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
            precision of the parameters, or of what the model computes in a coarser one.
        """
        if self._deviation(symmetries) <= self._tolerance:
            return [0.0] * len(symmetries)
        self._tolerance = max(self._tolerance, self._computed())
        each = [self._deviation([symmetry]) for symmetry in symmetries]
        return [change if change > self._tolerance else 0.0 for change in each]

    def _computed(self) -> float:
        """The rounding of what the model's code computes, which may be coarser than its weights."""
        with _Watching() as watching:
            self._outputs([])
        return _rounding(watching.seen)

    def would_show(self, symmetry: Symmetry) -> bool:
        """Whether half of the symmetry changes the outputs, so that the example can decide."""
        half = replace(symmetry, outgoing=())
        return self._deviation([half]) > self._tolerance


class _Watching(TorchFunctionMode):
    """Keeps the dtypes of what functions return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in pytree.tree_leaves(result) if isinstance(x, Tensor)}
        return result


def _rounding(dtypes: Iterable[torch.dtype]) -> float:
    """The relative change that counts as rounding: sqrt of the coarsest machine precision."""
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    return max((torch.finfo(dtype).eps for dtype in floating), default=0.0) ** 0.5
