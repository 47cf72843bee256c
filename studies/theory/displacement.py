"""Part f: what the curvature of a minimum says of points beside it.

    (1 / r) mean over |p| = r of dist(p, curve)

for three curves through 0: a line has 2 / pi at every r; a circle of curvature kappa and a
parabola y = kappa x^2 / 2 both have 2 / pi - kappa^2 r^2 / (12 pi) + .., less than the line. For
larger kappa r both turn: the circle goes to 1, as a point does, and the parabola to 1/2 + 1/pi, as
a ray does. Curvature alone does not say whether points beside a curve are farther from it.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, figure 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from metaopt.base.tables import markdown_table
from studies.noether.claims import Array, as_json
from studies.noether.folder import Folder
from studies.theory.told import exact

LINE = 2 / np.pi
RAY = 0.5 + 1 / np.pi
FALL = 1 / (12 * np.pi)


@dataclass(frozen=True)
class Size:
    """Of the part."""

    points: int  # on the circle |p| = r


FULL = Size(4096)
SMOKE = Size(256)
TURNS = (0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0, 1000.0, 100_000.0)
"""kappa r: nothing else matters."""


def to_circle(points: Array) -> Array:
    """Distances of points [2, m] to the circle of curvature 1 through 0, centred at (0, 1)."""
    return np.abs(np.hypot(points[0], points[1] - 1) - 1)


def to_parabola(points: Array) -> Array:
    """Distances of points [2, m] to y = x^2 / 2, whose curvature at 0 is 1.

    The nearest x solves x^3 / 2 + (1 - q) x - p = 0, with q the height of the point.
    """
    found = np.empty(points.shape[1])
    for i, (p, q) in enumerate(points.T):
        roots = np.roots([0.5, 0.0, 1 - q, -p])
        real = roots[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots))].real
        found[i] = np.hypot(real - p, real**2 / 2 - q).min()
    return found


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it."""
    return folder.kept("part", partial(measured, size))


def measured(size: Size) -> dict[str, Any]:
    """All of it."""
    angles = (np.arange(size.points) + 0.5) * (2 * np.pi / size.points)
    unit = np.stack([np.cos(angles), np.sin(angles)])
    circle = [float(to_circle(r * unit).mean()) / r for r in TURNS]
    parabola = [float(to_parabola(r * unit).mean()) / r for r in TURNS]
    line = float(np.abs(unit[1]).mean())
    falls = [(LINE - one[1]) / TURNS[1] ** 2 for one in (circle, parabola)]
    claims = [
        exact("line", line, "=", LINE, 1e-5),
        exact("circle: (2 / pi - value) / (kappa r)^2 at 0.1", falls[0], "=", FALL, 0.01),
        exact("parabola: (2 / pi - value) / (kappa r)^2 at 0.1", falls[1], "=", FALL, 0.01),
        exact("circle at kappa r = 1 over a line's", circle[3] / LINE, "<", 1),
        exact("parabola at kappa r = 1 over a line's", parabola[3] / LINE, "<", 1),
        exact("parabola at kappa r = 100 over a line's", parabola[6] / LINE, ">", 1),
        exact("parabola at kappa r = 100,000", parabola[-1], "=", RAY, 0.01),
    ]
    rows = [
        [f"{r:g}", f"{a:.5f}", f"{b:.5f}"] for r, a, b in zip(TURNS, circle, parabola, strict=True)
    ]
    return {
        "claims": as_json(claims),
        "tables": [markdown_table(["kappa r", "circle", "parabola"], rows)],
        "turns": list(TURNS),
        "circle": circle,
        "parabola": parabola,
    }
