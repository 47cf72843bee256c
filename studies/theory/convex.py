"""Part d: for strongly convex losses teleports leave the worst-case rate as it is.

Gradient descent of rate 1 / beta on a mu-strongly convex, beta-smooth f has
f(w_{t+1}) - f* <= (1 - mu / beta) (f(w_t) - f*) from every point, and so from the steepest point of
a level set too: teleports do not worsen the bound. They do not improve it either:

    f = mu |w|^2 / 2 at rate 1 / beta: level sets are spheres, on which |g| is the same, and the
        factor a step is (1 - mu / beta)^2 with teleports and without
    a quadratic at rate 2 / (beta + mu): the steepest point lies along the largest eigenvalue, where
        the factor is ((beta - mu) / (beta + mu))^2, the worst of all

How it goes in between is tried on f = sum_k p_k s(c_k . w) + mu |w|^2 / 2 in the plane, s a
softplus less its tangent: teleports to the steepest of 180 directions before each step, the steps
to 1e-8 of the first gap, with teleports and without.

Reference: Mishkin, Bietti and Gower, arXiv 2403.03362.
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

SEED = 4
TERMS = 6
MU = 0.01
CONDITION = 100.0
"""Of the quadratic."""


@dataclass(frozen=True)
class Size:
    """Of the part."""

    problems: int
    directions: int
    steps: int  # at most
    gap: float  # f / f_0 at which a run ends


FULL = Size(100, 180, 3000, 1e-8)
SMOKE = Size(4, 60, 100, 1e-2)


@dataclass(frozen=True)
class Problems:
    """B functions side by side, each with its minimum 0 at 0."""

    C: Array  # c_k, [B, K, 2]
    p: Array  # [B, K]
    shift: Array  # [B, K], where on the softplus z = 0 is

    @staticmethod
    def drawn(count: int) -> tuple[Problems, Array]:
        """Problems, and where each begins, [B, 2]."""
        draws = item_generator(Stream.THEORY_STUDY, SEED, 0)
        C = draws.standard_normal((count, TERMS, 2))
        p = draws.uniform(0.2, 1, (count, TERMS)) / TERMS
        shift = draws.standard_normal((count, TERMS))
        return Problems(C, p, shift), 10 * draws.standard_normal((count, 2))

    @property
    def beta(self) -> Array:
        """A bound of the Hessian, [B]: the softplus bends by 1/4 at most."""
        H = np.einsum("bk,bki,bkj->bij", self.p / 4, self.C, self.C)
        return np.asarray(np.linalg.eigvalsh(H)[:, -1] + MU)

    def loss(self, w: Array) -> Array:
        """f at points [B, m, 2]: [B, m]."""
        z = w @ self.C.mT
        s = self.shift[:, None]
        # s(z) = log(1 + sigma (e^z - 1)) - sigma z, as (1 + e^(s + z)) / (1 + e^s).
        sigma = 1 / (1 + np.exp(-s))
        grown = np.log1p(sigma * np.expm1(np.minimum(z, 30)))
        grown = np.where(z > 30, np.log(sigma) + z, grown) - sigma * z
        return (grown * self.p[:, None]).sum(2) + MU / 2 * (w**2).sum(2)

    def gradient(self, w: Array) -> Array:
        """At points [B, m, 2]."""
        z = w @ self.C.mT
        s = self.shift[:, None]
        slope = 1 / (1 + np.exp(-s - z)) - 1 / (1 + np.exp(-s))
        return (slope * self.p[:, None]) @ self.C + MU * w

    def steepest(self, w: Array, directions: Array) -> Array:
        """The steepest points [B, 2] of the level sets of w [B, 2], among directions [m, 2]."""
        level = self.loss(w[:, None])
        r = np.sqrt(2 * level / MU) * np.ones(len(directions))
        # f is convex along a ray: from outside Newton's method comes down to the level.
        for _ in range(100):
            points = r[:, :, None] * directions
            step = (self.loss(points) - level) / (self.gradient(points) * directions).sum(2)
            r = r - step
            if np.all(np.abs(step) < 1e-13 * r):
                break
        points = r[:, :, None] * directions
        best = (self.gradient(points) ** 2).sum(2).argmax(1)
        return np.asarray(points[np.arange(len(w)), best])


def run(problems: Problems, start: Array, size: Size, teleported: bool) -> tuple[Array, Array]:
    """Gradient descent at 1 / beta: steps until the gap is reached, the worst factor a step."""
    angles = np.arange(size.directions) * (2 * np.pi / size.directions)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    w, lr = start.copy(), 1 / problems.beta[:, None]
    first = problems.loss(w[:, None])[:, 0]
    loss = first.copy()
    taken, worst = np.full(len(w), size.steps), np.zeros(len(w))
    active = np.arange(len(w))
    for step in trange(size.steps, desc="convex", leave=False):
        part = Problems(problems.C[active], problems.p[active], problems.shift[active])
        if teleported:
            w[active] = part.steepest(w[active], directions)
        w[active] -= lr[active] * part.gradient(w[active][:, None])[:, 0]
        now = part.loss(w[active][:, None])[:, 0]
        worst[active] = np.maximum(worst[active], now / loss[active])
        loss[active] = now
        done = now < size.gap * first[active]
        taken[active[done]] = step + 1
        active = active[~done]
        if not len(active):
            break
    return taken.astype(float), worst


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it."""
    return folder.kept("part", partial(measured, size))


