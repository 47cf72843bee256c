"""Two models of one structure, of which the second moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from metaopt.symmetry.elements import Draws, Element, Identity, Translation
from metaopt.symmetry.groups import Slot, Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import weights

Log = list[tuple[Symmetry, Element]]
"""What was done, in order."""
GAIN = 1e-12
"""What a step must gain at least, in the sum of squared differences."""
ROUNDING = 4
"""The same in units of what rounding makes of it."""


class Shift(Translation):
    """x -> x + v with a given v, the same for all units of a block.

    Args:
        given: v [blocks, 1, any] of each slot, by its path.
    """

    def __init__(self, given: Mapping[str, Tensor], path: str = "") -> None:
        super().__init__(1, 0.0, Draws("", 0), path)
        self.given = dict(given)

    def at(self, slot: Slot) -> Element:
        """The translation of this slot."""
        return Shift(self.given, slot.path) if slot.path in self.given else Identity()

    def act(self, x: Tensor) -> Tensor:
        """x + v."""
        return x + self.given[self.path].to(x.device, x.dtype)


class Sides:
    """The tensors of a, which stay, and those of b, which move in place.

    Args:
        a: tensors by path.
        b: the same of the other model.
        counted: the paths of the parameters, whose distance is the aim. Buffers only move along.

    Attributes:
        log: what was done to b.
        changes: how often each tensor of b has moved.
    """

    def __init__(self, a: dict[str, Tensor], b: dict[str, Tensor], counted: Iterable[str]) -> None:
        self.a, self.b, self.counted = a, b, frozenset(counted)
        self.log: Log = []
        self.changes = dict.fromkeys(b, 0)

    def seeing(self, paths: Iterable[str]) -> Sides:
        """The same tensors, log and counts, where only some parameters count."""
        other = Sides(self.a, self.b, self.counted & frozenset(paths))
        other.log, other.changes = self.log, self.changes
        return other

    @torch.no_grad()
    def move(self, symmetry: Symmetry, element: Element) -> None:
        """b <- g . b in place."""
        self.replay([(symmetry, element)])
        self.log.append((symmetry, element))

    @torch.no_grad()
    def replay(self, log: Log) -> None:
        """Move b as a log says, each tensor rounded once."""
        for path, steps in touches_of(log).items():
            self.b[path].copy_(weights(self.b[path], steps))
            self.changes[path] += 1

    @torch.no_grad()
    def try_moving(self, steps: Log) -> bool:
        """Move b if the sum of squared differences falls by more than rounding makes of it."""
        found = touches_of(steps)
        gain, before, size, eps = 0.0, 0.0, 0.0, 0.0
        for path, touches in found.items():
            if path in self.counted:
                a, b = self.a[path], self.b[path]
                here = _squared(a, b)
                gain += here - _squared(a, weights(b, touches))
                before, size = (
                    before + here,
                    size + float(torch.linalg.vector_norm(b, dtype=torch.float64)) ** 2,
                )
                eps = max(eps, torch.finfo(b.dtype).eps)
        if not gain > GAIN + ROUNDING * eps * ((before * size) ** 0.5 + eps * size):
            return False
        self.replay(steps)
        self.log += steps
        return True

    def distance(self) -> float:
        """(sum over parameters of |a - b|^2)^(1/2)."""
        return sum(_squared(self.a[p], self.b[p]) for p in self.counted) ** 0.5


def _squared(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b, dtype=torch.float64)) ** 2


def tensors_of_model(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by path, each once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {path: tensor.detach() for path, tensor in named}
