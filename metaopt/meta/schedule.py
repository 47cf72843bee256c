"""How the outer learning rates change over a run."""

from __future__ import annotations

import math

from metaopt.meta.config import MetaConfig


def schedule(config: MetaConfig, outer_step: int) -> float:
    """Factor on the outer learning rates at an outer step i counted from 1, of n.

        min(1, i / warm_up) * shape(i)

    constant: shape = 1. cosine: final + (1 - final) (1 + cos(pi (i - 1) / n)) / 2 (Loshchilov and
    Hutter, arXiv 1608.03983). The linear warm-up (Goyal et al., arXiv 1706.02677) lies over it.
    """
    warm = min(1.0, outer_step / config.warm_up) if config.warm_up else 1.0
    match config.schedule:
        case "constant":
            return warm
        case "cosine":
            half = (1 + math.cos(math.pi * (outer_step - 1) / config.outer_steps)) / 2
            return warm * (config.final_lr + (1 - config.final_lr) * half)
