"""Part e: Rosenbrock's and Booth's functions with teleports, in the settings of the first paper.

    Booth       from (5, -5),  lr 0.08,  10 steps,    one teleport before step 5
    Rosenbrock  from (-1, -1), lr 1e-3,  1,000 steps, a teleport before steps 100, 200, ..

A teleport is ten ascents of |grad f|^2 in the angle; for Rosenbrock from a random angle in [0, pi).
Beside them stand a random angle alone, the exact largest gradient on the orbit, the smallest one,
and no teleport.

Reference: Zhao, Dehmamy, Walters and Yu, arXiv 2205.10637.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from studies.noether.claims import Array, as_json
from studies.noether.folder import Folder
from studies.theory.planes import PLANES, Plane
from studies.theory.told import exact

SEED = 5
ASCENTS = 10
LOST = 1e30
"""Stands for a loss that has risen above the first one, or is not finite."""


@dataclass(frozen=True)
class Setting:
    """Of one function."""

    lr: float
    steps: int
    teleports: tuple[int, ...]  # before these steps, counted from 0
    group_lr: float
    largest_angle: float  # of the random angle from which an ascent starts


SETTINGS = {
    "Booth": Setting(0.08, 10, (4,), 1e-3, 0.0),
    "Rosenbrock": Setting(1e-3, 1000, tuple(range(99, 1000, 100)), 0.1, float(np.pi)),
}


@dataclass(frozen=True)
class Size:
    """Of the part."""

    runs: int  # of teleports with random numbers


FULL = Size(1000)
SMOKE = Size(20)

Move = Callable[[Plane, Setting, Array, Generator], Array]
"""Points [2, runs] -> points of their orbits."""


def none(plane: Plane, setting: Setting, w: Array, draws: Generator) -> Array:
    """No teleport."""
    return w


def ascent(plane: Plane, setting: Setting, w: Array, draws: Generator) -> Array:
    """Ten ascents, as published."""
    angle = np.asarray(draws.uniform(0, setting.largest_angle, w.shape[1]))
    for _ in range(ASCENTS):
        angle = angle + setting.group_lr * plane.slope(plane.turned(w, angle))
    return plane.turned(w, angle)


def anywhere(plane: Plane, setting: Setting, w: Array, draws: Generator) -> Array:
    """A random angle in [0, pi)."""
    return plane.turned(w, draws.uniform(0, np.pi, w.shape[1]))


def largest(plane: Plane, setting: Setting, w: Array, draws: Generator) -> Array:
    """The largest gradient on the orbit."""
    return np.stack([plane.extreme(one) for one in w.T], 1)


def smallest(plane: Plane, setting: Setting, w: Array, draws: Generator) -> Array:
    """The smallest gradient on the orbit."""
    return np.stack([plane.extreme(one, np.argmin) for one in w.T], 1)


MOVES: dict[str, tuple[Move, bool]] = {
    "no teleport": (none, False),
    "ten ascents": (ascent, True),
    "random angle": (anywhere, True),
    "largest gradient": (largest, False),
    "smallest gradient": (smallest, False),
}
"""Each with whether it has random numbers."""


def run(plane: Plane, name: str, runs: int) -> dict[str, Any]:
    """Gradient descent with teleports: where runs end; losses and the path of the first one."""
    setting, (move, is_random) = SETTINGS[plane.name], MOVES[name]
    draws = item_generator(Stream.THEORY_STUDY, SEED, list(MOVES).index(name))
    w = np.tile(np.array(plane.start)[:, None], (1, runs if is_random else 1))
    first = float(plane.loss(w)[0])
    losses, path = [], []
    with np.errstate(all="ignore"):
        for step in range(setting.steps):
            path.append(w[:, 0].tolist())
            if step in setting.teleports:
                w = move(plane, setting, w, draws)
                path.append(w[:, 0].tolist())
            losses.append(float(plane.loss(w)[0]))
            w = w - setting.lr * plane.gradient(w)
        ends = plane.loss(w)
    lost = ~np.isfinite(ends) | (ends > first)
    ends = np.where(lost, LOST, ends)
    there = [point for point in path if np.isfinite(point).all()]
    return {
        "median": float(np.median(ends)),
        "quartiles": [float(x) for x in np.quantile(ends, (0.25, 0.75))],
        "lost": float(lost.mean()),
        "factor": losses[-1] / losses[-2] if np.isfinite(losses[-1]) else LOST,
        "losses": [float(f"{x:.4g}") if x < LOST else LOST for x in losses],
        "path": np.round(there, 4).tolist(),
    }


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it, a piece for each function."""
    pieces = {
        name: folder.kept(name, partial(measured, size, plane)) for name, plane in PLANES.items()
    }
    booth, rosenbrock = PLANES["Booth"], PLANES["Rosenbrock"]
    start = np.array(booth.start)
    best = booth.extreme(start)
    factors = [pieces["Booth"][name]["factor"] for name in ("largest gradient", "no teleport")]
    angles = np.linspace(0, 2 * np.pi, 1_000_001)
    corner = np.array(rosenbrock.start)
    grid = float(rosenbrock.squared(rosenbrock.turned(corner[:, None], angles)).max())
    found = float(rosenbrock.squared(rosenbrock.extreme(corner)))
    medians = {name: one["median"] for name, one in pieces["Rosenbrock"].items()}
    after = booth.loss(best - booth.gradient(best) / 18)
    over = {name: median / medians["no teleport"] for name, median in medians.items()}
    claims = [
        exact("Booth at (5, -5): f", float(booth.loss(start)), "=", 144),
        exact("|grad f|^2", float(booth.squared(start)), "=", 2880),
        exact("its largest on the orbit", float(booth.squared(best)), "=", 5184, 1e-9),
        exact("f after one step of 1/18 from there", float(after), "<", 1e-25),
        exact("factor of f a step of 0.08 after that teleport", factors[0], "=", 0.44**2, 1e-6),
        exact("the same without a teleport, across", factors[1], "=", 0.84**2, 0.01),
        exact("Rosenbrock at (-1, -1): f", float(rosenbrock.loss(corner)), "=", 404),
        exact("largest |grad f|^2 on its orbit over a grid's", found / grid, "=", 1, 1e-6),
        exact("its median f over no teleport's, ten ascents", over["ten ascents"], "<", 1e-3),
        exact("its median f over no teleport's, random angle", over["random angle"], "<", 1e-3),
    ]
    rows = [
        [
            name,
            move,
            *(f"{x:.2g}" if x < LOST / 2 else "lost" for x in (one["median"], *one["quartiles"])),
            f"{one['lost']:.1%}",
        ]
        for name, piece in pieces.items()
        for move, one in piece.items()
    ]
    heads = ["function", "teleport", "f at the end, median", "25 %", "75 %", "rose or diverged"]
    return {
        "claims": as_json(claims),
        "tables": [markdown_table(heads, rows)],
        "pieces": pieces,
    }


def measured(size: Size, plane: Plane) -> dict[str, Any]:
    """Of one function."""
    return {name: run(plane, name, size.runs) for name in MOVES}
