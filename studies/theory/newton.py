"""Part b: at the level set's steepest point the gradient is Newton's direction.

    H g = lambda g   where |g| is largest on a level set,   so that   w - g / lambda = w - H^-1 g

(proposition 3.2). Teleports to that point, each followed by one step of gradient descent of rate
gamma, have

    |w_1 - w*| <= G / (2 mu) |w' - w*|^2 + |1 - gamma lambda| (beta / mu) |w' - w*|,

w' the steepest point, mu and beta bounds of the Hessian, G its Lipschitz constant: quadratic if
gamma = 1 / lambda, linear otherwise. Tried on f(w) = sum_k p_k (exp(z_k) - 1 - z_k), z_k = c_k . w,
convex with its minimum 0 at w = 0, and computed without cancellation near it. The steepest point is
found by a search over directions and finished by Newton's method on H g = lambda g, f = level.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, proposition 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from studies.noether.claims import Array, Claim, as_json, claim
from studies.noether.folder import Folder
from studies.theory.told import exact

SEED = 2
RATES = {"1 / lambda": 1.0, "1 / (2 lambda)": 0.5}
"""gamma, in units of 1 / lambda."""
KEPT = 16
"""Directions that go on after the first look."""
ASCENTS = 60
ROUNDING = 1e-15
"""|w - w*| below which the direction of w' is rounding: the error is then no longer squared."""
LARGE = 0.1
"""|w - w*| above which the terms of higher order are seen."""


@dataclass(frozen=True)
class Size:
    """Of the part."""

    dimensions: tuple[int, ...]
    problems: int  # for each dimension
    directions: int  # of the first look
    steps: int


FULL = Size((2, 5, 10), 10, 1000, 14)
SMOKE = Size((2, 3), 1, 100, 6)


def phi(z: Array) -> Array:
    """exp(z) - 1 - z, to relative rounding."""
    small = np.abs(z) < 1e-2
    x = np.where(small, z, 0)
    series = x**2 / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    return np.where(small, series, np.expm1(z) - z)


@dataclass(frozen=True)
class Problem:
    """f, with its minimum 0 at 0."""

    C: Array  # c_k, [K, n]
    p: Array  # [K]

    @staticmethod
    def drawn(n: int, index: int) -> tuple[Problem, Array]:
        """A problem, and where to begin."""
        draws = item_generator(Stream.THEORY_STUDY, SEED, 100 * n + index)
        C = draws.standard_normal((3 * n, n)) * np.geomspace(1, 0.3, n)
        problem = Problem(C, draws.uniform(0.2, 1, 3 * n) / (3 * n))
        return problem, 0.5 * draws.standard_normal(n)

    def loss(self, w: Array) -> Array:
        """f at points [..., n]."""
        return (phi(w @ self.C.T) * self.p).sum(-1)

    def gradient(self, w: Array) -> Array:
        """g at points [..., n]."""
        return (np.expm1(w @ self.C.T) * self.p) @ self.C

    def hessian(self, w: Array) -> Array:
        """H at a point [n]."""
        return self.C.T * (np.exp(self.C @ w) * self.p) @ self.C

    def products(self, w: Array, v: Array) -> Array:
        """H v at points [m, n]."""
        return (np.exp(w @ self.C.T) * self.p * (v @ self.C.T)) @ self.C

    def turned_hessian(self, w: Array, v: Array) -> Array:
        """dH/dw v at a point [n]."""
        return self.C.T * (np.exp(self.C @ w) * self.p * (self.C @ v)) @ self.C

    def constants(self, radius: float) -> tuple[float, float, float]:
        """mu, beta and G within a ball around the minimum."""
        sizes = np.linalg.norm(self.C, axis=1)
        most, fewest = self.p * np.exp(sizes * radius), self.p * np.exp(-sizes * radius)
        mu = float(np.linalg.eigvalsh(self.C.T * fewest @ self.C)[0])
        beta = float(np.linalg.eigvalsh(self.C.T * most @ self.C)[-1])
        return mu, beta, float((most * sizes**3).sum())

    def on_level(self, directions: Array, level: float) -> Array:
        """The points of the level set along directions [m, n], by Newton's method."""
        d = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        bends = ((d @ self.C.T) ** 2 * self.p).sum(1)
        r = np.sqrt(2 * level / bends)
        for _ in range(100):
            w = r[:, None] * d
            step = (self.loss(w) - level) / (self.gradient(w) * d).sum(1)
            r = np.where(step < r, r - step, r / 2)
            if np.all(np.abs(step) <= 4e-16 * r):
                break
        return r[:, None] * d

    def steepest(self, level: float, directions: Array) -> tuple[Array, float]:
        """w' on a level set and lambda there."""
        w = self.on_level(directions, level)
        w = w[np.argsort(-np.linalg.norm(self.gradient(w), axis=1))[:KEPT]]
        size = np.linalg.norm(self.gradient(w), axis=1)
        lengths = np.full(len(w), 0.5)
        for _ in range(ASCENTS):
            g = self.gradient(w)
            product = self.products(w, g)
            share = (product * g).sum(1, keepdims=True) / (g * g).sum(1, keepdims=True)
            along = product - share * g
            scale = np.linalg.norm(w, axis=1) / np.linalg.norm(product, axis=1)
            tried = self.on_level(w + (lengths * scale)[:, None] * along, level)
            found = np.linalg.norm(self.gradient(tried), axis=1)
            better = found > size
            w = np.where(better[:, None], tried, w)
            size = np.where(better, found, size)
            lengths = np.where(better, np.minimum(1.5 * lengths, 1), lengths / 4)
        return self.finished(w[size.argmax()], level)

    def finished(self, w: Array, level: float) -> tuple[Array, float]:
        """Newton's method on H g = lambda g, f = level."""
        n = len(w)
        for _ in range(30):
            g, H = self.gradient(w), self.hessian(w)
            size, share = float(np.linalg.norm(g)), float(g @ H @ g / (g @ g))
            missed = np.append(H @ g - share * g, self.loss(w) - level) / size
            J = np.zeros((n + 1, n + 1))
            J[:n, :n] = (self.turned_hessian(w, g) + H @ H - share * H) / size
            J[:n, n], J[n, :n] = -g / size, g / size
            step = np.linalg.solve(J, -missed)[:n]
            w = w + step
            if np.linalg.norm(step) <= 1e-16 * np.linalg.norm(w):
                break
        g = self.gradient(w)
        return w, float(g @ self.hessian(w) @ g / (g @ g))


