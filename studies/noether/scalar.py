"""Part c: u w x ~ y, where everything is a formula.

    l = (u w x - y)^2,   x ~ N(0, 1),   y = beta x + sigma n,   C = u^2 - w^2,   v = u w

A step of SGD with learning rate lr and batches of S multiplies C by 1 - 4 lr^2 (mean r x)^2
exactly, r = v x - y. So C decays at rate T C0 a unit of time lr * steps, T = lr / S,
C0 = 4 (a1 v^2 - 2 a2 v + a3) with a1 = Var x^2, a2 = cov(x^2, x y), a3 = Var x y. Near u = w = 0
log |u| grows by E log |1 + 2 lr mean(x y)| a step, which changes sign at T = Tc = E[x y] / a3 for
small lr: above it SGD collapses to zero though the loss has its minimum elsewhere.

Reference: Ziyin et al., arXiv 2308.06671, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from studies.noether.claims import HALVINGS, Array, Claim, as_json, claim, to_zero
from studies.noether.folder import Folder

SEED = 3


@dataclass(frozen=True)
class Size:
    """Of the part."""

    runs: int
    relaxations: float  # of C, over which its decay is measured
    lr: float  # the largest, for the decay
    steps: int  # for the collapse


FULL = Size(runs=512, relaxations=2.0, lr=0.01, steps=100_000)
SMOKE = Size(runs=64, relaxations=0.2, lr=0.02, steps=2000)
BATCHES = (1, 4)
TEMPERATURES = (0.8, 1.2)
"""In units of Tc."""
ZERO = 1e-12
"""|v| / v* below which a run counts as collapsed."""


@dataclass(frozen=True)
class Moments:
    """Exact moments for Gaussian x and n."""

    beta: float
    sigma: float

    @property
    def a3(self) -> float:
        """Var x y."""
        return 2 * self.beta**2 + self.sigma**2

    @property
    def critical(self) -> float:
        """Tc = E[x y] / Var x y."""
        return self.beta / self.a3

    def decay(self, v: float) -> float:
        """C0 = 4 (a1 v^2 - 2 a2 v + a3)."""
        return 4 * (2 * v**2 - 4 * self.beta * v + self.a3)


def run(
    moments: Moments, u: Array, w: Array, lr: float, batch: int, steps: int, index: int
) -> tuple[Array, Array, Array]:
    """SGD from u, w [runs]: both at the end, and log |v| half-way."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, index)
    half = np.log(np.abs(u * w))
    for step in trange(steps, desc=f"lr {lr:.3g}", leave=False):
        x, n = draws.standard_normal((2, len(u), batch))
        slope = 2 * lr * ((u * w - moments.beta)[:, None] * x - moments.sigma * n)
        slope = (slope * x).mean(1)
        u, w = u - slope * w, w - slope * u
        if step == steps // 2:
            half = np.log(np.abs(u * w))
    return u, w, half


def decay(size: Size) -> list[Claim]:
    """The rate at which C decays, over its prediction, as lr -> 0."""
    moments = Moments(1.0, 1.0)
    claims = []
    for batch in BATCHES:
        shares = []
        for k, share in enumerate(HALVINGS):
            lr = size.lr * share
            rate = lr * (lr / batch) * moments.decay(moments.beta)
            steps = round(size.relaxations / rate)
            u = np.full(size.runs, 1.5)
            w = moments.beta / u
            before = np.log(u**2 - w**2)
            u, w, _ = run(moments, u, w, lr, batch, steps, 10 * batch + k)
            shares.append((before - np.log(np.abs(u**2 - w**2))) / (rate * steps))
            claims.append(
                claim(f"decay of u^2 - w^2 over T C0, lr {lr:g}, S = {batch}", shares[-1], "~", 1)
            )
        limit = to_zero(shares)
        claims.append(claim(f"the same, lr -> 0, S = {batch}", limit, "=", 1.0))
    return claims


def growth(moments: Moments, lr: float, points: int = 200) -> float:
    """E log |1 + 2 lr x y|, what log |u| grows a step near u = w = 0 with S = 1, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    x, n = np.meshgrid(nodes, nodes)
    y = moments.beta * x + moments.sigma * n
    return float((np.outer(weights, weights) * np.log(np.abs(1 + 2 * lr * x * y))).sum())


def collapse(size: Size) -> list[Claim]:
    """What is left of v below Tc and above."""
    moments = Moments(0.05, 1.0)
    claims = []
    for k, share in enumerate(TEMPERATURES):
        lr = share * moments.critical
        start = np.full(size.runs, moments.beta**0.5)
        u, w, half = run(moments, start, start.copy(), lr, 1, size.steps, 100 + k)
        v = np.abs(u * w)
        gone = (v < ZERO * moments.beta).astype(float)
        relation, share_gone = (">", 0.95) if share > 1 else ("<", 0.05)
        name = f"T = {share:g} Tc"
        claims.append(
            claim(f"{name}: share of runs with |v| below {ZERO:g} v*", gone, relation, share_gone)
        )
        rate = (np.log(v) - half) / (size.steps - 1 - size.steps // 2)
        predicted = 2 * growth(moments, lr) if share > 1 else 0.0
        claims.append(claim(f"{name}: growth of log |v| a step", rate, "=", predicted))
    return claims


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it."""
    return folder.kept("part", partial(measured, size))


def measured(size: Size) -> dict[str, Any]:
    """All of it."""
    moments = Moments(0.05, 1.0)
    lrs = [t * moments.critical for t in TEMPERATURES]
    return {
        "claims": as_json([*decay(size), *collapse(size)]),
        "tables": [],
        "critical": moments.critical,
        "growth": {
            "lr": lrs,
            "of small lr": [2 * lr * (moments.beta - lr * moments.a3) for lr in lrs],
            "exact": [growth(moments, lr) for lr in lrs],
        },
    }
