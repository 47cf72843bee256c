"""The page of the table, and its figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaopt.base.tables import markdown_table
from studies.lora.contenders import ADAMW
from studies.output import png


def _loss(one: Mapping[str, Any]) -> str:
    value = one["loss_geomean"]
    shown = "-" if value > 1e3 else f"{value:.3g}"
    return f"{shown}*" if one["at_edge"] else shown


def losses(found: Mapping[str, Any]) -> str:
    """Losses by column, and the time of a step."""
    columns = [f"{step}" for step in found["columns"]]
    adamw = found["contenders"].get(ADAMW, {}).get("seconds_per_step")
    rows = [
        [
            name,
            *(_loss(one["at"][step]) for step in columns),
            f"{1e3 * one['seconds_per_step']:.2g}",
            f"{one['seconds_per_step'] / adamw:.2g}" if adamw else "",
        ]
        for name, one in found["contenders"].items()
    ]
    return markdown_table(["", *columns, "ms a step", "of AdamW's"], rows)


def ratio_rows(found: Mapping[str, Any], name: str) -> str:
    """Ratios of a learned rule to all others, with their intervals."""
    columns, of = found["columns"], found["ratios"][name]
    others = dict.fromkeys(one["b"] for one in of)
    by_key = {(one["b"], one["step"]): one for one in of}
    rows = []
    for other in others:
        cells = []
        for step in columns:
            one = by_key[other, step]
            low, high = one["ci95"]
            cells.append(f"{one['ratio']:.3g} ({low:.3g} to {high:.3g})")
        rows.append([other, *cells])
    return markdown_table([f"{name} to", *map(str, columns)], rows)


def needed(found: Mapping[str, Any]) -> str:
    """Steps that AdamW needs to the losses of learned rules."""
    columns = [f"{step}" for step in found["columns"]]
    longest = max(int(step) for step in found["contenders"][ADAMW]["at"])
    rows = [
        [name, *(f"over {longest}" if of[c] is None else f"{of[c]:.0f}" for c in columns)]
        for name, of in found["steps_needed"].items()
    ]
    return markdown_table(["loss after", *columns], rows)


def bars(found: Mapping[str, Any]) -> str:
    """Which bars are met."""
    rows = [
        [
            f"{one['a']} to {one['b']} at {one['step']}",
            f"{one['at_most']:g}",
            f"{one['ratio']:.3g}",
            f"{one['upper']:.3g}",
            "yes" if one["met"] else "no",
        ]
        for one in found["bars"]
    ]
    return markdown_table(["", "at most", "ratio", "upper end", "met"], rows)


def text(found: Mapping[str, Any]) -> str:
    """All tables."""
    setting = found["setting"]
    sizes = "-".join(map(str, found["sizes"]))
    parts = [
        f"Network {sizes}, rank {setting['rank']}, images "
        f"{setting['shift'].replace('_', ' and ')}; test loss, geometric mean over "
        f"{found['seeds']} seeds, the best point of each column (* where the best rate is at an "
        f"edge of its grid). pytorch-optimizer {found['versions']['pytorch-optimizer']}, torch "
        f"{found['versions']['torch']}.",
        losses(found),
    ]
    if found["ratios"]:
        parts.append("Ratios seed by seed, with paired 95 % bootstrap intervals:")
        parts += [ratio_rows(found, name) for name in found["ratios"]]
    if found["steps_needed"]:
        parts.append(f"Steps that {ADAMW}, tuned for and told their number, needs to a loss:")
        parts.append(needed(found))
    if found["bars"]:
        parts += ["Bars on the upper ends of the intervals:", bars(found)]
    return "\n\n".join(parts)


SHOWN = ("Adam", ADAMW, "LoRA-RITE", "SOAP", "Adam, balanced frame", "ScaledGD")
"""Hand-made curves of the figure."""


def figure(found: Mapping[str, Any]) -> bytes:
    """Losses by step, each point with its own best rate; and the first rule's ratios."""
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for name, one in found["contenders"].items():
        if not (one["learned"] or name in SHOWN):
            continue
        steps = sorted((int(step) for step in one["at"]), key=int)
        steps = [step for step in steps if 0 < step <= max(found["columns"])]
        values = [one["at"][f"{step}"]["loss_geomean"] for step in steps]
        style = "-" if one["learned"] else "--"
        axes[0].plot(steps, values, style, label=name, marker="." if one["told"] else None)
    axes[0].set(xscale="log", yscale="log", xlabel="step", title="test loss, rate tuned for it")
    axes[0].legend(frameon=False, fontsize=7)
    if found["ratios"]:
        name, of = next(iter(found["ratios"].items()))
        for other in dict.fromkeys(one["b"] for one in of):
            here = [one for one in of if one["b"] == other]
            axes[1].plot([o["step"] for o in here], [o["ratio"] for o in here], ".-", label=other)
        axes[1].axhline(1, color="grey", linewidth=0.5)
        axes[1].set(xscale="log", yscale="log", xlabel="step", title=f"{name} to others")
        axes[1].legend(frameon=False, fontsize=6)
    return png(drawn, 110)
