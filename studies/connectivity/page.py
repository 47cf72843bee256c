"""The page's tables, and its figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.base.tables import markdown_table
from studies.connectivity.barriers import BEND, CHORD, CONTINUOUS, ORBIT, PATHS, WEIGHTS
from studies.connectivity.result import PARTS
from studies.connectivity.rivals import BUDGETS, INDEPENDENT, METHODS
from studies.output import png

Interval = Sequence[float]


def interval(of: Interval, digits: int = 2) -> str:
    """Mean (low to high)."""
    mean, low, high = (_number(value, digits) for value in of)
    return f"{mean} ({low} to {high})"


def _number(value: float, digits: int) -> str:
    shown = f"{value:.{digits}g}"
    return shown if "e" not in shown else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def _difference(of: Interval, digits: int) -> str:
    # A zero has no sign of its own.
    mean, low, high = (round(value, digits) + 0.0 for value in of)
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _percent(of: Interval) -> str:
    mean, low, high = (round(100 * value, 0) + 0.0 for value in of)
    return f"{mean:.0f} % ({low:.0f} to {high:.0f})"


def _barriers(pairs: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            interval(one["ends"]["loss"]),
            *(interval(one["paths"][path]["barrier"]) for path in PATHS),
        ]
        for name, one in pairs.items()
    ]
    return markdown_table(["barrier of the training loss", "loss of ends", *PATHS], rows)


def _errors(pairs: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            interval(one["ends"]["error"], 3),
            *(interval(one["paths"][path]["error barrier"]) for path in PATHS),
        ]
        for name, one in pairs.items()
    ]
    return markdown_table(["barrier of the test error, points", "error of ends, %", *PATHS], rows)


def _shares(pairs: Mapping[str, Any]) -> str:
    rows = [
        [name, *(_percent(one["shares"][part]) for part in PARTS)] for name, one in pairs.items()
    ]
    return markdown_table(["share of the chord's barrier that goes by", *PARTS], rows)


def _orbits(pairs: Mapping[str, Any]) -> str:
    rows = []
    for name, one in pairs.items():
        if "orbit" in one:
            of = one["orbit"]
            count = len(of["length"])
            rows.append(
                [
                    name,
                    f"{sum(of['distance']) / count:.3g}",
                    f"{sum(of['length']) / count:.3g}",
                    f"{max(of['rise']):.1e}",
                    interval(one["paths"][CONTINUOUS]["barrier"]),
                    interval(one["paths"][CHORD]["barrier"]),
                ]
            )
    header = (
        "curve of symmetry from b to b'",
        "distance of b and b'",
        "length of the curve",
        "largest change of the loss on it",
        "barrier of curve and chord to a",
        "barrier of the chord",
    )
    return markdown_table(header, rows) if rows else ""


def _ensembles(name: str, one: Mapping[str, Any]) -> str:
    rows = []
    for method in METHODS:
        of = one["methods"][method]
        cells = [f"{of['members']}", f"{of['alone']:.2f}"]
        for key, digits in (("error", 2), ("nll", 4)):
            for k in range(BUDGETS):
                cell = f"{of[key][k][0]:.{digits}f}"
                if method != INDEPENDENT:
                    cell += f", {_difference(of[f'{key} to independent'][k], digits)}"
                cells.append(cell)
        rows.append([method, *cells])
    header = [
        f"{name}",
        "members a budget",
        "one alone, %",
        *(f"test error, {k} budget{'s' * (k > 1)}" for k in range(1, BUDGETS + 1)),
        *(f"test loss, {k}" for k in range(1, BUDGETS + 1)),
    ]
    return markdown_table(header, rows)


def _against_one(one: Mapping[str, Any]) -> str:
    """A sentence: methods at one budget against a single network."""
    said = [
        f"{method} {_difference(one['methods'][method]['error to one network'][0], 2)}"
        for method in METHODS
        if method != INDEPENDENT
    ]
    return f"Error at one budget less that of a single network: {', '.join(said)}."


def _marked(rate: float, tried: Mapping[str, float]) -> str:
    """A rate, with a star at an edge of those that were tried."""
    edge = len(tried) > 1 and rate in (min(map(float, tried)), max(map(float, tried)))
    return f"{rate:g}{'*' * edge}"


def _rates(one: Mapping[str, Any]) -> str:
    rates = ", ".join(
        f"{name} {_marked(**of['rates']['ends'])} / {of['rates']['bends']['rate']:g}"
        for name, of in one["pairs"].items()
    )
    lines = [f"Rates chosen for ends (* at an edge) / for bends: {rates}."]
    for name, of in one["ensembles"].items():
        c = of["tuned"]["chosen"]
        rate = _marked(c["rate"], of["tuned"]["tried"][INDEPENDENT])
        lines.append(
            f"Chosen for {name}: rate {rate}; snapshots {c['snapshots']} cosines from "
            f"{c['snapshot_rate']:g}; FGE {c['cycles']} cycles from {c['high']:g}; norm of its "
            f"teleports {c['norm']:g}."
        )
    return " ".join(lines)


def text(found: Mapping[str, Any]) -> str:
    """The page."""
    seeds = found["size"]["seeds"]
    pieces = [
        f"{seeds} pairs of ends, {seeds} seeds of ensembles; means and 95 % intervals by bootstrap "
        f"over them.",
        *found["missing"],
    ]
    for name, one in found["sets"].items():
        pieces.append(f"### {name}")
        if one["pairs"]:
            pieces += [
                _barriers(one["pairs"]),
                _errors(one["pairs"]),
                _shares(one["pairs"]),
                _orbits(one["pairs"]),
            ]
        for network, of in one["ensembles"].items():
            pieces += [_ensembles(network, of), _against_one(of)]
        pieces.append(_rates(one))
    joined = "\n\n".join(piece for piece in pieces if piece)
    # Columns need not stand below each other: the page would be half as long again.
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", joined))


SHOWN = (CHORD, CONTINUOUS, WEIGHTS, ORBIT, BEND)


def figure(found: Mapping[str, Any]) -> bytes:
    """A row a data set: barriers by network, loss along paths, the MLP by width, ensembles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(found["sets"])
    drawing, axes = pyplot.subplots(rows, 4, figsize=(15, 3 * rows), squeeze=False)
    for row, (name, one) in zip(axes, found["sets"].items(), strict=True):
        _draw_barriers(row[0], one["pairs"])
        _draw_paths(row[1], one["pairs"])
        _draw_widths(row[2], one["pairs"])
        _draw_ensembles(row[3], one["ensembles"])
        row[0].set_ylabel(f"{name}\nbarrier of the training loss", fontsize=8)
        for axis in row:
            axis.tick_params(labelsize=7)
            axis.legend(frameon=False, fontsize=6)
    return png(drawing, dpi=60)


