"""Named, seeded random streams that cannot meet.

All draws of the package come from the counter-based generator Philox (Salmon et al. 2011). The seed
is its key; the name of the stream and the position in it are disjoint parts of its 256-bit counter.
Two streams of one seed are therefore disjoint stretches of one sequence: no training task can be a
validation or a test task, whatever their numbers. A task is addressed by its index, so task i is
the same in a batch of 8 and in a batch of 1,024, and on every device.

What has to be drawn inside the inner loop comes from ``normals``: Philox again, in its form for
32-bit words, written with tensor operations, so that no draw waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# One Philox block is four words: of 64 bits (so four doubles) in numpy, of 32 bits in ``philox``.
_WORDS_PER_BLOCK = 4
_MASK = 2**32 - 1
_ROUNDS = 10


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
    RANDOM_GENERATORS = 8
    ELEMENTS = 9
    MINIBATCH = 10
    HIDING = 11
    SPLIT = 12
    IDENTITY = 13


def generator(stream: Stream, seed: int, block: int = 0) -> np.random.Generator:
    """A generator at 256-bit block ``block`` of ``stream`` under a non-negative ``seed``."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[block, 0, int(stream), 0]))


def item_generator(stream: Stream, seed: int, index: int) -> np.random.Generator:
    """A generator for item ``index`` of a stream, whatever number of draws the item takes.

    Each has 2^64 blocks of its own, none of which ``generator`` reaches.
    """
    counter = [0, index + 1, int(stream), 0]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def uniforms(
    stream: Stream, seed: int, start: int, count: int, per_item: int
) -> NDArray[np.float64]:
    """Uniforms on [0, 1) for the items start .. start + count - 1 of a stream.

    Returns float64 [count, per_item]; row i depends on (stream, seed, start + i) alone.
    """
    blocks = -(-per_item // _WORDS_PER_BLOCK)
    draws = generator(stream, seed, start * blocks).random((count, blocks * _WORDS_PER_BLOCK))
    return draws[:, :per_item]


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10: four counter words under two key words -> four random words.

    Args:
        counter: four, each in [0, 2^32): integers, or int64 tensors that broadcast.
        key: two of the same kind. At least the first and the third counter word are tensors.

    Returns:
        Four int64 tensors, each in [0, 2^32).

    References:
        Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Products of 64 bits: int64 wraps, and the mask undoes the sign of the shift.
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (second >> 32 & _MASK) ^ c1 ^ k0, second & _MASK
        c2, c3 = (first >> 32 & _MASK) ^ c3 ^ k1, first & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return tuple(torch.as_tensor(word) for word in (c0, c1, c2, c3))


def fingerprints(rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two words of 32 bits, each int64 [B], that tell rows [B, n] apart, by their float32 bits.

    The sum of what ``philox`` makes of each number and its place, under the key ``seed``.
    """
    bits = rows.detach().float().contiguous().view(torch.int32).long() & _MASK
    place = torch.arange(rows.shape[1], device=rows.device)
    key = (seed & _MASK, seed >> 32)
    low, high, *_ = philox((bits, 0, place, int(Stream.RANDOM_GENERATORS)), key)
    return low.sum(1) & _MASK, high.sum(1) & _MASK


def choices(keys: Tensor, position: int, count: int, below: int) -> Tensor:
    """Whole numbers in [0, below), all equally likely up to 2^-32 below: int64 [B, count].

    Args:
        keys: two words of 32 bits for each row, int64 [B, 2]; row b depends on them and on
            ``position`` alone.
        position: of the draw, in [0, 2^32).
        count: numbers a row.
        below: at most 2^31.
    """
    blocks = torch.arange(-(-count // _WORDS_PER_BLOCK), device=keys.device)
    stream = torch.full_like(blocks, int(Stream.MINIBATCH))
    words = philox((blocks, position, stream, 0), (keys[:, :1], keys[:, 1:]))
    return (torch.stack(words, dim=2).flatten(1)[:, :count] * below) >> 32


def normals(key: tuple[Tensor, Tensor], position: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float64 [B, count], by Box and Muller's transform.

    Args:
        key: two words of 32 bits for each row, int64 [B]; row b depends on them and on
            ``position`` alone.
        position: of the draw, int64 without axes, in [0, 2^32).
        count: numbers a row.
    """
    blocks = torch.arange(-(-count // _WORDS_PER_BLOCK), device=position.device)
    stream = torch.full_like(blocks, int(Stream.RANDOM_GENERATORS))
    low, high = (word[:, None] for word in key)
    words = philox((blocks, position, stream, 0), (low, high))
    # Midpoints of 2^32 intervals: never 0, whose logarithm is infinite.
    u = [(word.double() + 0.5) * 2.0**-32 for word in words]
    pairs = [
        (-2 * radius.log()).sqrt() * turn(2 * math.pi * angle)
        for radius, angle in (u[:2], u[2:])
        for turn in (torch.cos, torch.sin)
    ]
    return torch.stack(pairs, dim=2).flatten(1)[:, :count]
