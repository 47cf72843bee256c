"""Running means of gradients and of their squares, in the frames of SOAP.

    m^d <- d m^d + (1 - d) G',   v <- b v + (1 - b) G'^2,   G' = Q_L^T G Q_R
    root = (v + floor)^(1/2)
    b = 0.99,   or   b_t = 1 - max(n / (t + 20), 1 / 500)                    (``Memory``)

What corrects means for their start at 0 is kept apart, as numbers of whole parameters. The floor
keeps what is rounding from looking like a gradient: in directions of a frame that no gradient has
yet, and in parameters that none ever has, as the bias before a BatchNorm.

Gradients become smaller as training goes on: squares that are remembered for a hundred steps from
the first step on are too large for long. b_t remembers those of about the last n-th of the way.
The second schedule of this kind is that of Adafactor (Shazeer and Stern 2018, section 7.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from metaopt.base.loss_statistics import FLOOR
from metaopt.rules.base import State
from metaopt.rules.learned import eigen_frames, pair_moments
from metaopt.rules.learned.eigen_steps import Means, cut
from metaopt.rules.learned.layer import sums_of
from metaopt.rules.learned.pair_moments import SEEN
from metaopt.rules.learned.running import means_over, running_means
from metaopt.symmetry.pairs import LinearPairs
from metaopt.tasks.base import Observation

SQUARES_DECAY = 0.99
"""b where squares are remembered equally long at each step."""
LATER = 20
LONGEST = 500
"""b_t = 1 - max(n / (t + LATER), 1 / LONGEST)."""
SETTLED = 10_000
"""Steps after which nothing is left of the start."""
SMALL = 1e-3
"""Gradients below this share of the root mean square over the parameter are taken for rounding."""
ROUNDING = 1e-5
"""And below this share of that over all parameters."""


@dataclass(frozen=True)
class Memory:
    """How long squares are remembered.

    Attributes:
        part: n, for about the last n-th of the way; None for a hundred steps.
    """

    part: float | None = None

    def decay(self, count: int) -> float:
        """b at the t-th gradient, t >= 1."""
        if self.part is None:
            return SQUARES_DECAY
        return 1 - min(1.0, max(self.part / (count + LATER), 1 / LONGEST))

    def start(self, count: int) -> float:
        """1 - b_1 b_2 .. b_t: what the sum of all shares has come to."""
        if self.part is None:
            return 1 - SQUARES_DECAY**count
        return 1 - _forgotten(self)[min(count, SETTLED) - 1]


@lru_cache(maxsize=64)
def _forgotten(memory: Memory) -> tuple[float, ...]:
    """b_1 b_2 .. b_t at t = 1, 2, .. ``SETTLED``."""
    return tuple(accumulate((memory.decay(t) for t in range(1, SETTLED + 1)), mul))


@dataclass(frozen=True)
class Seen:
    """What is kept of gradients, and what is made of it.

    Attributes:
        m: running means of the gradient, in frames, [B, n, P].
        v: that of its squares, [B, 1, P].
        means: they, the gradient, and both over the root of squares, but for their start.
        gain: what corrects these for their start, [1, n + 1, L].
        frames: the frames.
        second: second moments of linear pairs that may move (``pair_moments``).
    """

    m: Tensor
    v: Tensor
    means: Means
    gain: Tensor
    frames: eigen_frames.Frames
    second: State


def look(
    observation: Observation,
    state: State,
    count: Tensor,
    decays: Sequence[float],
    memory: Memory,
    largest: int,
) -> Seen:
    """Means, squares and frames after a gradient.

    Args:
        observation: gradients G, each [B, out, rest], and linear pairs, if any are known.
        state: m, v, products, frames and second moments before it.
        count: gradients of each parameter, this one included, [B, 1, L]; alike in all B.
        decays: those of the n running means of the gradient.
        memory: how long squares are remembered.
        largest: the longest side of a matrix that has a frame.
    """
    grads = observation.grads
    shapes = [(G.shape[1], G.shape[2]) for G in grads]
    sizes = [out * rest for out, rest in shapes]
    second = pair_moments.within(state)
    pairs = observation.pairs if second else None
    given: Sequence[eigen_frames.Given] = ()
    numbers = count[0, 0] if pairs is None else torch.cat([count[0, 0], second[SEEN][0, 0]])
    counts = [int(number) for number in numbers.tolist()]
    if pairs is not None:
        given = pair_moments.given(pairs, len(grads))
        seen = counts.pop()
        state = caught_up(pairs, state, [c - 1 for c in counts], seen, shapes, largest)
        second = pair_moments.within(state)
    m, v = state["m"], state["v"]
    products = state["products"]
    frames = eigen_frames.after(grads, products, state["frames"], counts, largest, given)
    each = zip(frames.each, grads, sizes, strict=True)
    g = torch.cat([eigen_frames.into(Q, G).reshape(-1, 1, size) for Q, G, size in each], dim=2)
    if any(turn is not None for turn in frames.turns):
        m, v = _turned(m, frames.turns, shapes), _turned(v, _squared(frames.turns), shapes)
        if pairs is not None:
            second = pair_moments.refreshed(pairs, second, frames.turns, grads)
    m = running_means(g, m, decays)
    forgets = [memory.decay(c) for c in counts]
    v = g.square().lerp_(v, _shared(forgets, sizes, v))
    if pairs is not None:
        own = [part[:, 0] for part in cut(g, shapes)]
        second = pair_moments.after(pairs, second, own, forgets)
    adam = means_over(m, g, _root(v, sizes))
    starts = [(*(1 - decay**c for decay in decays), 1.0) for c in counts]
    roots = [memory.start(c) ** 0.5 for c in counts]
    gains = [[root / s for s in own] for root, own in zip(roots, starts, strict=True)]
    gain = v.new_tensor(gains).mT[None]
    return Seen(m, v, Means(m, g, adam, starts, shapes), gain, frames, second)


def caught_up(
    pairs: LinearPairs,
    state: State,
    counts: Sequence[int],
    seen: int,
    shapes: Sequence[tuple[int, int]],
    largest: int,
) -> State:
    """The state, whose second moments of pairs have seen what its squares have.

    Where they have not, since pairs have come or changed, what is kept leaves the frames along
    pairs, and second moments begin with the squares.

    Args:
        pairs: the pairs.
        state: with second moments.
        counts: gradients that each parameter has had.
        seen: those that second moments have seen.
        shapes: [out, rest] of each parameter.
        largest: the longest side of a matrix that has a frame.
    """
    had = max(counts[i] for i in pairs.tensors)
    if seen == had and had > 0:
        return state
    given = pair_moments.given(pairs, len(shapes))
    frames, turns = eigen_frames.left(state["frames"], shapes, largest, given)
    m, v = _turned(state["m"], turns, shapes), _turned(state["v"], _squared(turns), shapes)
    own = [part[:, 0] for part in cut(v, shapes)]
    begun = pair_moments.begun(pairs, pair_moments.within(state), own, had)
    return state | begun | {"m": m, "v": v, "frames": frames}


def _shared(numbers: Sequence[float], sizes: Sequence[int], like: Tensor) -> float | Tensor:
    """One number for all parameters, if it is the same; else for each of their entries, [P]."""
    if len(set(numbers)) == 1:
        return numbers[0]
    return torch.cat([like.new_full((n,), one) for one, n in zip(numbers, sizes, strict=True)])


def _root(v: Tensor, sizes: Sequence[int]) -> Tensor:
    """(v + floor)^(1/2), where below the floor of a parameter there is rounding alone."""
    sums = sums_of(v, sizes)
    of_all = sums.sum(2, keepdim=True) * (ROUNDING**2 / sum(sizes)) + FLOOR
    floors = torch.addcmul(of_all, sums, v.new_tensor([SMALL**2 / size for size in sizes]))
    each = zip(floors.split_with_sizes([1] * len(sizes), dim=2), sizes, strict=True)
    return torch.cat([floor.expand(-1, -1, n) for floor, n in each], dim=2).add_(v).sqrt_()


def _squared(turns: Sequence[eigen_frames.Pair | None]) -> list[eigen_frames.Pair | None]:
    return [turn if turn is None else eigen_frames.squared(turn) for turn in turns]


def _turned(
    flat: Tensor, turns: Sequence[eigen_frames.Pair | None], shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """[B, n, P] after the rotations of refreshed frames."""
    each = zip(cut(flat, shapes), turns, strict=True)
    parts = [part if turn is None else eigen_frames.turned(turn, part) for part, turn in each]
    return torch.cat([part.flatten(2) for part in parts], dim=2)
