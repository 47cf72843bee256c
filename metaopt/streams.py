"""Named, seeded random streams that cannot meet.

All draws of the package come from the counter-based generator Philox (Salmon et al. 2011). The seed
is its key; the name of the stream and the position in it are disjoint parts of its 256-bit counter.
Two streams of one seed are therefore disjoint stretches of one sequence: no training task can be a
validation or a test task, whatever their numbers. A task is addressed by its index, so task i is
the same in a batch of 8 and in a batch of 1,024, and on every device.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# One Philox block is four 64-bit words, so four doubles.
_WORDS_PER_BLOCK = 4


class Stream(IntEnum):
    """What a stream is for; the value is its place in the counter."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    INITIALISATION = 3
    BOOTSTRAP = 4
    RESCALING = 5
    HORIZON = 6
    PERTURBATION = 7


def generator(stream: Stream, seed: int, block: int = 0) -> np.random.Generator:
    """A generator at 256-bit block ``block`` of ``stream`` under a non-negative ``seed``."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[block, 0, int(stream), 0]))


def uniforms(
    stream: Stream, seed: int, start: int, count: int, per_item: int
) -> NDArray[np.float64]:
    """Uniforms on [0, 1) for the items start .. start + count - 1 of a stream.

    Returns float64 [count, per_item]; row i depends on (stream, seed, start + i) alone.
    """
    blocks = -(-per_item // _WORDS_PER_BLOCK)
    draws = generator(stream, seed, start * blocks).random((count, blocks * _WORDS_PER_BLOCK))
    return draws[:, :per_item]
