"""The time features of a rule: the number of the inner step, on two scales.

    log(t) / 3.5 - 1,   tanh(t / 100)      t = 1, 2, ..

The rules of the paper do not have them and would have to count in their state. With them a schedule
is learned from far fewer trajectories, and holds beyond the longest of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLOCK_FEATURES = 2


def clock_features(count: Tensor) -> Tensor:
    """The features of counts t >= 1: [B, 1, n] -> [B, CLOCK_FEATURES, n]."""
    return torch.cat([count.log() / 3.5 - 1, torch.tanh(count / 100)], dim=1)
