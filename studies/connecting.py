"""Chord, bend and orbit in a plane: the smallest network whose minima are a curve.

    L(u, w) = (1 - u w)^2,   a = (1/3, 3),   b = (3, 1/3)

    python -m studies.connecting [--json FILE] [--write-page]

All curves are those of ``metaopt.connect`` and ``metaopt.symmetry_curve`` on two linear layers of
one unit. ``--write-page`` puts the table into ``docs/guide/connecting.md``, the figure beside it.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import metaopt
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from studies.output import ROOT, Page, png

Array = NDArray[np.float64]

PAGE = Page(ROOT / "docs" / "guide" / "connecting.md", "curves in a plane", "connecting")
START, END, OPPOSITE = (1 / 3, 3.0), (3.0, 1 / 3), (-1 / 3, -3.0)
STEPS, LR = 1500, 0.01
POINTS = 61
ONE = torch.ones(1, 1, dtype=torch.float64)
DATA = (ONE, ONE)
CHORD, BEZIER, CHAIN, ORBIT, ACROSS = (
    "chord",
    "Bezier curve, one bend",
    "chain, one bend",
    "orbit",
    "chord to (-1/3, -3)",
)
COLOURS = {CHORD: "tab:red", BEZIER: "tab:green", CHAIN: "tab:orange", ORBIT: "tab:blue"}


def network(point: tuple[float, float]) -> nn.Sequential:
    """x -> u w x, with w the first layer's weight and u the second's."""
    u, w = point
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        for weight, value in zip(model.parameters(), (w, u), strict=True):
            weight.fill_(value)
    return model


@cache
def curves() -> dict[str, Any]:
    """The curves by name."""
    a, b, opposite = (network(point) for point in (START, END, OPPOSITE))
    loss = nn.functional.mse_loss
    settings: dict[str, Any] = {"loss": loss, "data": DATA, "steps": STEPS, "lr": LR}
    (symmetry,) = metaopt.symmetries(a)
    scale = torch.tensor([[END[1] / START[1]]], dtype=torch.float64)
    return {
        CHORD: metaopt.connect([a, b], bends=0, **settings),
        BEZIER: metaopt.connect([a, b], kind="bezier", **settings),
        CHAIN: metaopt.connect([a, b], kind="chain", **settings),
        ORBIT: metaopt.symmetry_curve(a, symmetry, scale, loss=loss),
        ACROSS: metaopt.connect([a, opposite], bends=0, **settings),
    }


def points(curve: Any, t: Array) -> Array:
    """(u, w) at each t: [T, 2]."""
    found = []
    for one in t:
        weights = curve.weights(float(one))
        found.append([float(weights["1.weight"]), float(weights["0.weight"])])
    return np.array(found)


def table() -> str:
    """The loss along each curve."""
    rows = []
    for name, curve in curves().items():
        report = curve.evaluate(DATA, POINTS)
        middle = points(curve, np.array([0.5]))[0]
        summary = report.summary("loss")
        rows.append(
            [
                name,
                f"({middle[0]:.3f}, {middle[1]:.3f})",
                f"{report.barrier:.4f}",
                f"{summary.mean:.4f}",
                f"{report.length:.3f}",
            ]
        )
    return markdown_table(["curve", "middle", "barrier", "mean loss", "length"], rows)


def figure() -> bytes:
    """Level sets with the curves; the loss along them. A PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (plane, along) = pyplot.subplots(1, 2, figsize=(12, 5))
    axis = np.linspace(-0.3, 3.6, 201)
    u, w = np.meshgrid(axis, axis)
    levels = np.log10((1 - u * w) ** 2 + 1e-3)
    plane.contour(u, w, levels, levels=18, colors="0.8", linewidths=0.8, linestyles="solid")
    t = np.linspace(0, 1, POINTS)
    for name, colour in COLOURS.items():
        curve = curves()[name]
        plane.plot(*points(curve, t).T, color=colour, label=name, linewidth=2)
        along.plot(t, curve.evaluate(DATA, POINTS).loss.numpy(), color=colour, label=name)
    for point, letter in ((START, "a"), (END, "b")):
        plane.plot(*point, "k*", markersize=10)
        plane.annotate(letter, point, (6, 6), textcoords="offset points")
    plane.set(xlabel="u", ylabel="w", title="level sets of L = (1 - u w)², and ways from a to b")
    plane.legend(frameon=False, loc="upper right")
    along.set_yscale("symlog", linthresh=1e-3)
    along.set(xlabel="t", ylabel="L", title="the loss along them (linear below 0.001)")
    return png(drawing, dpi=90)


def main(world: World) -> None:
    """Print, plot."""
    parser = argparse.ArgumentParser(description="Chord, bend and orbit in a plane.")
    arguments = PAGE.parse(parser)
    PAGE.tell(arguments, table(), figure=figure())


if __name__ == "__main__":
    cli.run(main)
