"""The figure of the page, from its figures in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from studies.noether.sharpness import STARTS
from studies.output import png


def figure(parts: Mapping[str, Any]) -> bytes | None:
    """Four panels, a, b, d, f; None unless all of them were run."""
    if not {"a", "b", "d", "f"} <= parts.keys():
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(2, 2, figsize=(13, 9))
    _charges(axes[0, 0], parts["a"])
    _sharpness(axes[0, 1], parts["b"])
    _rates(axes[1, 0], parts["d"])
    _distances(axes[1, 1], parts["f"])
    return png(drawing, dpi=110)


def _charges(axis: Any, part: dict[str, Any]) -> None:
    place, ticks = 0, []
    for row in part["rows"].values():
        ticks.append((place + (len(row["charges"]) - 1) / 2, row["name"]))
        for one in row["charges"].values():
            scale = max(abs(value - one["predicted"]) for value in one["starts"])
            for values, style in (
                (one["starts"], "k_"),
                (one["descent"], "C0x"),
                ([mean for mean, _, _ in one["of starts"]], "C3o"),
            ):
                shares = [(value - one["predicted"]) / scale for value in values]
                axis.plot([place] * len(shares), shares, style, markersize=5)
            place += 1
        place += 1
    axis.axhline(0, color="0.7", zorder=0)
    where, names = zip(*ticks, strict=True)
    axis.set_xticks(where, names, rotation=25, ha="right", fontsize=7)
    axis.set(title="(a) charge - closed form, farthest start 1: start _, GD x, SGD o")


def _sharpness(axis: Any, part: dict[str, Any]) -> None:
    limit, still = np.array(part["limit"]), np.array(part["descent"])
    for k, noise in enumerate(dict.fromkeys(noise for _, noise in part["conditions"])):
        chosen = [c for c, (_, name) in enumerate(part["conditions"]) if name == noise]
        phi = [part["conditions"][c][0] for c in chosen]
        flat = np.array(part["flattest"])[chosen]
        ends = limit[:, chosen].mean((0, 2)) / flat
        axis.plot(phi, np.array(part["equilibrium"])[chosen] / flat, f"C{k}-", label=noise)
        axis.plot(phi, ends, f"C{k}o")
        if k == 0:
            for s, kind in enumerate(STARTS):
                style = {"color": str(0.2 + 0.25 * s), "linestyle": ":"}
                axis.plot(phi, still[s][chosen].mean(1) / flat, label=f"GD from {kind}", **style)
    axis.set(xscale="log", xlabel="phi", title="(b) Tr H over the flattest: noise -, SGD o")
    axis.legend(frameon=False, fontsize=8)


def _rates(axis: Any, part: dict[str, Any]) -> None:
    for name, style in (("plain", "-"), ("decay", "--")):
        run = part["transformer"][name]
        for k, (block, rates) in enumerate(run["rates"].items()):
            if block.endswith("0"):
                label = block if name == "plain" else None
                axis.plot(run["marks"], rates, f"C{k}{style}", label=label)
    axis.set(yscale="log", xlabel="step", title="(d) lr / |w|^2, first layer; dashed with decay")
    axis.legend(frameon=False, fontsize=8)


def _distances(axis: Any, part: dict[str, Any]) -> None:
    for k, (name, one) in enumerate(part["settings"].items()):
        if name.startswith("digits"):
            axis.plot(one["steps"], one["noise"], f"C{k}.-", label=name.removeprefix("digits, "))
    axis.set(xscale="symlog", xlabel="step", title="(f) digits: distance t to the equilibrium")
    axis.legend(frameon=False, fontsize=8)
