"""Named, seeded random streams that never overlap.

All random numbers of the package come from the counter-based generator Philox (Salmon et al. 2011).
The seed is its key. The name of the stream and the position in it are separate parts of its 256-bit
counter, so that two streams of one seed are disjoint parts of one sequence: no training task can be
a validation or test task, whatever their indices. A task is addressed by its index, so that task i
is the same in a batch of 8 and in a batch of 1,024, and on every device.

Random numbers within the inner loop come from ``normals`` and ``choices``: Philox for 32-bit words,
written with tensor operations, so that no draw waits for the host.
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
    """What a random stream is for; the value is its place in the counter."""

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
    SHARPNESS = 14
    NOISE_STUDY = 15
    COMMON = 16
    SEARCH = 17
    THEORY_STUDY = 18
    CURVES = 20
    ALIGNING = 21


def generator(stream: Stream, seed: int, block: int = 0) -> np.random.Generator:
    """A generator that starts at block ``block`` (of 256 bits) of a stream.

    Args:
        stream: the stream.
        seed: at least 0.
        block: the position in the stream.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[block, 0, int(stream), 0]))


def item_generator(stream: Stream, seed: int, index: int) -> np.random.Generator:
    """A generator for item ``index`` of a stream, which may draw any number of random numbers.

    Each item has 2^64 blocks of its own, and ``generator`` reaches none of them.
    """
    counter = [0, index + 1, int(stream), 0]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def uniforms(
    stream: Stream, seed: int, start: int, count: int, per_item: int
) -> NDArray[np.float64]:
    """Uniform numbers on [0, 1) for the items start .. start + count - 1 of a stream.

    Returns:
        float64 [count, per_item]; row i depends only on (stream, seed, start + i).
    """
    blocks = -(-per_item // _WORDS_PER_BLOCK)
    draws = generator(stream, seed, start * blocks).random((count, blocks * _WORDS_PER_BLOCK))
    return draws[:, :per_item]


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10: four counter words under two key words -> four random words.

    Args:
        counter: four words in [0, 2^32): integers, or int64 tensors that broadcast. The first and
            the third must be tensors.
        key: two words of the same kind.

    Returns:
        Four int64 tensors with values in [0, 2^32).

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
    """Two 32-bit words for each row, each int64 [B], that tell rows [B, n] apart.

    They are the sum of what ``philox`` makes of each number's float32 bits and its place.

    Args:
        rows: the numbers, [B, n].
        seed: the key.
    """
    bits = rows.detach().float().contiguous().view(torch.int32).long() & _MASK
    place = torch.arange(rows.shape[1], device=rows.device)
    key = (seed & _MASK, seed >> 32)
    low, high, *_ = philox((bits, 0, place, int(Stream.RANDOM_GENERATORS)), key)
    return low.sum(1) & _MASK, high.sum(1) & _MASK


def choices(keys: Tensor, position: int, count: int, below: int) -> Tensor:
    """Whole numbers in [0, below), equally likely up to 2^-32 below: int64 [B, count].

    Args:
        keys: two 32-bit words for each row, int64 [B, 2]. Row b depends only on them and on
            ``position``.
        position: the position of the draw, in [0, 2^32).
        count: the number of draws in a row.
        below: at most 2^31.
    """
    blocks = torch.arange(-(-count // _WORDS_PER_BLOCK), device=keys.device)
    stream = torch.full_like(blocks, int(Stream.MINIBATCH))
    words = philox((blocks, position, stream, 0), (keys[:, :1], keys[:, 1:]))
    return (torch.stack(words, dim=2).flatten(1)[:, :count] * below) >> 32


def normals(key: tuple[Tensor, Tensor], position: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float64 [B, count], by the Box-Muller transform.

    Args:
        key: two 32-bit words for each row, each int64 [B]. Row b depends only on them and on
            ``position``.
        position: the position of the draw, an int64 scalar tensor in [0, 2^32).
        count: the number of draws in a row.
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
