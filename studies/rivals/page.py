"""The page of the study, and its figure, made of the content of its JSON file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metaopt.base.loss_statistics import geomean
from metaopt.base.tables import markdown_table
from studies.output import png
from studies.rivals.contenders import COSINE
from studies.rivals.plan import BEST, TRIALS, TUNINGS

Found = Mapping[str, Any]


def _loss(cell: Mapping[str, Any]) -> str:
    value = float(geomean(np.array(cell["losses"])))
    shown = "-" if value > 1e3 else f"{value:.3g}"
    return f"{shown}*" if cell["at_edge"] else shown


def losses(found: Found, task: Mapping[str, Any]) -> str:
    """Of all contenders on one task: tuned by trials, and at their best of each column."""
    columns = found["size"]["columns"]
    rows = []
    for name, one in task["contenders"].items():
        cells = [
            " / ".join(
                _loss(one["cells"][tuning][str(step)])
                for tuning in (TUNINGS[:1] if found["contenders"][name]["learned"] else TUNINGS)
            )
            for step in columns
        ]
        rows.append([name, *cells])
    return markdown_table(["", *map(str, columns)], rows)


def _ratio(one: Mapping[str, Any]) -> str:
    low, high = one["ci95"]
    return f"{one['ratio']:.2f} ({low:.2f} to {high:.2f})"


def ratios(found: Found, name: str, tuning: str) -> str:
    """Of a learned rule to all others, by column."""
    columns = found["size"]["columns"]
    of = {(one["b"], one["step"]): one for one in found["ratios"][name] if one["tuning"] == tuning}
    others = dict.fromkeys(b for b, _ in of)
    rows = [[other, *(_ratio(of[other, step]) for step in columns)] for other in others]
    return markdown_table([f"{name} to", *map(str, columns)], rows)


def speed_ups(found: Found, tuning: str) -> str:
    """Interquartile means in steps, and in brackets in seconds; how often no AdamW got there."""
    columns = found["size"]["columns"]
    of = {(o["name"], o["step"]): o for o in found["speed_ups"] if o["tuning"] == tuning}
    rows = []
    for name in dict.fromkeys(name for name, _ in of):
        here = [of[name, step] for step in columns]
        cells = [
            f"{o['steps']:.2f} ({o['ci95'][0]:.2f} to {o['ci95'][1]:.2f}); {o['seconds']:.2f}"
            for o in here
        ]
        never = "/".join(str(o["never"]) for o in here)
        fewest = "/".join(str(o["at_fewest"]) for o in here)
        rows.append([name, *cells, never, fewest])
    return markdown_table(["", *map(str, columns), "never", "at fewest"], rows)


def costs(found: Found) -> str:
    """Of a step, its state, and divergences."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2g}"

    rows = [
        [
            name,
            f"{one['milliseconds']:.2g}",
            shown(one["step_to_adamw"]),
            shown(one["whole_to_adamw"]),
            shown(one["state_to_adamw"]),
            " / ".join(str(one["diverged"][tuning]) for tuning in TUNINGS),
        ]
        for name, one in found["costs"].items()
    ]
    header = ["", "ms a step", "of AdamW's", "with both passes", "state of AdamW's", "diverged"]
    return markdown_table(header, rows)


def bars(found: Found, name: str) -> str:
    """Which bars a rule meets."""
    rows = [
        [one["bar"], one["wanted"], one["found"], "met" if one["met"] else "not met"]
        for one in found["bars"][name]
    ]
    return markdown_table([f"{name}", "bar", "found", ""], rows)


