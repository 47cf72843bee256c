"""``study.png``: a panel for each family."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def figure(found: dict[str, Any]) -> bytes:
    """Loss by inner step as a PNG.

    Learned optimizers: thin for each seed, thick over seeds. Of each hand-made optimizer the one
    that is best at the last step, dashed. Bands are 95 % intervals over tasks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = found["families"]
    shown, axes = pyplot.subplots(
        1, len(families), figsize=(6.5 * len(families), 5.5), squeeze=False
    )
    colours = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    for axis, (family, about) in zip(axes[0], families.items(), strict=True):
        for i, entry in enumerate(_drawn(about["contenders"])):
            colour, label = colours[i % len(colours)], entry["label"]
            whole = entry["over_seeds"]
            learned = entry["kind"] in ("learned", "control")
            style: dict[str, Any] = {"linewidth": 2.2}
            if not learned:
                style = {"linewidth": 1.2, "linestyle": "--"}
            steps = np.arange(len(whole["geomean"]))
            axis.plot(steps, whole["geomean"], color=colour, label=label, **style)
            axis.fill_between(
                steps, whole["low"], whole["high"], color=colour, alpha=0.25, linewidth=0
            )
            for run in entry["runs"] if len(entry["runs"]) > 1 else []:
                axis.plot(steps, run["geomean"], color=colour, linewidth=0.6)
        axis.set_yscale("log")
        axis.set_xlabel("inner step")
        axis.set_ylabel("excess over the least loss" if about["least_mean"] > 0 else "loss")
        axis.set_title(f"family {family}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    tasks = found["config"]["tasks"]
    shown.suptitle(f"{tasks} unseen tasks: geometric mean and 95 % interval; thin: each seed")
    shown.tight_layout()
    buffer = io.BytesIO()
    shown.savefig(buffer, format="png", dpi=130)
    pyplot.close(shown)
    return buffer.getvalue()


def _drawn(contenders: dict[str, Any]) -> list[dict[str, Any]]:
    """Learned ones and controls, and the best of each hand-made optimizer."""
    drawn = [entry for entry in contenders.values() if entry["kind"] in ("learned", "control")]
    best: dict[str, dict[str, Any]] = {}
    for name, entry in contenders.items():
        if entry["kind"] == "baseline":
            base = name.partition("@")[0]
            last = entry["over_seeds"]["geomean"][-1]
            if base not in best or last < best[base]["over_seeds"]["geomean"][-1]:
                best[base] = entry
    return [*drawn, *best.values()]