def measured(size: Size) -> dict[str, Any]:
    """All of it."""
    problems, start = Problems.drawn(size.problems)
    plain, worst_plain = run(problems, start, size, teleported=False)
    moved, worst = run(problems, start, size, teleported=True)
    bound = 1 - MU / problems.beta
    ratio = np.log(moved / plain)
    worst_case = ((CONDITION - 1) / (CONDITION + 1)) ** 2
    most = "factor a step over 1 - mu / beta, the largest"
    claims = [
        exact(f"with teleports: {most}", (worst / bound).max(), "<", 1),
        exact(f"without: {most}", (worst_plain / bound).max(), "<", 1),
        *worst_cases(worst_case),
        claim("log of steps with teleports over steps without, mean", ratio, "<", 0),
    ]
    shares = np.quantile(moved / plain, (0, 0.05, 0.5, 0.95, 1))
    heads = ["steps with / without", "least", "5 %", "median", "95 %", "most", "slower with"]
    row = ["of 1 / beta", *(f"{x:.3g}" for x in shares), f"{(moved > plain).mean():.1%}"]
    return {
        "claims": as_json(claims),
        "tables": [
            f"Steps to {size.gap:g} of the first gap, {size.problems} problems; without teleports "
            f"{np.median(plain):.0f} in the median, with them {np.median(moved):.0f}.\n\n"
            + markdown_table(heads, [row])
        ],
        "ratio": (moved / plain).tolist(),
    }


def worst_cases(predicted: float) -> list[Any]:
    """The two functions on which teleports change nothing."""
    H = np.array([CONDITION, 1.0])
    lr = 2 / H.sum()
    factors = {}
    for name, teleported in (("with", True), ("without", False)):
        w = np.array([0.3, 1.0])
        losses = []
        for _ in range(200):
            losses.append(float((H * w**2).sum() / 2))
            if teleported:
                w = np.array([np.sqrt(2 * losses[-1] / H[0]), 0.0])
            w = w - lr * H * w
        factors[name] = (losses[-1] / losses[100]) ** (1 / 99)
    sphere = (1 - 1 / CONDITION) ** 2
    w = np.array([0.3, 1.0])
    before = w @ w
    angle = 1.0  # any: on a sphere all are as steep
    w = np.array([np.cos(angle), np.sin(angle)]) * np.sqrt(before)
    w = w - w / CONDITION
    best = "quadratic, rate 2 / (beta + mu): factor a step"
    return [
        exact(f"{best} with teleports", factors["with"], "=", predicted, 1e-6),
        exact(f"{best} without", factors["without"], "=", predicted, 1e-6),
        exact("mu |w|^2 / 2, rate 1 / beta: with teleports", w @ w / before, "=", sphere, 1e-9),
    ]
