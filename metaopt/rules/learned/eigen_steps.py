"""Directions for mini-batches, made of running means in the frame of a matrix.

    adam          m / root                              Adam in the eigenbasis: SOAP
    orthogonal    sqrt(max(out, rest)) U V^T             all singular values alike: Muon
    sign          m / sqrt(m^2 + rms(m)^2 / 100)         nearly the sign of each entry: Lion

m are running means of the gradient and root the root of a running mean of its squares. The last two
are multiplied by the root mean square of the first (``follows``), so that all have entries of the
size of Adam's, about 1 where gradients agree and smaller where they are noise that cancels: what
mixes them says how they point and not how far they go. Multiplying by rotations of the frame on
both sides makes steps of them; U V^T is the same in every frame, so that it may be made in this
one.

References:
    Kingma and Ba, Adam (2015). Vyas et al., SOAP (2024). Jordan et al., Muon (2024).
    Chen et al., Symbolic discovery of optimization algorithms (2023), for Lion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.rules.learned.layer import mean_squares
from metaopt.rules.learned.matrix_steps import TINY, polar_of

ROUNDS = 5
"""Iterations of Newton and Schulz: as in Muon singular values come out roughly alike."""
BLOCK = 128
"""Matrices whose shorter side is longer are made orthogonal block by block. In its frame, what
belongs to different eigenvalues is nearly orthogonal already."""
SOFT = 0.01
"""The share of rms(m)^2 below which an entry's sign is not told."""


@dataclass(frozen=True)
class Means:
    """What directions are made of, in frames; of all parameters, P entries.

    Attributes:
        m: running means of the gradient, the fastest first, [B, n, P].
        g: the gradient, [B, 1, P].
        adam: the means and the gradient over the root, [B, n + 1, P].
        starts: for each parameter what corrects each of its means for its start at 0.
        shapes: [out, rest] of each parameter.
    """

    m: Tensor
    g: Tensor
    adam: Tensor
    starts: Sequence[tuple[float, ...]]
    shapes: Sequence[tuple[int, int]]


