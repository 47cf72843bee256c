"""The page of study a: sentences first, then what they rest on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaopt.base.tables import markdown_table
from studies.output import png
from studies.teleport.effects import PARTS
from studies.teleport.training import RECIPE

Interval = Sequence[float]


def short(value: float) -> str:
    """Two digits with a sign, without an exponent."""
    return np.format_float_positional(float(f"{value:.2g}"), trim="-", sign=True)


def percent(of: Interval) -> str:
    """A log ratio and its interval, as changes in per cent."""
    mean, low, high = (short(100 * math.expm1(min(value, 20.0))) for value in of)
    return f"{mean} % ({low} to {high})"


def _verdict(of: Interval) -> str:
    _, low, high = of
    if high < 0:
        return "a gain"
    return "a loss" if low > 0 else "nothing that can be told from zero"


def sentence(kind: str, one: Mapping[str, Any], key: str = "speed") -> str:
    """What the recipe does to an optimizer, and what is left of it after the controls."""
    parts = one["parts"][key]
    reset = "" if kind == "SGD" else f"the reset alone {percent(parts['reset'])}, "
    return (
        f"**{kind}** (rate {one['rates']['published recipe']:.2g}): the published recipe changes "
        f"the training loss by {percent(parts['whole'])}: {reset}a random element of the same norm "
        f"on top of it {percent(parts['drift'])}, and **the search itself** "
        f"{percent(parts['teleport'])}, {_verdict(parts['teleport'])}. Exact scaling with the "
        f"state transported: {percent(parts['scaling'])}, {_verdict(parts['scaling'])}."
    )


def _shares(told: Mapping[str, Any]) -> str:
    """Of the optimizers on which the recipe has an effect that can be told from zero."""
    rows = []
    for kind, one in told.items():
        shares = one["parts"]["speed"].get("shares")
        if shares is not None:
            cells = [
                f"{100 * m:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
                for m, low, high in (shares[name] for name in PARTS)
            ]
            rows.append([kind, *cells])
    return markdown_table(["share of the recipe's effect, where it has one", *PARTS], rows)


def _by_second(told: Mapping[str, Any]) -> str:
    parts = []
    for kind, one in told.items():
        ratio = percent(one["to plain"]["clock"][RECIPE.name])
        parts.append(f"{kind} {ratio}, {one['late_updates']:.2g} updates")
    return (
        f"Training loss by second, published recipe to without, and how many updates take as long "
        f"as its eight teleports: {'; '.join(parts)}."
    )


def _table(told: Mapping[str, Any], key: str) -> str:
    names = [name for name in told["Adam"]["names"] if name != "none"]
    rows = []
    for kind, one in told.items():
        ratios = one["to plain"][key]
        rows.append(
            [
                kind,
                f"{one['plain'][key]:.3g}",
                *(percent(ratios[name]) if name in ratios else "" for name in names),
            ]
        )
    return markdown_table(["", "without", *names], rows)


def _moves(told: Mapping[str, Any]) -> str:
    parts = []
    for kind, one in told.items():
        of = one["teleports"][RECIPE.name]
        before, after = of["squared norm before"][0], of["squared norm after"][-1]
        drift, fresh = (sum(of[key]) / len(of[key]) for key in ("drift", "fresh drift"))
        parts.append(f"{kind} {before:.2g} -> {after:.2g}, drift {drift:.2g} / {fresh:.2g}")
    return (
        f"The recipe's teleports, means over seeds: squared norm before the first -> after the "
        f"eighth, mean drift on their images / on fresh ones: {'; '.join(parts)}."
    )


def _tuning(told: Mapping[str, Any]) -> str:
    parts = []
    for kind, one in told.items():
        if one["tuning"] is not None:
            plain, own = (one["tuning"][name] for name in ("none", "published recipe"))
            edge = "*" if plain["at_edge"] else "", "*" if own["at_edge"] else ""
            parts.append(f"{kind} {plain['rate']:.2g}{edge[0]} / {own['rate']:.2g}{edge[1]}")
    return f"Tuned rates, without / with the recipe (* at an edge): {', '.join(parts)}."


def text(found: Mapping[str, Any]) -> str:
    """The page."""
    pieces = [
        f"{found['seeds']} seeds; 95 % intervals by paired bootstrap over seeds, each for itself: "
        f"of twenty where there is nothing, one leaves out zero."
    ]
    pieces += found["missing"]
    for name, told in found["settings"].items():
        pieces.append(f"### {name}")
        pieces.append("\n".join(f"- {sentence(kind, one)}" for kind, one in told.items()))
        pieces.append(_shares(told))
        if any(one["tuning"] for one in told.values()):
            pieces.append(_tuning(told))
        pieces += ["Training loss, by epoch:", _table(told, "speed"), _by_second(told)]
        pieces += ["Test loss at the end:", _table(told, "test end")]
        pieces.append(_moves(told))
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", "\n\n".join(pieces)))


def figure(found: Mapping[str, Any]) -> bytes:
    """The first setting, a panel an optimizer: training loss and test loss by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    name, told = next(iter(found["settings"].items()))
    drawing, axes = pyplot.subplots(1, len(told), figsize=(3.4 * len(told), 3.6))
    for axis, (kind, one) in zip(axes, told.items(), strict=True):
        for v, variant in enumerate(one["names"]):
            axis.plot(one["curves"]["train"][v], f"C{v}--", linewidth=0.9)
            axis.plot(one["curves"]["test"][v], f"C{v}-", linewidth=0.9, label=variant)
        axis.set(yscale="log", xlabel="epoch", title=kind)
    axes[-1].legend(frameon=False, fontsize=6)
    axes[0].set_ylabel(f"{name}\nloss (training dashed, test solid)", fontsize=7)
    return png(drawing, dpi=80)
