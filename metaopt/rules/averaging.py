"""Averaged iterates: gradients are taken at one point, and another is evaluated.

    z' = z + f,    x' = x + c (z' - x),    y' = b x' + (1 - b) z'

f is the update that a rule proposes at y, where the gradient was taken; z is the fast iterate, x
the average of fast iterates, which is what one evaluates, and y lies between them. Weights that are
trained are y. Of the other two only d = z - y is kept, so that weights that somebody loads take
both along:

    u = f + d / b,    y' = y - (1 - b) / b d + (c + (1 - b) (1 - c)) u,    d' = b (1 - c) u
    x = y - (1 - b) / b d

With c = 1 the three are one and nothing is averaged; with c = r / (t + r) x is an average over
about the last 1 / r of the way.

Reference: Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, The road less scheduled (2024),
arXiv 2405.15682, for y; there c = 1 / t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import Weights

BETWEEN = 0.9
"""b, where between the average and the fast iterate gradients are taken."""
AHEAD = "ahead"
"""The name of d in the state of a rule, [B, 1, P]."""


@dataclass(frozen=True)
class Averaging:
    """What a rule proposes beside an update, if its iterates are averaged.

    Attributes:
        ahead: d = z - y, all entries of all weights, [B, 1, P].
        pull: c for each of the weights, [B, 1, L].
    """

    ahead: Tensor
    pull: Tensor

    def step(self, weights: Weights, updates: Weights) -> tuple[Weights, Tensor]:
        """The weights y' and d' after updates f.

        Args:
            weights: y, each [B, out, in].
            updates: f, of the same shapes; they move z.
        """
        # Numbers of whole weights, computed for all at once; the rest in few calls, not in a loop.
        ones = [1] * len(weights)
        along = (self.pull + (1 - BETWEEN) * (1 - self.pull)).split_with_sizes(ones, dim=2)
        beyond = (BETWEEN * (1 - self.pull)).split_with_sizes(ones, dim=2)
        d = apart(self.ahead, weights)
        u = torch._foreach_add(updates, d, alpha=1 / BETWEEN)
        trained = torch._foreach_add(weights, d, alpha=1 - 1 / BETWEEN)
        trained = torch._foreach_addcmul(trained, along, u)
        ahead = torch._foreach_mul(u, beyond)
        return tuple(trained), torch.cat([part.flatten(1) for part in ahead], dim=1)[:, None]

    def slower(self, rates: Sequence[float | Tensor]) -> Averaging:
        """The same with c min(1, lr), so that steps of no length leave everything where it is.

        Args:
            rates: lr of each of the weights.
        """
        if all(not isinstance(lr, Tensor) and lr >= 1 for lr in rates):
            return self
        each = zip(self.pull.split_with_sizes([1] * len(rates), dim=2), rates, strict=True)
        pulls = [
            c * (lr.clamp(max=1) if isinstance(lr, Tensor) else min(1.0, lr)) for c, lr in each
        ]
        return Averaging(self.ahead, torch.cat(pulls, dim=2))


def apart(ahead: Tensor, weights: Weights) -> Weights:
    """[B, 1, P] -> the shapes of the weights, each [B, out, in]."""
    parts = ahead[:, 0].split_with_sizes([W[0].numel() for W in weights], dim=1)
    return tuple(part.reshape_as(W) for part, W in zip(parts, weights, strict=True))


def averages(weights: Weights, ahead: Tensor) -> Weights:
    """x = y - (1 - b) / b d, where weights that are trained are to be evaluated.

    Args:
        weights: y, each [B, out, in].
        ahead: d, [B, 1, P].
    """
    each = zip(weights, apart(ahead, weights), strict=True)
    return tuple(torch.add(y, d, alpha=1 - 1 / BETWEEN) for y, d in each)


def between(averaged: Weights, ahead: Tensor) -> Weights:
    """y = x + (1 - b) / b d, the inverse of ``averages``.

    Args:
        averaged: x, each [B, out, in].
        ahead: d, [B, 1, P].
    """
    each = zip(averaged, apart(ahead, averaged), strict=True)
    return tuple(torch.add(x, d, alpha=1 / BETWEEN - 1) for x, d in each)
