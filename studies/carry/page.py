"""The page: losses by step of each setting, ratios to AdamW with a cosine, and the figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaopt.base.loss_statistics import geomean
from metaopt.base.tables import markdown_table
from studies.carry.result import Found, behind, ratios
from studies.output import png
from studies.rivals.contenders import COSINE


def _marks(found: Found) -> list[int]:
    return sorted({mark for of in found["settings"].values() for mark in of["marks"]})


def losses(found: Found) -> str:
    """Geometric means over seeds, with the rate of the column in brackets."""
    marks = _marks(found)
    lines = []
    for setting, of in found["settings"].items():
        for name, one in of["contenders"].items():
            cells = []
            for mark in marks:
                cell = one["cells"].get(str(mark))
                text = "" if cell is None else f"{geomean(np.array(cell['losses'])):.3g}"
                if cell is not None and not one["learned"]:
                    text += f" ({cell['rate']:g}{'*' if cell['at_edge'] else ''})"
                cells.append(text)
            cost = [f"{1e3 * one['seconds']:.3g}", str(one["diverged"])]
            lines.append([setting, name, *cells, *cost])
    header = ["trained", "optimizer", *(f"{mark:,}" for mark in marks), "ms", "diverged"]
    return markdown_table(header, lines)


def relative(found: Found) -> str:
    """Losses of the rule over those of AdamW with a cosine: mean and range of seeds."""
    marks = _marks(found)
    lines = []
    for setting in found["settings"]:
        cells = dict.fromkeys(marks, "")
        for mark, each in ratios(found, setting, found["rule"]):
            cells[mark] = f"{geomean(each):.3g}"
            if len(each) > 1:
                cells[mark] += f" ({each.min():.3g} to {each.max():.3g})"
        lines.append([setting, *cells.values()])
    return markdown_table(["trained", *(f"{mark:,}" for mark in marks)], lines)


def text(found: Found) -> str:
    """All of it."""
    trained = [
        f"- **{name}**: {of['about']}; {of['parameters']:,} parameters, {_seeds(of['seeds'])}"
        + ("." if of["told"] == of["marks"] else f"; a cosine is told {of['told'][-1]:,} alone.")
        for name, of in found["settings"].items()
    ]
    fell = behind(found)
    verdict = "\n".join(f"- {line}" for line in fell) or (
        f"No run of `{found['rule']}` diverged, and it is nowhere behind {COSINE}."
    )
    return "\n\n".join(
        [
            "\n".join(trained),
            found["text"],
            "\n".join(f"- {line}" for line in found["missing"]) or "Nothing is left out.",
            "![Losses by step](carry.png)",
            "Losses on rows apart, geometric means over seeds; in brackets the best rate of the "
            "column, chosen on the very runs that are shown (* at an edge of those tried). "
            "Milliseconds of the processor for a step, both passes and judging among them. A run "
            "diverged if a loss is not finite, or above ten times that before the first step:",
            losses(found),
            f"Losses of `{found['rule']}` over those of {COSINE} at its best rate of the column, "
            f"the mean and the range of seeds:",
            relative(found),
            "Where it fell short:",
            verdict,
        ]
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def figure(found: Found) -> bytes:
    """A panel for each setting: losses by step, rivals at their best rate of each."""
    from matplotlib import pyplot

    columns = min(4, len(found["settings"]))
    rows = -(-len(found["settings"]) // columns)
    drawn, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.9 * rows + 0.4), squeeze=False
    )
    lines: dict[str, Any] = {}
    for axis in axes.flat[len(found["settings"]) :]:
        axis.axis("off")
    for axis, (setting, of) in zip(axes.flat, found["settings"].items(), strict=False):
        for name, one in of["contenders"].items():
            style: dict[str, Any] = (
                {"linewidth": 2.5} if one["learned"] else {"linestyle": "--", "linewidth": 1}
            )
            means = [geomean(np.array(cell["losses"])) for cell in one["cells"].values()]
            # The same colour in all panels.
            style["color"] = lines[name].get_color() if name in lines else f"C{len(lines)}"
            (line,) = axis.plot(of["marks"], means, marker="o", markersize=3, **style)
            lines.setdefault(name, line)
        axis.set(xscale="log", yscale="log", xlabel="step", ylabel="loss")
        axis.set_title(setting, fontsize=9)
    drawn.legend(lines.values(), lines.keys(), loc="upper center", ncols=4, frameon=False)
    # What the legend takes.
    top = 1 - 0.4 / drawn.get_figheight()
    return png(drawn, 110, top)