def cut(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[B, n, P] -> [B, n, out, rest] of each parameter."""
    # ``Tensor.split`` is written in Python, and takes up to twice as long as what it calls.
    parts = flat.split_with_sizes([out * rest for out, rest in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


class Direction(ABC):
    """Rows of steps."""

    @abstractmethod
    def untrained(self, means: int) -> Sequence[float]:
        """The share of each row in the untrained mixture, with so many running means."""

    @abstractmethod
    def follows(self, means: int) -> int | None:
        """The row of ``Means.adam`` whose size those of this direction are given; None: Adam's."""

    @abstractmethod
    def add(
        self, sums: Sequence[Tensor] | None, means: Means, shares: Sequence[Tensor]
    ) -> list[Tensor]:
        """sums + sum_r a^r d^r, where d^r are of size 1 if they follow.

        Args:
            sums: of each parameter, [B, out, rest], which nobody needs any more; None for 0.
            means: what directions are made of.
            shares: a of each parameter, [B, 1, rows].
        """


class Adam(Direction):
    """Every mean, and the gradient, over the root."""

    def untrained(self, means: int) -> Sequence[float]:
        """The fastest mean alone."""
        return (0.5, *[0.0] * means)

    def follows(self, means: int) -> None:
        """Nothing: it is Adam itself."""

    def add(
        self, sums: Sequence[Tensor] | None, means: Means, shares: Sequence[Tensor]
    ) -> list[Tensor]:
        """m / root."""
        rows = means.adam.split_with_sizes([out * rest for out, rest in means.shapes], dim=2)
        each = zip(shares, rows, means.shapes, strict=True)
        steps = [torch.bmm(a, row).view(-1, *shape) for a, row, shape in each]
        if sums is None:
            return steps
        return [step + x for step, x in zip(steps, sums, strict=True)]


class OrthogonalStep(Direction):
    """The mean of the fastest mean and the gradient, with all singular values alike."""

    def untrained(self, means: int) -> Sequence[float]:
        """As much as of Adam."""
        return (0.5,)

    def follows(self, means: int) -> int:
        """The fastest mean."""
        return 0

    def add(
        self, sums: Sequence[Tensor] | None, means: Means, shares: Sequence[Tensor]
    ) -> list[Tensor]:
        """sqrt(max(out, rest)) U V^T."""
        sizes = [out * rest for out, rest in means.shapes]
        parts = zip(
            means.g.split_with_sizes(sizes, dim=2),
            means.m[:, :1].split_with_sizes(sizes, dim=2),
            means.starts,
            strict=True,
        )
        flat = [torch.add(g, m, alpha=1 / start[0]) for g, m, start in parts]
        found = _zeros(means) if sums is None else list(sums)
        # Of a single row or column the polar factor is its direction.
        vectors = [i for i, shape in enumerate(means.shapes) if min(shape) == 1]
        if vectors:
            entries = means.g.new_tensor([sizes[i] for i in vectors])
            squares = mean_squares([flat[i] for i in vectors], entries)
            sizes_of = (squares + TINY).rsqrt().view(-1, 1, len(vectors)).chunk(len(vectors), dim=2)
            for i, size in zip(vectors, sizes_of, strict=True):
                x = flat[i].view_as(found[i])
                found[i] = torch.addcmul(found[i], x, shares[i] * size)
        matrices = [i for i, shape in enumerate(means.shapes) if min(shape) > 1]
        blocks = [(i, at, x) for i in matrices for at, x in _blocks(flat[i].view_as(found[i]))]
        roots = polar_of(
            [torch.bmm(x, x.mT) if at[0] == 1 else torch.bmm(x.mT, x) for _, at, x in blocks],
            ROUNDS,
        )
        for (i, (dim, first, length), x), root in zip(blocks, roots, strict=True):
            root = root * shares[i]
            whole = found[i]
            by = max(whole.shape[1:]) ** 0.5
            pair = (root, x) if dim == 1 else (x, root)
            if length == whole.shape[dim]:
                found[i] = torch.baddbmm(whole, *pair, alpha=by)
            else:
                whole.narrow(dim, first, length).baddbmm_(*pair, alpha=by)
        return found


def _zeros(means: Means) -> list[Tensor]:
    return [means.g.new_zeros(len(means.g), *shape) for shape in means.shapes]


def _blocks(x: Tensor) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
    """Along its shorter side, in the fewest equal parts of at most ``BLOCK``: where, and what."""
    dim = 1 if x.shape[1] <= x.shape[2] else 2
    if x.shape[dim] <= BLOCK:
        yield (dim, 0, x.shape[dim]), x
        return
    first = 0
    for part in x.tensor_split(-(-x.shape[dim] // BLOCK), dim=dim):
        yield (dim, first, part.shape[dim]), part
        first += part.shape[dim]


class Sign(Direction):
    """Nearly the sign of the slowest mean."""

    def untrained(self, means: int) -> Sequence[float]:
        """What the network takes of it alone."""
        return (0.0,)

    def follows(self, means: int) -> int:
        """The slowest mean."""
        return means - 1

    def add(
        self, sums: Sequence[Tensor] | None, means: Means, shares: Sequence[Tensor]
    ) -> list[Tensor]:
        """m / sqrt(m^2 + rms(m)^2 / 100)."""
        found = []
        before = _zeros(means) if sums is None else sums
        for x, m, share in zip(before, cut(means.m[:, -1:], means.shapes), shares, strict=True):
            square = m[:, 0].square()
            soft = SOFT * square.mean(dim=(-2, -1), keepdim=True)
            found.append(torch.addcmul(x, share, m[:, 0] * (square + soft + TINY).rsqrt()))
        return found


DIRECTIONS: dict[str, type[Direction]] = {
    "adam": Adam,
    "orthogonal": OrthogonalStep,
    "sign": Sign,
}
"""By name."""
