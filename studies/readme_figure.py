"""The figure of the README: an evaluation's losses by inner step, a label on each curve.

    python eval_meta.py --out runs/readme_figure
    python -m studies.readme_figure [runs/readme_figure/results.json] [--out docs/convergence.png]

The losses are geometric means over the test tasks, and bands lie between their 5 % and 95 %
quantiles.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import write_atomically
from metaopt.base.process import World
from studies.output import DOCS, png

RESULTS = Path("runs/readme_figure/results.json")
FIGURE = DOCS.parent / "convergence.png"
LOSSES = 1e-10, 1e6
"""Ends of the axis; what diverges leaves the picture at its top."""


@dataclass(frozen=True)
class Drawn:
    """A curve: its words, where they stand (an inner step, a loss), and how it looks."""

    words: str
    place: tuple[float, float]
    style: Mapping[str, Any]


CURVES = {
    "coordinate LSTM(update,tele)": Drawn(
        "learned updates and learned teleports",
        (24, 1.5e-7),
        {"color": "tab:red", "linewidth": 2.6},
    ),
    "coordinate LSTM(update)": Drawn(
        "learned updates alone", (62, 0.12), {"color": "tab:blue", "linewidth": 2.6}
    ),
    "GD": Drawn("gradient descent", (82, 60.0), {"color": "0.35", "linewidth": 1.2}),
    "Adam": Drawn("Adam", (22, 3e3), {"color": "tab:green", "linewidth": 1.2}),
    "L-BFGS": Drawn("L-BFGS", (6.5, 9e4), {"color": "tab:purple", "linewidth": 1.2}),
}
"""The optimizers that are drawn, by their names in ``results.json``."""


def figure(results: Mapping[str, Any]) -> bytes:
    """Loss by inner step as a PNG.

    Args:
        results: the content of ``results.json``.

    Raises:
        UserError: where an optimizer of ``CURVES`` is not among them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = results["optimizers"]
    if missing := [name for name in CURVES if name not in found]:
        raise UserError(f"results.json: expected {', '.join(missing)} among the optimizers")
    drawing, axis = pyplot.subplots(figsize=(8, 4.2))
    for name, drawn in CURVES.items():
        entry = found[name]
        steps = np.arange(len(entry["loss_geomean"]))
        axis.plot(steps, entry["loss_geomean"], **drawn.style)
        colour = drawn.style["color"]
        axis.fill_between(
            steps, entry["loss_q05"], entry["loss_q95"], color=colour, alpha=0.12, linewidth=0
        )
        axis.text(*drawn.place, drawn.words, color=colour, fontsize=10)
    axis.set_yscale("log")
    axis.set_ylim(*LOSSES)
    axis.set_xlim(0, results["steps"])
    axis.set_xlabel("inner step (one gradient each)")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return png(drawing, dpi=110)


def main(world: World) -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description="The figure of the README.")
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="results.json")
    parser.add_argument("--out", type=Path, default=FIGURE, metavar="FILE", help="a PNG")
    arguments = parser.parse_args()
    if not arguments.results.is_file():
        raise UserError(
            f"{arguments.results}: not there; `python eval_meta.py --out {RESULTS.parent}` "
            f"writes {RESULTS}"
        )
    write_atomically(arguments.out, figure(json.loads(arguments.results.read_text())))
    world.say(f"written to {arguments.out}")


if __name__ == "__main__":
    cli.run(main)
