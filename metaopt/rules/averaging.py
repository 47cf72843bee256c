"""Averaged iterates: gradients are taken at one point, and another is evaluated.

    z' = z + f,    x' = x + c (z' - x),    y' = b x' + (1 - b) z'

f is the update that a rule proposes at y, where the gradient was taken; z is the fast iterate, x
the average of fast iterates, which is what one evaluates, and y lies between them. What weights
hold is y; of the other two only z is kept, since x = (y - (1 - b) z) / b. With c = 1 the three are
one and nothing is averaged; with c = r / (t + r) x is an average over about the last 1 / r of the
way.

Reference: Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, The road less scheduled (2024),
for y; there c = 1 / t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.network import Weights

BETWEEN = 0.9
"""b, where between the average and the fast iterate gradients are taken."""
FAST = "fast"
"""The name of z in the state of a rule, [B, 1, P]."""


@dataclass(frozen=True)
class Averaging:
    """What a rule proposes beside an update, if its iterates are averaged.

    Attributes:
        fast: z, all entries of all weights, [B, 1, P].
        pull: c for each of the weights, [B, 1, L].
    """

    fast: Tensor
    pull: Tensor

    def step(self, weights: Weights, updates: Weights) -> tuple[Weights, Tensor]:
        """The weights y' and the fast iterates z' after updates f.

        Args:
            weights: y, each [B, out, in].
            updates: f, of the same shapes; they move z.
        """
        fast, slow = [], []
        for i, (y, z, f) in enumerate(zip(weights, self._fast(weights), updates, strict=True)):
            x, z = _average(y, z), z + f
            x = torch.lerp(x, z, self.pull[:, :, i, None])
            slow.append(torch.lerp(z, x, BETWEEN))
            fast.append(z.flatten(1)[:, None])
        return tuple(slow), torch.cat(fast, dim=2)

    def _fast(self, weights: Weights) -> Weights:
        return apart(self.fast, weights)


def apart(fast: Tensor, weights: Weights) -> Weights:
    """[B, 1, P] -> the shapes of the weights, each [B, out, in]."""
    parts = fast[:, 0].split([W[0].numel() for W in weights], dim=1)
    return tuple(part.reshape_as(W) for part, W in zip(parts, weights, strict=True))


def together(weights: Weights) -> Tensor:
    """Weights, each [B, out, in] -> [B, 1, P]."""
    return torch.cat([W.flatten(1) for W in weights], dim=1)[:, None]


def _average(y: Tensor, z: Tensor) -> Tensor:
    return (y - (1 - BETWEEN) * z) / BETWEEN


def averages(weights: Weights, fast: Tensor) -> Weights:
    """x = (y - (1 - b) z) / b, where weights that are trained are to be evaluated.

    Args:
        weights: y, each [B, out, in].
        fast: z, [B, 1, P].
    """
    pairs = zip(weights, apart(fast, weights), strict=True)
    return tuple(_average(y, z) for y, z in pairs)


def between(averaged: Weights, fast: Tensor) -> Weights:
    """y = b x + (1 - b) z, the inverse of ``averages``.

    Args:
        averaged: x, each [B, out, in].
        fast: z, [B, 1, P].
    """
    pairs = zip(averaged, apart(fast, averaged), strict=True)
    return tuple(torch.lerp(z, x, BETWEEN) for x, z in pairs)
