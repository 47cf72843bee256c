"""Time in a rule: features of the number of the inner step, and what fades with it.

    log(t) / 3.5 - 1,   tanh(t / 100)      t = 1, 2, ..           features
    1, share left, log(share left) / 3                            features, where a horizon is told
    1 / (1 + (t / half)^2)                                        fading

The rules of the paper do not have them and would have to count in their state. With them a schedule
is learned from far fewer trajectories, and holds beyond the longest of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLOCK_FEATURES = 2
LEFT_FEATURES = 3


def clock_features(count: Tensor) -> Tensor:
    """The features of counts t >= 1: [B, 1, n] -> [B, CLOCK_FEATURES, n]."""
    return torch.cat([count.log() / 3.5 - 1, torch.tanh(count / 100)], dim=1)


def left_features(left: Tensor | None, count: Tensor) -> Tensor:
    """Features of the share of the steps that is left: [B, LEFT_FEATURES, n]; 0 if not known.

    Args:
        left: the share, in (0, 1], [B]; or None.
        count: fixes the shape, [B, 1, n].
    """
    if left is None:
        return torch.zeros_like(count).expand(-1, LEFT_FEATURES, -1)
    share = left[:, None, None].to(count)
    told = torch.cat([torch.ones_like(share), share, share.clamp(min=LEAST_LEFT).log() / 3], dim=1)
    return told.expand(-1, -1, count.shape[2])


LEAST_LEFT = 1e-2
"""Shares below it look alike."""


def fading(count: Tensor, half: int | None) -> Tensor:
    """The factor on what a network says at counts t >= 1, 1/2 at t = half; 1 without a half.

    Meta-gradients of short windows are greedy: where mini-batches are noisy they shrink steps to
    rid the window's end of noise, at the cost of all that comes later (Wu, Ren, Liao and Grosse,
    *Understanding short-horizon bias in stochastic meta-optimization*, arXiv 1803.02021). What they
    taught counts early; later a rule is what it was before training.
    """
    return torch.ones_like(count) if half is None else 1 / (1 + (count / half).square())
