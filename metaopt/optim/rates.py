"""The options of groups, as a step takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Rate = float | Tensor


@dataclass(frozen=True)
class Rates:
    """The options of one parameter's group.

    Attributes:
        lr: factor on its updates.
        weight_decay: decoupled, in units of lr.
        learned_decay: factor on the decay that the rule itself proposes.
    """

    lr: Rate
    weight_decay: Rate
    learned_decay: Rate = 1.0

    @staticmethod
    def of(group: Mapping[str, Any]) -> Rates:
        """The options of a group; a group from an older state has no ``learned_decay``."""
        return Rates(group["lr"], group["weight_decay"], group.get("learned_decay", 1.0))

    def step(self, W: Tensor, f: Tensor, decay: Tensor | None) -> Tensor:
        """What W moves by: lr (f + (learned_decay - 1) decay - weight_decay W).

        Args:
            W: the parameter.
            f: its update, the rule's decay included.
            decay: the part of f that is a learned weight decay, or None if there is none.
        """
        if decay is not None and (
            isinstance(self.learned_decay, Tensor) or self.learned_decay != 1
        ):
            f = f + (self.learned_decay - 1) * decay
        if not isinstance(self.weight_decay, Tensor) and self.weight_decay == 0:
            return f if not isinstance(self.lr, Tensor) and self.lr == 1 else self.lr * f
        return self.lr * (f - self.weight_decay * W)
