"""The figure of the page, from its figures in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from studies.output import png
from studies.theory.planes import PLANES

SHOWN = {
    "no teleport": "k",
    "ten ascents": "C0",
    "random angle": "C1",
    "largest gradient": "C3",
}
"""Paths that are drawn, with their colours."""


def figure(parts: Mapping[str, Any]) -> bytes | None:
    """Six panels; None unless parts a, b, c and e were run."""
    if not {"a", "b", "c", "e"} <= parts.keys():
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(2, 3, figsize=(16, 9.5))
    for axis, name in zip(axes[0], PLANES, strict=False):
        _paths(axis, name, parts["e"]["pieces"][name])
    _losses(axes[0, 2], parts["e"]["pieces"]["Rosenbrock"])
    _bound(axes[1, 0], parts["a"])
    _newton(axes[1, 1], parts["b"])
    _gain(axes[1, 2], parts["c"])
    return png(drawing, dpi=100)


def _paths(axis: Any, name: str, piece: dict[str, Any]) -> None:
    plane = PLANES[name]
    left, right, low, high = plane.window
    x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(low, high, 300))
    levels = np.log10(plane.loss(np.stack([x, y])) + 1e-3)
    axis.contour(x, y, levels, levels=14, colors="0.8", linewidths=0.7)
    for move, colour in SHOWN.items():
        path = np.array(piece[move]["path"])
        axis.plot(*path.T, ".-", color=colour, markersize=3, linewidth=0.9, label=move)
    axis.set(title=f"(e) {name}: paths on level sets", xlim=(left, right), ylim=(low, high))
    axis.legend(frameon=False, fontsize=7, loc="upper left")


def _losses(axis: Any, piece: dict[str, Any]) -> None:
    for move, colour in SHOWN.items():
        axis.plot(np.maximum(piece[move]["losses"], 1e-30), color=colour, label=move)
    axis.set(yscale="log", xlabel="step", title="(e) Rosenbrock: f, first run of each")
    axis.legend(frameon=False, fontsize=8)


def _bound(axis: Any, part: dict[str, Any]) -> None:
    axis.plot(part["steps"], part["bound"], "k--", label="bound")
    for name, label in (
        ("teleported", "teleported, max over the orbit"),
        ("plain", "plain SGD, max over the orbit"),
        ("own", "plain SGD, at w"),
    ):
        axis.plot(part["steps"], part["least"][name], "o-", markersize=3, label=label)
    axis.set(xscale="log", yscale="log", xlabel="T", title="(a) least E |grad L|^2")
    axis.legend(frameon=False, fontsize=8)


def _newton(axis: Any, part: dict[str, Any]) -> None:
    for k, (n, piece) in enumerate(part["pieces"].items()):
        for name, style in (("1 / lambda", "o-"), ("1 / (2 lambda)", "x:")):
            errors = np.array(piece["shown"][name])
            label = f"n = {n}, rate {name}"
            axis.plot(errors[:-1], errors[1:], f"C{k}{style}", markersize=4, label=label)
    axis.set(xscale="log", yscale="log", xlabel="|w'| before", ylabel="|w'| after")
    axis.set(title="(b) errors, teleport after teleport", xlim=(1e-16, 3), ylim=(1e-32, 3))
    axis.legend(frameon=False, fontsize=8)


def _gain(axis: Any, part: dict[str, Any]) -> None:
    for k, (name, piece) in enumerate(part["pieces"].items()):
        for run, style in (("one", "-"), ("never", ":")):
            label = f"{name}, {'one teleport' if run == 'one' else 'no teleport'}"
            axis.plot(piece[run]["tau"], piece[run]["gain"], f"C{k}{style}", label=label)
    axis.set(yscale="log", xlabel="log f_0 / f", title="(c) max_g |g|^2 / |g|^2 along the flow")
    axis.legend(frameon=False, fontsize=8)