def findings(found: Found) -> Iterator[str]:
    """Sentences about each learned rule, made of the figures."""
    columns = found["size"]["columns"]
    for name, of in found["bars"].items():
        met = sum(one["met"] for one in of)
        yield f"`{name}` meets {met} of the {len(of)} bars that this study can judge."
        for words, keep in (
            ("ahead of", lambda one: one["ci95"][1] < 1),
            ("behind", lambda one: one["ci95"][0] > 1),
        ):
            for step in columns:
                others = [
                    one["b"]
                    for one in found["ratios"][name]
                    if one["tuning"] == BEST and one["step"] == step and keep(one)
                ]
                if others:
                    yield f"At {step} steps it is {words}: {'; '.join(others)}, at their best."
        speed = {
            o["step"]: o for o in found["speed_ups"] if (o["name"], o["tuning"]) == (name, BEST)
        }
        if speed:
            shown = ", ".join(f"{speed[step]['steps']:.2f}" for step in columns)
            yield (
                f"{COSINE} needs {shown} times as many steps to its losses at "
                f"{', '.join(map(str, columns))}, as interquartile means."
            )


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def text(found: Found) -> str:
    """All tables over the tasks together."""
    size = found["size"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    most = max((*size["columns"], *size["between"]))
    parts = [
        f"{len(found['tasks'])} tasks, {size['seeds']} seeds, {size['trials']} trials, at most "
        f"{size['points']} rates in a grid. Text: {found['text']}. {versions}."
    ]
    parts.append("![Losses and speed-ups by step](rivals.png)")
    if found["missing"]:
        parts.append(_list(found["missing"]))
    parts.append(_list(list(findings(found))))
    parts += [bars(found, name) for name in found["bars"]]
    for name in found["ratios"]:
        for tuning in TUNINGS:
            parts.append(
                f"Loss ratios of `{name}`, geometric means over tasks and seeds with paired 95 % "
                f"bootstrap intervals over both; rivals tuned by {_way(tuning)}:"
            )
            parts.append(ratios(found, name, tuning))
    for tuning in TUNINGS if found["speed_ups"] else ():
        parts.append(
            f"Speed-ups over {COSINE}: interquartile means in steps with their intervals, and in "
            f"seconds; all rivals tuned by {_way(tuning)}. Never: of {found['speed_ups'][0]['of']} "
            f"runs those whose loss it does not reach in {most} steps, which are counted; at "
            f"fewest: those whose loss it has by its fewest."
        )
        parts.append(speed_ups(found, tuning))
    parts.append(
        "Cost of a step (the optimizer's part in ms, and that and the whole step as shares of "
        "AdamW's; geometric means over tasks), and how many runs diverge, tuned by trials / at "
        f"their best, of {found['costs'][next(iter(found['costs']))]['runs']}:"
    )
    parts.append(costs(found))
    return "\n\n".join(parts)


def by_task(found: Found) -> str:
    """The losses on each task."""
    parts = [
        "Losses on rows apart, geometric means over seeds; tuned by trials / at their best of "
        "each column (* where the rate is at an edge of what was tried):"
    ]
    for name, task in found["tasks"].items():
        parts += [f"**{name}**: {task['about']}.", losses(found, task)]
    return "\n\n".join(parts)


def _way(tuning: str) -> str:
    return "trials on validation rows" if tuning == TRIALS else "the column's own losses"


def figure(found: Found) -> bytes:
    """Losses by column as shares of those of AdamW with a cosine, which took part; speed-ups."""
    from matplotlib import pyplot

    columns = found["size"]["columns"]
    drawn, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for name, one in found["contenders"].items():
        style = {"linewidth": 2.5} if one["learned"] else {"linestyle": "--", "linewidth": 1}
        shares = [
            geomean(
                np.array(
                    [
                        np.array(of[name]["cells"][BEST][str(step)]["losses"])
                        / np.array(of[COSINE]["cells"][BEST][str(step)]["losses"])
                        for of in (task["contenders"] for task in found["tasks"].values())
                    ]
                ).ravel()
            )
            for step in columns
        ]
        axes[0].plot(columns, shares, label=name, **style)
        here = [o for o in found["speed_ups"] if (o["name"], o["tuning"]) == (name, BEST)]
        axes[1].plot([o["step"] for o in here], [o["steps"] for o in here], label=name, **style)
    for axis, title in zip(
        axes, (f"loss to that of {COSINE}", f"speed-up over {COSINE}, in steps"), strict=True
    ):
        axis.axhline(1, color="grey", linewidth=0.5)
        axis.set(xscale="log", yscale="log", xlabel="step", title=title)
    axes[0].legend(frameon=False, fontsize=6)
    return png(drawn, 110)