def _draw_barriers(axis: Any, pairs: Mapping[str, Any]) -> None:
    shown = [name for name in pairs if not name.startswith("MLP")] or list(pairs)
    for i, path in enumerate(SHOWN):
        of = [pairs[name]["paths"][path]["barrier"] for name in shown]
        places = [j + 0.15 * (i - 2) for j in range(len(shown))]
        means = [max(one[0], 0.0) for one in of]
        spread = [
            [max(m - one[1], 0.0) for m, one in zip(means, of, strict=True)],
            [max(one[2] - m, 0.0) for m, one in zip(means, of, strict=True)],
        ]
        axis.bar(places, means, 0.15, yerr=spread, color=f"C{i}", label=path)
    axis.set_xticks(range(len(shown)), [name.replace(", ", "\n") for name in shown])


def _draw_paths(axis: Any, pairs: Mapping[str, Any]) -> None:
    if not pairs:
        return
    name = next((name for name in pairs if name.startswith("VGG")), next(iter(pairs)))
    for i, path in enumerate(SHOWN):
        losses = pairs[name]["paths"][path]["curves"]["loss"]
        t = [k / (len(losses) - 1) for k in range(len(losses))]
        axis.plot(t, losses, f"C{i}-", label=path)
    axis.set(yscale="log")
    axis.set_xlabel(f"t ({name}: training loss, means of pairs)", fontsize=8)


def _draw_widths(axis: Any, pairs: Mapping[str, Any]) -> None:
    of = {int(name[4:]): one for name, one in pairs.items() if name.startswith("MLP")}
    for i, path in enumerate(SHOWN):
        barriers = [one["paths"][path]["barrier"] for one in of.values()]
        axis.plot(list(of), [one[0] for one in barriers], f"C{i}.-", label=path)
        low, high = ([one[k] for one in barriers] for k in (1, 2))
        axis.fill_between(list(of), low, high, color=f"C{i}", alpha=0.2)
    axis.set(xscale="log")
    axis.set_xticks(list(of), [str(width) for width in of])
    axis.minorticks_off()
    axis.set_xlabel("width of the MLP", fontsize=8)


def _draw_ensembles(axis: Any, ensembles: Mapping[str, Any]) -> None:
    for j, one in enumerate(ensembles.values()):
        for i, method in enumerate(METHODS):
            errors = [of[0] for of in one["methods"][method]["error"]]
            style = ("-", "--", ":")[j % 3]
            label = method if j == 0 else None
            axis.plot(range(1, BUDGETS + 1), errors, f"C{i}.{style}", label=label)
    axis.set_xticks(range(1, BUDGETS + 1))
    styles = ", ".join(
        f"{name} {('solid', 'dashed', 'dotted')[j % 3]}" for j, name in enumerate(ensembles)
    )
    axis.set_xlabel(f"budgets (test error, %; {styles})", fontsize=7)
