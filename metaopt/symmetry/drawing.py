"""Random elements of the groups.

    general linear      g = exp(T),           T a matrix,           ||T||_F = norm
    orthogonal          g = exp(T),           T = -T^T,             ||T||_F = norm
    scale and rotation  g = exp(t I + u J),   J a quarter turn,     ||t I + u J||_F = norm
    positive scaling    g = diag(exp t),      t a vector,           ||t|| = norm
    translation         x -> x + v,           v of every slot,      ||v|| = norm
    sign flips          g = diag(+-1)
    permutation         g = P

Each element comes with its exact inverse, exp(-T) for exp(T) and -v for v. A symmetry with several
blocks (heads) has one generator of this norm for each block. The random numbers of a symmetry
depend only on the seed and on its own group and name (those of a translation on the slot's path
too): if you edit a list of symmetries, the elements of the others stay. No sign flip or permutation
that is drawn does nothing, if it can do anything, so that trying a false one on an example shows.

The numbers are drawn on the CPU, and exponentials taken on the device that is given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metaopt.symmetry.elements import (
    Diagonal,
    Draws,
    Element,
    Matrix,
    Relabelling,
    ScaledRotation,
    Signs,
    Translation,
)
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.limits import FixedNorm
from metaopt.symmetry.maps import Exponential


def random_elements(
    symmetries: Sequence[Symmetry], norm: float, seed: int, devices: Sequence[torch.device]
) -> list[Element]:
    """A random element of each symmetry's group; ``-norm`` gives the inverses of ``norm``.

    Exponentials of equally large matrices are taken together.

    Args:
        symmetries: the symmetries.
        norm: the norm of the generator of each block, with a sign; not 0.
        seed: at least 0.
        devices: where the element of each symmetry is made.
    """
    generators: dict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
    for symmetry, device in zip(symmetries, devices, strict=True):
        if symmetry.group is Group.LINEAR:
            T = _generators(symmetry, norm, seed, (symmetry.size, symmetry.size))
            generators[symmetry.size, device].append(T.to(device))
    pairs = {
        key: iter(zip(*(part.split([len(T) for T in several]) for part in found), strict=True))
        for key, several in generators.items()
        for found in [Exponential(abs(norm))(torch.cat(several))]
    }
    return [
        Matrix(*next(pairs[symmetry.size, device]))
        if symmetry.group is Group.LINEAR
        else _element(symmetry, norm, seed, device)
        for symmetry, device in zip(symmetries, devices, strict=True)
    ]


def _draws(symmetry: Symmetry, seed: int) -> Draws:
    return Draws(f"{symmetry.group}: {symmetry.name}", seed)


def _generators(symmetry: Symmetry, norm: float, seed: int, shape: tuple[int, int]) -> Tensor:
    """Random matrices [blocks, *shape] of Frobenius norm ``norm``, skew if g is orthogonal."""
    T = torch.from_numpy(_draws(symmetry, seed).of().standard_normal((symmetry.blocks, *shape)))
    if symmetry.group is Group.ORTHOGONAL:
        T = T - T.mT
    return math.copysign(1, norm) * FixedNorm(abs(norm))(T)


def _element(symmetry: Symmetry, norm: float, seed: int, device: torch.device) -> Element:
    blocks, size = symmetry.blocks, symmetry.size
    draws = _draws(symmetry, seed)
    match symmetry.group:
        case Group.ORTHOGONAL:
            T = _generators(symmetry, norm, seed, (size, size)).to(device)
            g = torch.linalg.matrix_exp(T)
            return Matrix(g, g.mT)
        case Group.ROTARY:
            # ||t I + u J||_F = sqrt(2) ||(t, u)||.
            pairs = _generators(symmetry, norm / math.sqrt(2), seed, (1, 2))[:, 0]
            t, u = pairs.unbind(1)
            return ScaledRotation(t, u)
        case Group.SCALING:
            return Diagonal(_generators(symmetry, norm, seed, (1, size))[:, 0])
        case Group.TRANSLATION:
            return Translation(blocks, norm, draws)
        case Group.SIGNS:
            numbers = draws.of()
            signs = numbers.integers(0, 2, (blocks, size)) * 2.0 - 1
            signs[range(blocks), numbers.integers(0, size, blocks)] = -1
            return Signs(torch.from_numpy(signs))
        case Group.PERMUTATION:
            numbers = draws.of()
            order = torch.from_numpy(np.stack([_permutation(numbers, size) for _ in range(blocks)]))
            return Relabelling(order if norm > 0 else order.argsort())
        case _:
            raise ValueError(f"symmetry {symmetry.name!r}: no elements of {str(symmetry.group)!r}")


def _permutation(numbers: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
    """A random cycle of all units: none stays where it is, so that a trial sees each move."""
    around = numbers.permutation(size)
    order = np.empty(size, np.int64)
    order[around] = np.roll(around, 1)
    return order
