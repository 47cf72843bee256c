"""Searches on orbits: ascent of a function F of generators, by itself for each of C candidates.

    T' = P(T + s),   P the projection on ||T|| <= c in each block

A candidate is a starting point of the search, or, where many tasks are trained side by side, the
orbit of one of them. How s follows from gradients is an object (``Steps``): the fixed rate of the
papers, steps of fixed length, or a quasi-Newton method, which finds its own.
Functions on orbits grow like exp(2 |T|) where the orbit is not compact, so that there the search is
bounded or refused (``require_bounded``).

References:
    Zhao, Dehmamy, Walters and Yu, arXiv 2205.10637, for teleports by gradient ascent; Liu and
    Nocedal, On the limited memory BFGS method (1989); Birgin, Martinez and Raydan, Nonmonotone
    spectral projected gradient methods on convex sets (2000).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.symmetry.motion import Motion

Generators = tuple[Tensor, ...]
"""One generator for each motion, each [C, blocks, *any]."""
Evaluate = Callable[[Generators], tuple[Tensor, Generators]]
"""T -> F(T), [C], and dF/dT."""

FIRST = 0.1
"""Length of the first step, in units of the bound, or absolutely where there is none."""
PAIRS = 10
"""Steps from which the curvature of F is estimated."""
MEMORY = 5
"""A step is kept if F is above the least of so many values before it."""
GROWS, SHRINKS = 8.0, 0.25
"""Factors on the length of a step where F is convex, and after a step that F fell on."""


def _per_candidate(x: Tensor, like: Tensor) -> Tensor:
    """[C] as [C, 1, ..], to multiply generators by."""
    return x.view(-1, *[1] * (like.dim() - 1))


def _dot(x: Generators, y: Generators) -> Tensor:
    """<x, y> over all generators, [C]."""
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(x, y, strict=True)]).sum(0)


def _sum(x: Generators, y: Generators) -> Generators:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def _scaled(factors: Tensor, x: Generators) -> Generators:
    """x times a factor for each candidate."""
    return tuple(_per_candidate(factors, a) * a for a in x)


def norms(T: Tensor) -> Tensor:
    """The norm of each block, [C, blocks]."""
    return torch.linalg.vector_norm(T.flatten(2) if T.dim() > 2 else T[..., None], dim=2)


def scaled(T: Tensor, factors: Tensor) -> Tensor:
    """Each block of T times a factor, [C, blocks]."""
    return T * factors.view(*factors.shape, *[1] * (T.dim() - 2))


@dataclass(frozen=True)
class Ball:
    """||T|| <= radius in each block; None: no bound.

    Attributes:
        radius: the largest norm.
    """

    radius: float | None

    def __call__(self, generators: Generators) -> Generators:
        """The nearest generators within the bound."""
        if self.radius is None:
            return generators
        return tuple(scaled(T, self.radius / norms(T).clamp(min=self.radius)) for T in generators)


class Steps(ABC):
    """How a search steps. One object serves one search.

    Attributes:
        looks: whether a step is tried, and taken only where F rises on it; otherwise it is taken.
    """

    looks: bool = False

    @abstractmethod
    def step(self, gradients: Generators) -> Generators:
        """s at a point where F has these gradients."""

    def learn(self, taken: Generators, change: Generators, rose: Tensor) -> None:  # noqa: B027
        """What the last step did, if steps are tried; nothing is done with it by default.

        Args:
            taken: T' - T, after the projection.
            change: the difference of gradients.
            rose: whether F rose, bool [C].
        """


class FixedRate(Steps):
    """s = rate dF/dT, as in the papers.

    Args:
        rate: the learning rate on the group.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def step(self, gradients: Generators) -> Generators:
        """rate dF/dT."""
        return tuple(self.rate * G for G in gradients)


class FixedLength(Steps):
    """s = c D / ||D||_F, D = dF/dT, for each generator by itself; 0 where D = 0.

    Args:
        length: c.
    """

    def __init__(self, length: float) -> None:
        self.length = length

    def step(self, gradients: Generators) -> Generators:
        """A step of length c of each generator."""
        found = []
        for G in gradients:
            size = torch.linalg.vector_norm(G.flatten(1), dim=1)
            found.append(_per_candidate(self.length / torch.where(size == 0, 1.0, size), G) * G)
        return tuple(found)


