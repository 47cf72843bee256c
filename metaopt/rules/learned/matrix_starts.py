"""Where the rule for matrices starts: the steps that it takes before anything is learned.

last        steps of the last iterate, whose mixture is slow enough to be evaluated itself
averaged    steps of iterates that are averaged (``averaging``), by faster means: an average lags
            behind as slow means do, and with both steps swing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import Weights

VECTOR_SIZE = 0.03
"""Entries of the untrained step of a vector, before they are divided as those of matrices are."""
VECTOR_DECAY = 0.003
"""The weight decay of vectors that goes with an untrained step."""


@dataclass(frozen=True)
class Start:
    """Constants of untrained steps.

    Attributes:
        mixture: coefficients of the running means, and of the gradient itself.
        size: the largest singular value of the steps of all matrices side by side.
        wide: the factor on steps of matrices that read more than they make, as the A of an adapter.
        shrinks_after: steps shrink as 1 / (1 + t / shrinks_after), beside c; the decay of weights
            by its power 2/3.
        power: the power of c, how large momenta are beside gradients.
        averaged: p, weights are averaged over about the last 1 / p of the way; None: they are not.
    """

    mixture: tuple[float, float, float, float]
    size: float
    wide: float
    shrinks_after: float
    power: float
    averaged: float | None

    def sizes(
        self, W: Weights, by_entry: Sequence[bool], weight_decay: float
    ) -> tuple[Tensor, Tensor]:
        """The size of entries of untrained steps, and the decay that goes with them, [1, 1, L].

        Args:
            W: the weights, which fix the shapes.
            by_entry: of each whether it is a vector, which is divided entry by entry.
            weight_decay: that of matrices.
        """
        share = max(1, len(by_entry) - sum(by_entry)) ** -0.5
        sizes, decays = [], []
        for w, alone in zip(W, by_entry, strict=True):
            out, rest = w.shape[1:]
            wide = self.wide if rest > out else 1.0
            size = VECTOR_SIZE if alone else self.size * wide / max(out, rest) ** 0.5
            sizes.append(w.new_full((1, 1, 1), share * size))
            decay = VECTOR_DECAY if alone else weight_decay
            decays.append(w.new_full((1, 1, 1), share * decay))
        return torch.cat(sizes, dim=2), torch.cat(decays, dim=2)


STARTS = {
    "last": Start((0.6, 0.4, 0.0, 0.0), 1.0, 0.6, 400, 1.0, None),
    "averaged": Start((0.5, 0.1, 0.0, 0.4), 1.1, 1.0, 300, 0.9, 5.0),
}
"""By what is evaluated."""
