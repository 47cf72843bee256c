"""The page of study b: a sentence for each measure, then the tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.base.tables import markdown_table
from studies.output import png
from studies.teleport.branches import MOVES
from studies.teleport.effects import WORST
from studies.teleport.generalisation import MEASURES
from studies.teleport.optimizers_page import percent, short

NAMES = {
    "phi": "phi, as published",
    "increase": "honest sharpness",
    "trace": "trace of the Hessian",
    "psi": "psi, as published",
    "train": "training loss",
}


def _number(of: Sequence[float]) -> str:
    return f"{of[0]:+.2f} ({of[1]:+.2f} to {of[2]:+.2f})"


def _sign(of: Sequence[float], named: str = "") -> str:
    if of[1] > 0:
        return f"positive{named}"
    return f"negative{named}" if of[2] < 0 else "not told from zero"


def sentences(found: Mapping[str, Any]) -> str:
    """Sign and size of each measure, on each data set."""
    lines = []
    for key in MEASURES:
        pieces = []
        for name, one in found["sets"].items():
            said = one["correlations"][key]
            piece = f"{name} {_number(said['pearson'])}, {_sign(said['pearson'])}"
            if "partial" in said:
                piece += f"; given the training loss {_number(said['partial'])}, " + _sign(
                    said["partial"]
                )
            pieces.append(piece)
        lines.append(f"- **{NAMES[key]}** with the test loss: {'. '.join(pieces)}.")
    for move in MOVES:
        pieces = []
        for name, one in found["sets"].items():
            if "moves" not in one:
                continue
            said = one["moves"][move.name]
            own = 100 * math.expm1(said["told"][f"log {move.measure}"])
            piece = (
                f"{name} ({move.measure} {short(own)} % by teleports) {percent(said['test end'])}, "
                f"beyond a random element of the same drift {percent(said['test end, beyond'])}, "
                f"{_sign(said['test end, beyond'])}"
            )
            if "test end, beyond, kept" in said:
                kept = said["test end, beyond, kept"]
                piece += (
                    f" ({said['told']['diverged']} of {found['size']['seeds']} runs diverged, "
                    f"with a loss that counts as at most {WORST:g}; without pairs in which one "
                    f"has, {percent(kept)}, {_sign(kept)})"
                )
            pieces.append(piece)
        if pieces:
            lines.append(
                f"- **{move.name}** changes the test loss at the end: {'. '.join(pieces)}."
            )
    return "\n".join(lines)


def _correlations(one: Mapping[str, Any]) -> str:
    rows = []
    for key, said in one["correlations"].items():
        low, high = said["range"]
        rows.append(
            [
                MEASURES[key],
                f"{low:.3g} to {high:.3g}",
                _number(said["pearson"]),
                _number(said["spearman"]),
                _number(said["partial"]) if "partial" in said else "",
                f"{said['with training loss']:+.2f}" if "partial" in said else "",
            ]
        )
    header = (
        "with the test loss",
        "range",
        "Pearson",
        "Spearman",
        "given the training loss",
        "its Pearson with the training loss",
    )
    return markdown_table(header, rows)


def _moves(one: Mapping[str, Any]) -> str:
    rows = []
    for move in MOVES:
        said = one["moves"][move.name]
        for name, end in ((move.name, ""), (f"{move.name}, random", ", random")):
            told = one["moves"][name]["told"]
            cells = [
                *(
                    f"{told[measure]:.3g}, {short(100 * math.expm1(told[f'log {measure}']))} %"
                    for measure in ("phi", "psi")
                ),
                f"{told['drift']:.2g}",
                f"{told['fresh drift']:.2g}",
                f"{told['log loss']:+.2g}",
                percent(said[f"train end{end}"]),
                percent(said[f"test mean{end}"]),
                percent(said[f"test end{end}"]),
                "" if end else percent(said["test end, beyond"]),
            ]
            rows.append([name, *cells])
    header = (
        "teleports at epoch 20",
        "phi before, change by teleports",
        "psi",
        "drift",
        "fresh drift",
        "log loss, sum",
        "training loss, end",
        "test loss, mean over epochs 21 to 40",
        "test loss, end",
        "beyond its control",
    )
    return markdown_table(header, rows)


def text(found: Mapping[str, Any]) -> str:
    """The page."""
    size = found["size"]
    pieces = [
        f"{size['runs']} runs a data set, then {size['seeds']} paired runs of each kind from one "
        f"run's weights; SGD, rate {size['rate']:g}; 95 % intervals by bootstrap over runs.",
        *found["missing"],
        sentences(found),
    ]
    for name, one in found["sets"].items():
        pieces += [f"### {name}", _correlations(one)]
        if "moves" in one:
            pieces.append(_moves(one))
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", "\n\n".join(pieces)))


def figure(found: Mapping[str, Any]) -> bytes:
    """A row a data set: each measure against the test loss, and the test loss after teleports."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [key for key in MEASURES if key != "train"]
    rows = len(found["sets"])
    drawing, axes = pyplot.subplots(rows, 5, figsize=(15, 2.8 * rows), squeeze=False)
    for row, (name, one) in zip(axes, found["sets"].items(), strict=True):
        for axis, key in zip(row, shown, strict=False):
            axis.plot(one["runs"][key], one["runs"]["test"], "C0.", markersize=3)
            axis.set_xlabel(NAMES[key], fontsize=8)
            axis.tick_params(labelsize=6)
        row[0].set_ylabel(f"{name}: test loss", fontsize=8)
        if "moves" not in one:
            row[-1].set_axis_off()
            continue
        for move, colour in zip(MOVES, ("C0", "C1", "C2", "C3"), strict=True):
            for end, style in (("", "-"), (", random", ":")):
                curve = one["moves"]["curves"][move.name + end]
                label = None if end else move.name
                row[-1].plot(range(15, 15 + len(curve)), curve, colour + style, label=label)
        plain = one["moves"]["curves"]["none"]
        row[-1].plot(range(15, 15 + len(plain)), plain, "k-", label="none")
        row[-1].set_xlabel("epoch (random controls dotted)", fontsize=8)
        row[-1].tick_params(labelsize=6)
    lines, labels = axes[0, -1].get_legend_handles_labels()
    named = dict(zip(labels, lines, strict=True))
    axes[0, -1].legend(named.values(), named.keys(), frameon=False, fontsize=6)
    return png(drawing, dpi=75)
