"""Running means of gradients and of their squares, in the frames of SOAP.

    m^d <- d m^d + (1 - d) G',   v <- 0.99 v + 0.01 G'^2,   G' = Q_L^T G Q_R
    root = (v + floor)^(1/2)

What corrects means for their start at 0 is kept apart, as numbers of whole parameters. The floor
keeps what is rounding from looking like a gradient: in directions of a frame that no gradient has
yet, and in parameters that none ever has, as the bias before a BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.base.loss_statistics import FLOOR
from metaopt.base.network import Weights
from metaopt.rules.base import State
from metaopt.rules.learned import eigen_frames
from metaopt.rules.learned.eigen_steps import Means, cut
from metaopt.rules.learned.layer import sums_of
from metaopt.rules.learned.running import means_over, running_means

SQUARES_DECAY = 0.99
SMALL = 1e-3
"""Gradients below this share of the root mean square over the parameter are taken for rounding."""
ROUNDING = 1e-5
"""And below this share of that over all parameters."""


@dataclass(frozen=True)
class Seen:
    """What is kept of gradients, and what is made of it.

    Attributes:
        m: running means of the gradient, in frames, [B, n, P].
        v: that of its squares, [B, 1, P].
        means: they, the gradient, and both over the root of squares, but for their start.
        gain: what corrects these for their start, [1, n + 1, L].
        frames: the frames.
    """

    m: Tensor
    v: Tensor
    means: Means
    gain: Tensor
    frames: eigen_frames.Frames


def look(
    grads: Weights, state: State, count: Tensor, decays: Sequence[float], largest: int
) -> Seen:
    """Means, squares and frames after a gradient.

    Args:
        grads: G, each [B, out, rest].
        state: m, v, products and frames before it.
        count: gradients of each parameter, this one included, [B, 1, L]; alike in all B.
        decays: those of the n running means of the gradient.
        largest: the longest side of a matrix that has a frame.
    """
    shapes = [(G.shape[1], G.shape[2]) for G in grads]
    sizes = [out * rest for out, rest in shapes]
    counts = [int(number) for number in count[0, 0].tolist()]
    frames = eigen_frames.after(grads, state["products"], state["frames"], counts, largest)
    each = zip(frames.each, grads, sizes, strict=True)
    g = torch.cat([eigen_frames.into(Q, G).reshape(-1, 1, size) for Q, G, size in each], dim=2)
    m, v = state["m"], state["v"]
    if any(turn is not None for turn in frames.turns):
        squared = [turn if turn is None else eigen_frames.squared(turn) for turn in frames.turns]
        m, v = _turned(m, frames.turns, shapes), _turned(v, squared, shapes)
    m = running_means(g, m, decays)
    v = g.square().lerp_(v, SQUARES_DECAY)
    adam = means_over(m, g, _root(v, sizes))
    starts = [(*(1 - decay**c for decay in decays), 1.0) for c in counts]
    roots = [(1 - SQUARES_DECAY**c) ** 0.5 for c in counts]
    gains = [[root / s for s in own] for root, own in zip(roots, starts, strict=True)]
    gain = v.new_tensor(gains).mT[None]
    return Seen(m, v, Means(m, g, adam, starts, shapes), gain, frames)


def _root(v: Tensor, sizes: Sequence[int]) -> Tensor:
    """(v + floor)^(1/2), where below the floor of a parameter there is rounding alone."""
    sums = sums_of(v, sizes)
    of_all = sums.sum(2, keepdim=True) * (ROUNDING**2 / sum(sizes)) + FLOOR
    floors = torch.addcmul(of_all, sums, v.new_tensor([SMALL**2 / size for size in sizes]))
    each = zip(floors.split_with_sizes([1] * len(sizes), dim=2), sizes, strict=True)
    return torch.cat([floor.expand(-1, -1, n) for floor, n in each], dim=2).add_(v).sqrt_()


def _turned(
    flat: Tensor, turns: Sequence[eigen_frames.Pair | None], shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """[B, n, P] after the rotations of refreshed frames."""
    each = zip(cut(flat, shapes), turns, strict=True)
    parts = [part if turn is None else eigen_frames.turned(turn, part) for part, turn in each]
    return torch.cat([part.flatten(2) for part in parts], dim=2)
