"""The figure of ``studies.why``, from the content of its JSON file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from studies.output import png

SHOWN = ("Gauss-Newton", 1e-3)
"""The Newton direction of the panels that show one."""

Line = tuple[list[int], list[float], list[float], list[float]]
"""Inner steps, middle, low, high."""


def _line(points: Sequence[tuple[int, Mapping[str, Any] | None]], middle: str) -> Line:
    """Those points that there are."""
    kept = [(step, s) for step, s in points if s is not None and s[middle] is not None]
    return (
        [step for step, _ in kept],
        [s[middle] for _, s in kept],
        [s["q05"] for _, s in kept],
        [s["q95"] for _, s in kept],
    )


def of_state(entry: Mapping[str, Any], name: str) -> Line:
    """Geometric means of a positive quantity by stop."""
    return _line([(stop["step"], stop["state"].get(name)) for stop in entry["stops"]], "geomean")


def of_alignment(entry: Mapping[str, Any], of: str, curvature: str, damping: float) -> Line:
    """Median cosines by stop."""

    def found(stop: Mapping[str, Any]) -> Mapping[str, Any] | None:
        for line in stop["alignment"]:
            if (line["curvature"], line["damping"], line["of"]) == (curvature, damping, of):
                return line
        return None

    return _line([(stop["step"], found(stop)) for stop in entry["stops"]], "median")


def of_teleports(entry: Mapping[str, Any], name: str) -> Line:
    """Geometric means over tasks, by inner step."""
    rows = [] if entry["teleports"] is None else entry["teleports"][name]
    return _line(list(enumerate(rows, 1)), "geomean")


def of_loss(entry: Mapping[str, Any]) -> Line:
    """Geometric means over tasks, by inner step."""
    return _line(list(enumerate(entry["loss"])), "geomean")


Style = Literal["-", "--", ":"]
Series = tuple[str, Style, Callable[[Mapping[str, Any]], Line]]
"""What it is, line style, the line of an optimizer's entry."""


def _aligned(of: str, style: Style, label: str, newton: tuple[str, float] = SHOWN) -> Series:
    return label, style, lambda entry: of_alignment(entry, of, *newton)


def _state(name: str, style: Style, label: str) -> Series:
    return label, style, lambda entry: of_state(entry, name)


PANELS: tuple[tuple[str, str, tuple[Series, ...]], ...] = (
    ("loss", "log", (("", "-", of_loss),)),
    (
        "condition number of H = s(W1 X)",
        "log",
        (
            _state("condition undone", "--", "all teleports undone"),
            _state("condition after", "-", "as it is"),
        ),
    ),
    (
        "gradient norm",
        "log",
        (
            _state("gradient norm before", "--", "before the teleport"),
            _state("gradient norm after", "-", "after"),
        ),
    ),
    (
        "gradient norm, after / before the teleport",
        "linear",
        (_state("gradient norm ratio", "-", ""),),
    ),
    (
        "cosine of -gradient with Newton (GN, 1e-3)",
        "linear",
        (
            _aligned("gradient undone", ":", "all teleports undone"),
            _aligned("gradient before", "--", "before the last teleport"),
            _aligned("gradient after", "-", "after"),
        ),
    ),
    (
        "cosine of the update with Newton at w",
        "linear",
        (
            _aligned("update", "-", "GN, 1e-3"),
            _aligned("update", "--", "GN, 1e-6", ("Gauss-Newton", 1e-6)),
            _aligned("update", ":", "absolute Hessian, 1e-3", ("absolute Hessian", 1e-3)),
        ),
    ),
    (
        "cosine of the update with Newton, in outputs",
        "linear",
        (
            _aligned("update, in outputs", "-", "GN, 1e-3"),
            _aligned("update, in outputs", "--", "GN, 1e-6", ("Gauss-Newton", 1e-6)),
        ),
    ),
    (
        "cosine of -gradient with Newton, W2 alone (1e-3)",
        "linear",
        (
            _aligned("gradient undone", ":", "all teleports undone", ("W2 alone", 1e-3)),
            _aligned("gradient before", "--", "before the last teleport", ("W2 alone", 1e-3)),
            _aligned("gradient after", "-", "after", ("W2 alone", 1e-3)),
        ),
    ),
    (
        "teleports",
        "log",
        (
            ("generator norm", "-", lambda entry: of_teleports(entry, "norm")),
            ("drift", ":", lambda entry: of_teleports(entry, "drift")),
        ),
    ),
)


def figure(found: Mapping[str, Any]) -> bytes:
    """Nine panels as a PNG: a colour an optimizer, bands from 5 % to 95 % of the tasks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    colours = matplotlib.color_sequences["tab10"]
    drawn, axes = pyplot.subplots(3, 3, figsize=(15, 12))
    for axis, (title, scale, series) in zip(axes.flat, PANELS, strict=True):
        for i, entry in enumerate(found["optimizers"].values()):
            for _, style, line in series:
                steps, middle, low, high = line(entry)
                colour = colours[i % len(colours)]
                axis.plot(steps, middle, style, color=colour, marker="." * (len(steps) < 20))
                if style == "-":
                    axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_yscale(scale)
        axis.set_xlabel("inner step")
        axis.grid(alpha=0.3)
        handles = [
            Line2D([], [], color="grey", linestyle=style, label=label)
            for label, style, _ in series
            if label
        ]
        if handles:
            axis.legend(handles=handles, fontsize="small")
    names = [
        Line2D([], [], color=colours[i % len(colours)], label=name)
        for i, name in enumerate(found["optimizers"])
    ]
    drawn.legend(handles=names, loc="upper center", ncols=len(names), frameon=False)
    return png(drawn, dpi=110, top=0.96)
