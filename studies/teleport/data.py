"""What the runs of both studies draw of their images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled

AROUND = 200
"""Images of a teleport, and of a measure."""


def drawn(data: Labelled, seeds: Sequence[int], index: int, count: int) -> tuple[Tensor, Tensor]:
    """Images that each seed draws without replacement: [seeds, n, count], labels [seeds, count].

    Draws of one seed and other indices are others.
    """
    count = min(count, len(data.y))
    rows = torch.stack(
        [
            torch.from_numpy(
                item_generator(Stream.MINIBATCH, seed, index).choice(
                    len(data.y), count, replace=False
                )
            )
            for seed in seeds
        ]
    )
    return data.X[rows].mT, data.y[rows]
