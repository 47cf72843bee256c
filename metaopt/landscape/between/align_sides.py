"""Two models of one structure, of which the second moves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metaopt.symmetry.elements import Element
from metaopt.symmetry.groups import Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import Touch, weights


class Sides:
    """The tensors of a, which stay, and those of b, which move in place.

    Args:
        a: tensors by path.
        b: the same of the other model.
        counted: the paths of the parameters, whose distance is the aim. Buffers only move along.
    """

    def __init__(self, a: dict[str, Tensor], b: dict[str, Tensor], counted: Iterable[str]) -> None:
        self.a, self.b, self.counted = a, b, tuple(counted)
        self.changes = dict.fromkeys(b, 0)
        """How often each tensor of b has moved."""

    @staticmethod
    def of(a: nn.Module, b: nn.Module) -> Sides:
        """The sides of two models; b itself will move."""
        mine, other = ({**_tensors(one)} for one in (a, b))
        return Sides(mine, other, dict(a.named_parameters()))

    @torch.no_grad()
    def move(self, symmetry: Symmetry, element: Element) -> None:
        """b <- g . b in place."""
        for path, steps in touches_of([(symmetry, element)]).items():
            if path in self.b:
                self.b[path].copy_(weights(self.b[path], steps))
                self.changes[path] += 1

    def moved(self, path: str, steps: list[Touch]) -> Tensor:
        """One tensor of b as it would be."""
        return weights(self.b[path], steps)

    def distance(self) -> float:
        """(sum over parameters of |a - b|^2)^(1/2)."""
        return self.squared(self.counted) ** 0.5

    def squared(self, paths: Iterable[str]) -> float:
        """The sum over some parameters of |a - b|^2."""
        own = (path for path in paths if path in self.a)
        return sum(float((self.a[p] - self.b[p]).double().square().sum()) for p in own)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {path: tensor.detach() for path, tensor in named}