class QuasiNewton(Steps):
    """s = -B dF/dT, B an estimate of the inverse Hessian from the last steps (L-BFGS).

    Without a step to learn from, and where the bound has cut the last one off, s = l dF/dT with
    Barzilai and Borwein's length l = -<s, s> / <s, y>, y the change of the gradient. Where F is
    convex along the last step (<s, y> >= 0) the next is longer, at least as far as the bound
    reaches: there the largest value lies on the bound. A step on which F falls is taken back, and
    made shorter.

    Args:
        reach: the bound on ||T||, or None.
    """

    looks = True

    def __init__(self, reach: float | None) -> None:
        self.reach = reach
        self._pairs: list[tuple[Generators, Generators, Tensor]] = []
        self._rates: Tensor | None = None
        self._share = torch.ones(())
        self._size = torch.zeros(())
        self._asked: Generators = ()
        self._is_free = torch.zeros(())

    def step(self, gradients: Generators) -> Generators:
        """The step, of each candidate by itself."""
        self._size = _dot(gradients, gradients).sqrt()
        if self._rates is None:
            first = FIRST * (1.0 if self.reach is None else self.reach)
            self._rates = first / torch.where(self._size == 0, 1.0, self._size)
            self._share = torch.ones_like(self._rates)
            self._is_free = torch.zeros_like(self._rates, dtype=torch.bool)
        plain = _scaled(self._rates, gradients)
        self._asked = plain
        if self._pairs:
            curved = _scaled(self._share, self._curved(gradients))
            is_up = self._is_free & (_dot(curved, gradients) > 0)
            self._asked = _where(is_up, curved, plain)
        return self._asked

    def _curved(self, gradients: Generators) -> Generators:
        """-B dF/dT by the two-loop recursion."""
        r, kept = gradients, []
        for s, y, inverse in reversed(self._pairs):
            share = inverse * _dot(s, r)
            kept.append(share)
            r = _sum(r, _scaled(-share, y))
        s, y, inverse = self._pairs[-1]
        squared = _dot(y, y)
        size = _dot(s, y) / torch.where(squared == 0, 1.0, squared)
        assert self._rates is not None
        r = _scaled(torch.where(inverse > 0, size, self._rates), r)
        for (s, y, inverse), share in zip(self._pairs, reversed(kept), strict=True):
            r = _sum(r, _scaled(share - inverse * _dot(y, r), s))
        return r

    def learn(self, taken: Generators, change: Generators, rose: Tensor) -> None:
        """What is known of the curvature of F."""
        assert self._rates is not None
        falls = _scaled(-torch.ones_like(self._rates), change)
        along, squared = _dot(taken, falls), _dot(taken, taken)
        is_concave = along > 0
        secant = squared / torch.where(is_concave, along, 1.0)
        longer = GROWS * self._rates
        if self.reach is not None:
            size = torch.where(self._size == 0, 1.0, self._size)
            longer = torch.maximum(longer, self.reach / size)
        shorter = SHRINKS * self._rates
        # A fall tells how F bends too: the secant is used if it is shorter still.
        shorter = torch.where(is_concave, torch.minimum(secant, shorter), shorter)
        self._rates = torch.where(rose, torch.where(is_concave, secant, longer), shorter)
        self._share = torch.where(rose, 1.0, SHRINKS * self._share)
        cut = _sum(taken, _scaled(-torch.ones_like(along), self._asked))
        is_whole = _dot(cut, cut) <= 1e-18 * _dot(self._asked, self._asked)
        use = rose & is_concave & is_whole
        if bool(use.any()):
            inverse = torch.where(use, 1 / torch.where(use, along, 1.0), 0.0)
            # Of other candidates, which may have been lost on this step, nothing is kept.
            none = tuple(torch.zeros_like(s) for s in taken)
            pair = _where(use, taken, none), _where(use, falls, none), inverse
            self._pairs = [*self._pairs, pair][-PAIRS:]
        self._is_free = torch.where(rose, is_whole & is_concave, self._is_free & is_whole)


@dataclass(frozen=True)
class Climbed:
    """Where a search ended.

    Attributes:
        generators: T of each candidate.
        first: F at the start, [C].
        values: F(T), [C]; None where steps were taken unseen, F at the end is then not known.
        gradients: how often F and its gradient were computed.
    """

    generators: Generators
    first: Tensor
    values: Tensor | None
    gradients: int


def climb(
    evaluate: Evaluate,
    start: Generators,
    steps: int,
    how: Steps,
    bound: Callable[[Generators], Generators],
) -> Climbed:
    """Ascend F from given generators; costs at most steps + 1 evaluations of F and its gradient.

    Args:
        evaluate: F and its gradient.
        start: T before the first step, within the bound.
        steps: how many steps, at least 1.
        how: how to step.
        bound: the projection on the generators that are allowed.
    """
    T = start
    first, gradient = evaluate(T)
    value = first
    if not how.looks:
        for count in range(1, steps + 1):
            T = _plus(T, how.step(gradient), bound)
            if count < steps:
                _, gradient = evaluate(T)
        return Climbed(T, value, None, steps)
    done = 1
    best_T, best, last = T, value, [value]
    for _ in range(steps):
        trial = _plus(T, how.step(gradient), bound)
        taken = tuple(a - b for a, b in zip(trial, T, strict=True))
        if not bool((_dot(taken, taken) > 0).any()):
            break
        found, there = evaluate(trial)
        done += 1
        # Written so that a value that is no number counts as a fall.
        rose = found > torch.stack(last[-MEMORY:]).min(0).values
        how.learn(taken, tuple(a - b for a, b in zip(there, gradient, strict=True)), rose)
        T, gradient = _where(rose, trial, T), _where(rose, there, gradient)
        value = torch.where(rose, found, value)
        last.append(value)
        best_T, best = _where(found > best, trial, best_T), torch.where(found > best, found, best)
    return Climbed(best_T, first, best, done)


def _plus(T: Generators, s: Generators, bound: Callable[[Generators], Generators]) -> Generators:
    return bound(_sum(T, s))


def _where(condition: Tensor, yes: Generators, no: Generators) -> Generators:
    return tuple(
        torch.where(_per_candidate(condition, a), a, b) for a, b in zip(yes, no, strict=True)
    )


def require_bounded(motions: Sequence[Motion], radius: float | None) -> None:
    """Raise ``ValueError`` if there is no bound and an orbit has no end."""
    if radius is not None:
        if not 0 < radius < float("inf"):
            raise ValueError(f"max_norm must be a finite number above 0 or None, found {radius}")
        return
    endless = [motion.name for motion in motions if not motion.is_compact]
    if endless:
        raise ValueError(
            f"max_norm=None is for compact orbits, such as those of rotations: the orbit of "
            f"{endless[0]!r} has no end, so that a largest value need not exist; give max_norm"
        )
