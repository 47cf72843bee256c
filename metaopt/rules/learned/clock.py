"""What a rule is told of time: inner steps taken, on a scale of hundreds and on a logarithmic one.

    log(t) / 3.5 - 1,   tanh(t / 100)      t = 1, 2, ..

Rules of the paper count for themselves; told, a schedule is learned from far fewer trajectories,
and holds beyond the longest of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLOCK_FEATURES = 2


def clock_features(count: Tensor) -> Tensor:
    """Of counts [B, 1, n], each at least 1: [B, CLOCK_FEATURES, n]."""
    return torch.cat([count.log() / 3.5 - 1, torch.tanh(count / 100)], dim=1)
