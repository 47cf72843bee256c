"""The page of what learned rules do, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from metaopt.base.tables import markdown_table
from studies.output import png

DIRECTIONS = {
    "scaled_gd": "ScaledGD",
    "gauss_newton": "Gauss-Newton",
    "gradient": "the gradient",
}


def _steps(of: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(of[0])


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.3g}" if known else "-"


def conditions(found: Mapping[str, Any]) -> str:
    """Medians over layers and seeds, by step."""
    rows = []
    for name, of in found["along"].items():
        for factor in ("A", "B"):
            key = f"condition_{factor}"
            cells = [_median([v for one in of for v in one[step][key]]) for step in _steps(of)]
            rows.append([f"{name}: {factor}", *cells])
    return markdown_table(["condition number", *_header(found)], rows)


def cosines(found: Mapping[str, Any]) -> str:
    """Means over seeds, by step."""
    rows = [
        [
            f"{name}: {label}",
            *(f"{fmean(one[step]['cosine'][key] for one in of):.2f}" for step in _steps(of)),
        ]
        for name, of in found["along"].items()
        for key, label in DIRECTIONS.items()
    ]
    return markdown_table(["cosine with", *_header(found)], rows)


def norms(found: Mapping[str, Any]) -> str | None:
    """Of the generators, medians over pairs and seeds; None where nothing is exposed."""
    rows = []
    for name, of in found["along"].items():
        if of[0][_steps(of)[0]]["generator_norms"] is not None:
            cells = [
                _median([v for one in of for v in one[step]["generator_norms"]])
                for step in _steps(of)
            ]
            rows.append([name, *cells])
    return markdown_table(["norm of generators", *_header(found)], rows) if rows else None


def stops(found: Mapping[str, Any], name: str) -> str:
    """What is left when the teleports of a rule stop."""
    of = found["stops"][name]
    last = max(of, key=int)
    rows = []
    for stop, one in of.items():
        cells = [
            f"{loss:.3g}" if stop == last else f"{loss:.3g}, {ratio:.3g} ({low:.3g} to {high:.3g})"
            for loss, ratio, (low, high) in zip(
                one["loss_geomean"], one["ratio"], one["ci95"], strict=True
            )
        ]
        rows.append(["never" if stop == last else f"after step {stop}", *cells])
    return markdown_table([f"{name}, teleports stop", *map(str, found["columns"])], rows)


def _header(found: Mapping[str, Any]) -> list[str]:
    return _steps(next(iter(found["along"].values())))


def text(found: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [
        "Before the step of each column: condition numbers of the factors (median over layers and "
        "seeds; - where B is 0), and the cosine of the step in W = BA with three directions:",
        conditions(found),
        cosines(found),
    ]
    of_norms = norms(found)
    if of_norms is not None:
        parts.append(of_norms)
    if found["stops"]:
        parts.append("Losses, and ratios to teleports that never stop, with their intervals:")
        parts += [stops(found, name) for name in found["stops"]]
    return "\n\n".join(parts)


def figure(found: Mapping[str, Any]) -> bytes:
    """Condition numbers and cosines by step."""
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for i, (name, of) in enumerate(found["along"].items()):
        steps = [int(step) for step in _steps(of)]
        for factor, style in (("A", "-"), ("B", "--")):
            values = [
                median(
                    [v or float("nan") for one in of for v in one[f"{step}"][f"condition_{factor}"]]
                )
                for step in steps
            ]
            axes[0].plot(steps, values, f"C{i}{style}", label=f"{name}: {factor}")
        values = [fmean(one[f"{step}"]["cosine"]["scaled_gd"] for one in of) for step in steps]
        axes[1].plot(steps, values, f"C{i}-", label=f"{name}: ScaledGD")
        values = [fmean(one[f"{step}"]["cosine"]["gauss_newton"] for one in of) for step in steps]
        axes[1].plot(steps, values, f"C{i}:", label=f"{name}: Gauss-Newton")
    axes[0].set(xscale="log", yscale="log", xlabel="step", title="condition number of A, B")
    axes[1].set(xscale="log", xlabel="step", title="cosine of the step in W = BA")
    for axis in axes:
        axis.legend(frameon=False, fontsize=6)
    return png(drawn, 110)