def run(problem: Problem, start: Array, rate: float, size: Size, index: int) -> dict[str, Any]:
    """Teleports and steps: |w'|, 1 - cosine with Newton's direction, the inequality's slack."""
    draws = item_generator(Stream.THEORY_STUDY, SEED, 10_000 + index)
    n = len(start)
    w = start
    errors: list[float] = []
    cosines: list[float] = []
    slack: list[float] = []
    axes = np.linalg.eigh(problem.hessian(np.zeros(n)))[1].T
    for _ in range(size.steps):
        if errors and errors[-1] < ROUNDING:
            break
        drawn = draws.standard_normal((size.directions, n))
        w, share = problem.steepest(float(problem.loss(w)), np.concatenate([drawn, axes, -axes]))
        g = problem.gradient(w)
        newton = np.linalg.solve(problem.hessian(w), g)
        cosines.append(float(1 - g @ newton / np.linalg.norm(g) / np.linalg.norm(newton)))
        errors.append(float(np.linalg.norm(w)))
        mu, beta, G = problem.constants(errors[-1])
        right = G / (2 * mu) * errors[-1] ** 2 + abs(1 - rate) * beta / mu * errors[-1]
        w = w - rate / share * g
        # Rounding of the direction is of the order of eps |w'|.
        slack.append(float(np.linalg.norm(w)) / (right + 1e-14 * errors[-1]))
    return {"errors": errors, "cosine": max(cosines), "slack": max(slack)}


def descent(problem: Problem, start: Array, steps: int) -> list[float]:
    """|w| of gradient descent without teleports, at the rate 1 / lambda_max(H) of each point."""
    w, errors = start, []
    for _ in range(steps):
        errors.append(float(np.linalg.norm(w)))
        w = w - problem.gradient(w) / float(np.linalg.eigvalsh(problem.hessian(w))[-1])
    return errors


def slope(errors: list[float]) -> float:
    """Of log |w'_{t+1}| against log |w'_t|, where errors are small and no rounding."""
    logs = np.log(np.array(errors))
    ends = [
        t for t in range(1, len(logs) - 1) if errors[t - 1] < LARGE and errors[t + 1] > ROUNDING**2
    ]
    if not ends:
        return float("nan")
    return float(np.mean([(logs[t + 1] - logs[t]) / (logs[t] - logs[t - 1]) for t in ends[-3:]]))


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it, a piece for each dimension."""
    pieces = {str(n): folder.kept(f"n{n}", partial(measured, size, n)) for n in size.dimensions}
    claims: list[Claim] = []
    rows = []
    for n, piece in pieces.items():
        claims.append(
            exact(f"n = {n}: 1 - cosine of g and H^-1 g, the largest", piece["cosine"], "<", 1e-12)
        )
        claims.append(
            exact(f"n = {n}: |w_1| over the inequality's right side", piece["slack"], "<", 1)
        )
        for name, predicted in (("1 / lambda", 2.0), ("1 / (2 lambda)", 1.0), ("descent", 1.0)):
            values = np.array(piece["slopes"][name])
            told = "no teleports" if name == "descent" else f"rate {name}"
            claims.append(
                claim(f"n = {n}, {told}: slope of log error", values, "=", predicted, 0.02)
            )
        rows.append([n, *(" ".join(f"{x:.0e}" for x in piece["shown"][k][:7]) for k in RATES)])
    table = markdown_table(["n", *(f"rate {name}" for name in RATES)], rows)
    return {
        "claims": as_json(claims),
        "tables": [f"|w'| of one run, teleport after teleport.\n\n{table}"],
        "pieces": pieces,
    }


def measured(size: Size, n: int) -> dict[str, Any]:
    """Of one dimension."""
    slopes: dict[str, list[float]] = {name: [] for name in [*RATES, "descent"]}
    shown: dict[str, list[float]] = {}
    cosine = slack = 0.0
    for index in tqdm(range(size.problems), desc=f"Newton, n = {n}", leave=False):
        problem, start = Problem.drawn(n, index)
        for name, rate in RATES.items():
            found = run(problem, start, rate, size, 100 * n + index)
            cosine, slack = max(cosine, found["cosine"]), max(slack, found["slack"])
            slopes[name].append(slope(found["errors"]))
            shown.setdefault(name, found["errors"])
        errors = descent(problem, start, 400)
        slopes["descent"].append(slope(errors))
        shown.setdefault("descent", errors[: size.steps])
    return {"slopes": slopes, "shown": shown, "cosine": cosine, "slack": slack}
