"""Part a: the bound over the whole orbit, for SGD that is teleported before each step.

    L(w, i) = |A w - b_i|^2 / 2,   u = A w - mean b,   O(n) acts on u

The mean loss is |u|^2 / 2 and a constant, so that rotations of u leave it as it is, though not the
single L(w, i). max_g |grad L(g w)|^2 = beta |u|^2, beta the largest eigenvalue of A A^T, reached
where u lies along its eigenvector. Theorem 3.1 of the paper: with lr = 1 / (beta sqrt(T - 1)) and a
teleport to that point before each step,

    min_t E max_g |grad L(g w_t)|^2 <= (2 beta (L(w_0) - L*) + beta sigma^2) / sqrt(T - 1),

sigma^2 = L* - E min L(., i). Here both sides are exact: with e_i = b_i - mean b the step is
u -> u - lr A A^T (u - e_i), so that E |u|^2 has a recursion with a closed form, with teleports and
without.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, theorem 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from studies.noether.claims import Array, as_json, claim
from studies.noether.folder import Folder
from studies.theory.told import exact

SEED = 1


@dataclass(frozen=True)
class Size:
    """Of the part."""

    dimensions: int
    samples: int
    condition: float  # of A A^T
    steps: tuple[int, ...]  # T
    runs: int  # of SGD itself, which the recursion is compared with
    simulated: int  # T of these runs


FULL = Size(8, 32, 1000.0, (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000), 4096, 1000)
SMOKE = Size(4, 8, 100.0, (10, 100), 64, 20)


@dataclass(frozen=True)
class Problem:
    """In the basis in which A A^T is diagonal."""

    eigenvalues: Array  # of A A^T, falling, [n]
    noise: Array  # e_i, [N, n], with mean 0 and mean |e|^2 = 1
    start: Array  # u_0, [n]

    @staticmethod
    def drawn(size: Size) -> Problem:
        """One problem, with |u_0| = 1."""
        draws = item_generator(Stream.THEORY_STUDY, SEED, 0)
        noise = draws.standard_normal((size.samples, size.dimensions))
        noise -= noise.mean(0)
        noise /= np.sqrt((noise**2).sum(1).mean())
        start = draws.standard_normal(size.dimensions)
        eigenvalues = np.geomspace(1, 1 / size.condition, size.dimensions)
        return Problem(eigenvalues, noise, start / np.linalg.norm(start))

    @property
    def beta(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[0])

    def lr(self, steps: Array) -> Array:
        """The theorem's."""
        return 1 / (self.beta * np.sqrt(steps - 1))

    def bound(self, steps: Array) -> Array:
        """The theorem's right side."""
        variance = (self.noise**2).sum(1).mean() / 2
        first = 2 * self.beta * (self.start**2).sum() / 2
        return (first + self.beta * variance) / np.sqrt(steps - 1)

    def least(self, steps: Array) -> dict[str, Array]:
        """min over t < T of what is expected, for each T.

        Each is E x_t = a^t x_0 + b (1 - a^t) / (1 - a), which goes one way in t.

        Returns:
            ``teleported``: E max_g |grad L(g w_t)|^2 with teleports; ``plain``: the same without;
            ``own``: E |grad L(w_t)|^2 without.
        """
        lr = self.lr(steps)[:, None]
        a = (1 - lr * self.eigenvalues) ** 2
        b = (lr * self.eigenvalues) ** 2 * (self.noise**2).mean(0)
        first = (self.start**2)[None]
        powers = a ** (steps[:, None] - 1)
        squares = powers * first + b * (1 - powers) / (1 - a)
        whole = (self.start**2).sum()
        along = powers[:, 0] * whole + b.sum(1) * (1 - powers[:, 0]) / (1 - a[:, 0])
        ends = {
            "teleported": (self.beta * whole, self.beta * along),
            "plain": (self.beta * whole, self.beta * squares.sum(1)),
            "own": (
                (self.eigenvalues * self.start**2).sum(),
                (self.eigenvalues * squares).sum(1),
            ),
        }
        return {name: np.minimum(*both) for name, both in ends.items()}

    def runs(self, steps: int, count: int, teleported: bool) -> Array:
        """beta |u_t|^2 at t = T - 1 of runs of SGD, [count]."""
        draws = item_generator(Stream.THEORY_STUDY, SEED, 1 + int(teleported))
        lr = float(self.lr(np.array([float(steps)]))[0])
        u = np.tile(self.start, (count, 1))
        for _ in trange(steps - 1, desc="SGD", leave=False):
            if teleported:
                sign = np.where(u[:, 0] < 0, -1, 1)
                radius = np.sqrt((u**2).sum(1))
                u = np.zeros_like(u)
                u[:, 0] = sign * radius
            e = self.noise[draws.integers(len(self.noise), size=count)]
            u = u - lr * self.eigenvalues * (u - e)
        return np.asarray(self.beta * (u**2).sum(1))


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it."""
    return folder.kept("part", partial(measured, size))


def measured(size: Size) -> dict[str, Any]:
    """All of it."""
    problem = Problem.drawn(size)
    steps = np.array(size.steps, dtype=float)
    bound, least = problem.bound(steps), problem.least(steps)
    single = np.array([float(size.simulated)])
    shares = {name: values / bound for name, values in least.items()}
    last = f"plain SGD, the maximum over the orbit, over the bound, T = {size.steps[-1]:,}"
    falls = np.diff(np.log(least["teleported"])) / np.diff(np.log(steps))
    claims = [
        exact("teleported, over the bound, the largest", shares["teleported"].max(), "<", 1),
        exact("plain SGD, at w_t, over the bound, the largest", shares["own"].max(), "<", 1),
        exact(last, shares["plain"][-1], ">", 1),
        exact("slope of log teleported in log T, last two T", falls[-1], "=", -0.5, 0.1),
    ]
    for name in ("teleported", "plain"):
        found = problem.runs(size.simulated, size.runs, name == "teleported")
        expected = np.minimum(problem.beta * (problem.start**2).sum(), problem.least(single)[name])
        what = f"{name}: {size.runs} runs of T = {size.simulated} over the recursion"
        claims.append(claim(what, found / expected, "=", 1))
    heads = ["T", "bound", "teleported", "plain SGD", "plain SGD, at w_t"]
    rows = [
        [f"{int(T):,}", *(f"{x:.3g}" for x in values)]
        for T, *values in zip(
            steps, bound, least["teleported"], least["plain"], least["own"], strict=True
        )
    ]
    return {
        "claims": as_json(claims),
        "tables": [
            "The least over t of E max over the orbit of |grad L|^2, exactly; last column: of "
            "E |grad L(w_t)|^2.\n\n" + markdown_table(heads, rows)
        ],
        "steps": steps.tolist(),
        "bound": bound.tolist(),
        "least": {name: values.tolist() for name, values in least.items()},
    }
