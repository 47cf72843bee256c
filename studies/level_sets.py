"""Level sets and teleports in a plane: the smallest problem that has a symmetry.

    L(w1, w2) = 1/2 (y - w2 s(w1 x))^2,   x = y = 1,   s = LeakyReLU(0.1)

    python -m studies.level_sets [--json FILE] [--write-page]

The group is GL(1), g = exp(t) > 0: (w1, w2) -> (g w1, w2 / g) for w1 > 0. All teleports go through
the engine. ``--write-page`` puts the table into ``docs/results/level_sets.md``, the figure beside
it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt.base import cli
from metaopt.base.network import LeakyReLU, Weights
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.landscape.curvature import AbsoluteHessian, cosine, flat
from metaopt.symmetry.actions import ThroughData
from metaopt.symmetry.limits import FixedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.engine import TeleportEngine
from metaopt.teleport.guard import Refuse
from studies.output import DOCS, Page, png

Array = NDArray[np.float64]

PAGE = Page(DOCS / "level_sets.md", "level set table", "level_sets")
START = (0.4, 0.4)
LR = 0.1
STEPS = 30
DAMPING = 1e-3
"""Of Newton's direction, as a share of the Hessian's largest absolute eigenvalue."""
SHOWN = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""t in the table and as points of the figure."""


def tasks(points: Array) -> TaskBatch:
    """The problem at B points [B, 2], each as initial weights."""
    w = torch.from_numpy(points)
    one = torch.ones(len(w), 1, 1, dtype=w.dtype)
    return TaskBatch(one, one, (w[:, :1, None], w[:, 1:, None]), LeakyReLU(0.1))


def losses(points: Array) -> Array:
    """L at points [B, 2]: [B]."""
    found = tasks(points)
    return np.asarray(found.loss(found.initial))


def orbit(point: tuple[float, float], t: Array) -> Array:
    """exp(t) . w for each t: [B] -> [B, 2]."""
    found = tasks(np.tile(point, (len(t), 1)))
    engine = TeleportEngine(ThroughData(), Exponential(3.0), FixedNorm(1.0), Refuse(1e-9), True)
    return _points(engine.move(found.initial, (torch.from_numpy(t)[:, None, None],), found))


def descent(point: tuple[float, float], lr: float, steps: int) -> Array:
    """Gradient descent: [steps + 1, 2]."""
    found = tasks(np.array([point]))
    weights, path = found.initial, [_points(found.initial)]
    for _ in range(steps):
        grads = found.observe(weights).grads
        weights = tuple(W - lr * G for W, G in zip(weights, grads, strict=True))
        path.append(_points(weights))
    return np.concatenate(path)


def geometry(points: Array) -> tuple[Array, Array]:
    """Gradient norms, and cosines of -grad L with Newton's damped direction: [B, 2] -> [B] twice.

    The absolute eigenvalues of the Hessian make it a direction of descent.
    """
    found = tasks(points)
    down = -flat(found.observe(found.initial).grads)
    newton = AbsoluteHessian(found, found.initial).direction(DAMPING)
    norms = torch.linalg.vector_norm(down, dim=1)
    return np.asarray(norms), np.asarray(cosine(down, newton))


def _points(weights: Weights) -> Array:
    return np.asarray(torch.cat([W[:, 0] for W in weights], dim=1))


def table() -> str:
    """Along the orbit of ``START``."""
    t = np.array(SHOWN)
    points = orbit(START, t)
    norms, cosines = geometry(points)
    rows = []
    for i, point in enumerate(points):
        after = losses(descent((float(point[0]), float(point[1])), LR, STEPS))
        rows.append(
            [
                f"{t[i]:g}",
                f"({point[0]:.3f}, {point[1]:.3f})",
                f"{losses(points)[i]:.6f}",
                f"{norms[i]:.3g}",
                f"{cosines[i]:.3f}",
                f"{after[1]:.3g}",
                f"{after[-1]:.3g}",
            ]
        )
    header = ["t", "exp(t) . w", "loss", "gradient norm", "cosine with Newton"]
    return markdown_table([*header, "after 1 step", f"after {STEPS} steps"], rows)


def figure() -> bytes:
    """Level sets with an orbit and two descents; the geometry along the orbit. A PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (plane, along) = pyplot.subplots(1, 2, figsize=(12, 5))
    axis = np.linspace(0, 2.2, 161), np.linspace(0, 2.2, 161)
    grid = np.stack(np.meshgrid(*axis), axis=-1)
    heights = losses(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    plane.contour(*axis, np.log10(heights + 1e-4), levels=18, colors="0.75", linewidths=0.8)
    t = np.linspace(SHOWN[0], SHOWN[-1], 101)
    whole = orbit(START, t)
    plane.plot(*whole.T, color="tab:blue", label="orbit of w")
    plane.plot(*orbit(START, np.array(SHOWN)).T, "o", color="tab:blue", markersize=4)
    best = int(np.argmax(geometry(whole)[0]))
    for begin, colour, label in (
        (START, "tab:red", "gradient descent from w"),
        ((float(whole[best, 0]), float(whole[best, 1])), "tab:green", "after a teleport"),
    ):
        path = descent(begin, LR, STEPS)
        plane.plot(*path.T, ".-", color=colour, label=label, markersize=4)
    plane.plot(*START, "k*", markersize=10)
    plane.set(xlabel="w1", ylabel="w2", title="level sets of L, and what moves along them")
    plane.set_xlim(axis[0][0], axis[0][-1])
    plane.set_ylim(axis[1][0], axis[1][-1])
    plane.legend(frameon=False, loc="upper right")
    norms, cosines = geometry(whole)
    along.plot(t, losses(whole), color="tab:blue", label="loss")
    along.plot(t, norms, color="tab:orange", label="gradient norm")
    along.plot(t, cosines, color="tab:green", label="cosine of -grad L with Newton's direction")
    along.set(xlabel="t, g = exp(t)", title="along the orbit")
    along.legend(frameon=False)
    return png(drawing, dpi=110)


def main(world: World) -> None:
    """Print, plot."""
    parser = argparse.ArgumentParser(description="Level sets and teleports in a plane.")
    arguments = PAGE.parse(parser)
    PAGE.tell(arguments, table(), figure=figure())


if __name__ == "__main__":
    cli.run(main)
