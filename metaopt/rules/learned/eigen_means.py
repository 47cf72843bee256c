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
from metaopt.rules.learned.eigen_steps import Means

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
        g: the gradient, in frames, [B, 1, P].
        adam: means and gradient over the root of squares, but for their start: [B, n + 1, P].
        gain: what corrects these for their start, [1, n + 1, L].
        starts: what corrects the means themselves, of each parameter.
        frames: the frames.
        shapes: those of the parameters.
    """

    m: Tensor
    v: Tensor
    g: Tensor
    adam: Tensor
    gain: Tensor
    starts: list[tuple[float, ...]]
    frames: eigen_frames.Frames
    shapes: list[tuple[int, int]]

    def means(self) -> Means:
        """Cut into parameters."""
        m, g, adam = (_cut(flat, self.shapes) for flat in (self.m, self.g, self.adam))
        return Means(m, g, adam, self.starts)


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
    into = [
        eigen_frames.into(frame, G).flatten(1) for frame, G in zip(frames.each, grads, strict=True)
    ]
    g = torch.cat(into, dim=1)[:, None]
    m, v = state["m"], state["v"]
    if any(turn is not None for turn in frames.turns):
        squared = [turn if turn is None else eigen_frames.squared(turn) for turn in frames.turns]
        m, v = _turned(m, frames.turns, shapes), _turned(v, squared, shapes)
    old = zip(m.split(1, dim=1), decays, strict=True)
    # Python numbers, since a tensor of them would have to be copied to the device first.
    m = torch.cat([torch.lerp(g, mean, decay) for mean, decay in old], dim=1)
    v = torch.lerp(g.square(), v, SQUARES_DECAY)
    floors = _floors(v, sizes).split(1, dim=2)
    each = [floor.expand(-1, -1, size) for floor, size in zip(floors, sizes, strict=True)]
    root = (v + torch.cat(each, dim=2)).sqrt()
    adam = torch.cat([m, g], dim=1) / root
    starts = [(*(1 - decay**c for decay in decays), 1.0) for c in counts]
    roots = [(1 - SQUARES_DECAY**c) ** 0.5 for c in counts]
    gains = [[root / s for s in own] for root, own in zip(roots, starts, strict=True)]
    gain = v.new_tensor(gains).mT[None]
    return Seen(m, v, g, adam, gain, starts, frames, shapes)


def _floors(v: Tensor, sizes: Sequence[int]) -> Tensor:
    """What is added to squares below which there is rounding alone, [B, 1, L]."""
    means = torch.cat([part.mean(2, keepdim=True) for part in v.split([*sizes], dim=2)], dim=2)
    shares = v.new_tensor(sizes) / sum(sizes)
    return SMALL**2 * means + ROUNDING**2 * (means * shares).sum(2, keepdim=True) + FLOOR


def _cut(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[B, n, P] -> [B, n, out, rest] of each parameter."""
    parts = flat.split([out * rest for out, rest in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def _turned(
    flat: Tensor, turns: Sequence[eigen_frames.Pair | None], shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """[B, n, P] after the rotations of refreshed frames."""
    each = zip(_cut(flat, shapes), turns, strict=True)
    parts = [part if turn is None else eigen_frames.turned(turn, part) for part, turn in each]
    return torch.cat([part.flatten(2) for part in parts], dim=2)
