"""The page and the figure of a study, made from its ``StudyResult`` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from metaopt.base.tables import markdown_table
from studies.output import png
from studies.study.result import Contender, Interval, StudyResult

_KINDS = ("learned", "control", "baseline", "reference")


def page(found: StudyResult) -> str:
    """A table for each family, what teleports did, claims, budgets and costs."""
    parts = [
        _opening(found),
        "Learned optimizers and controls: the geometric mean over seeds, and the best and the "
        "worst seed. `diverged` counts tasks of all seeds.",
    ]
    for family in found.families:
        parts += [f"## Family {family}", _family_lines(found, family), spread(found, family)]
        parts += [part for part in (teleports(found, family), tuned(found, family)) if part]
    parts += ["## Claims", claims_in_short(found), "## Budgets and costs"]
    parts += [costs(found), cost_lines(found)]
    if found.left_out:
        parts += ["## Left out", "\n".join(f"- {line}" for line in found.left_out)]
    return "\n\n".join(parts)


def spread(found: StudyResult, family: str) -> str:
    """A row for each optimizer, with the range over its seeds."""
    rows = []
    for entry in _in_order(found, family):
        runs = entry.runs
        cells = []
        for step in found.steps_shown:
            values = [run.at[step].geomean for run in runs]
            over = entry.over_seeds.at[step].geomean if len(runs) > 1 else values[0]
            ends = f" ({min(values):.3g} to {max(values):.3g})" if len(runs) > 1 else ""
            cells.append(f"{over:.3g}{ends}")
        timed = max(1e3 * run.seconds_per_step for run in runs)
        diverged = str(sum(run.diverged for run in runs))
        gradients = f"{runs[0].gradients_per_step:g}"
        rows.append([entry.label, entry.kind, *cells, diverged, gradients, f"{timed:.2g}"])
    header = ["optimizer", "kind", *map(str, found.steps_shown)]
    return markdown_table([*header, "diverged", "gradients/step", "ms/step"], rows)


def _in_order(found: StudyResult, family: str) -> Iterable[Contender]:
    """The contenders of a family, learned ones before controls before hand-made ones."""
    contenders = found.families[family].contenders.values()
    return (entry for kind in _KINDS for entry in contenders if entry.kind == kind)


def _opening(found: StudyResult) -> str:
    config = found.config
    seeds = ", ".join(map(str, config.seeds))
    dirty = " with changes" if found.dirty else ""
    return (
        f"{config.tasks} test tasks (seed {config.task_seed}), meta-training seeds {seeds}, "
        f"commit {found.commit or 'unknown'}{dirty}. Geometric means over tasks."
    )


def _family_lines(found: StudyResult, family: str) -> str:
    about = found.families[family]
    shape = ", ".join(f"{key} {value}" for key, value in about.changed.items()) or "as it is"
    what = "Loss by inner step"
    if about.least_mean > 0:
        what = f"Excess over the least loss (its mean is {about.least_mean:.3g}) by inner step"
    return f"{what}, family {family} ({shape}); milliseconds are for all tasks together, one thread"


def _with_interval(value: float, ci: Interval | None) -> str:
    return f"{value:.3g}" + ("" if ci is None else f" [{ci[0]:.2g}, {ci[1]:.2g}]")


def teleports(found: StudyResult, family: str) -> str:
    """What teleports did: means over seeds, and the largest drift of any; empty without any."""
    rows = []
    for entry in found.families[family].contenders.values():
        moved = [run.teleport for run in entry.runs if run.teleport is not None]
        if not moved:
            continue
        norm, refused, total = (
            float(np.mean([one[name] for one in moved]))
            for name in ("norm_mean", "refused_share", "drift_log_total_mean")
        )
        drift = max(one["drift_max"] for one in moved)
        cells = [f"{norm:.3g}", f"{100 * refused:.2g} %", f"{drift:.2g}", f"{total:.2g}"]
        rows.append([entry.label, *cells])
    header = ["teleports of", "mean norm", "refused", "largest drift", "signed log total"]
    return markdown_table(header, rows) if rows else ""


def tuned(found: StudyResult, family: str) -> str:
    """What hand-made optimizers were tuned to."""
    lines = []
    for name, entry in found.families[family].contenders.items():
        values = entry.runs[0].origin.get("hyperparameters")
        if values:
            edges = ", ".join(entry.runs[0].origin.get("at_the_edge_of_the_grid", []))
            note = f"; at the edge of the grid: {edges}" if edges else ""
            lines.append(f"- {name}: {', '.join(f'{k} {v:g}' for k, v in values.items())}{note}")
    return "\n".join(["Tuned on validation tasks:", "", *lines]) if lines else ""


def claims_in_short(found: StudyResult) -> str:
    """How many claims are met in every seed, and which are not."""
    level = sum(claim.level for claim in found.claims)
    missed = [claim for claim in found.claims if not (claim.met_in_each or claim.level)]
    met = len(found.claims) - len(missed) - level
    lines = [f"Of {len(found.claims)} claims checked {met} are met in every seed."]
    if level:
        lines[0] += f" {level} are level: there both losses have come down to rounding."
    if missed:
        lines += ["Not met in every seed:", ""]
    for claim in missed:
        step = "" if claim.step is None else f" at step {claim.step}"
        label = found.rows[claim.row].label
        seeds = [str(seed) for seed in found.config.seeds]
        values = [f"{claim.found[seed].value:.3g}" for seed in seeds if seed in claim.found]
        said = ", ".join(values) or "nothing, left out"
        lines.append(
            f"- {claim.family}, {label}, {claim.what}{step}: found {said}, asked {claim.bar}"
        )
    return "\n".join(lines)


def costs(found: StudyResult) -> str:
    """Budgets, what the search chose, and seconds, by row."""
    rows = []
    for name, row in found.rows.items():
        free = row.chosen["free"]
        chosen = f"x {row.chosen['factor']:g}" + ("" if free is None else f", free {free:g}")
        taken = [f"{row.seconds:.0f}", f"{row.search_seconds:.0f}", str(row.skipped)]
        gradients = f"{row.budget['gradients']:g}"
        rows.append([name, row.group, gradients, str(row.parameters), chosen, *taken])
    header = ["row", "group", "gradients", "parameters", "chosen"]
    return markdown_table([*header, "s all seeds", "s search", "skipped"], rows)


def cost_lines(found: StudyResult) -> str:
    """Totals."""
    return (
        f"Seconds of processes of one thread each, {found.config.jobs} side by side: "
        f"{sum(row.seconds for row in found.rows.values()):.0f} of meta-training, "
        f"{sum(row.search_seconds for row in found.rows.values()):.0f} of search, "
        f"{found.evaluation_seconds:.0f} of evaluation (tuning and the start of its processes "
        f"apart). Inner steps as logged are those of the budget in "
        f"{'every run' if found.as_planned else 'NOT every run'}."
    )


def ablations(found: StudyResult) -> str:
    """Each lever beside the row that it was changed in."""
    (family,) = found.families.values()
    rows = [
        [name, *(_with_interval(at.geomean, at.ci95) for at in entry.over_seeds.at.values())]
        for name, entry in family.contenders.items()
    ]
    config = found.config
    lines = (
        f"Seed {config.seeds[0]} alone, {config.ablations.share:g} of the outer steps, "
        f"{config.tasks} test tasks of each row's first family. Ratios are to the row "
        f"itself at that budget."
    )
    ratios = [
        [pair.a, str(pair.step), _with_interval(pair.ratio, pair.ci95)]
        for pair in family.pairs
        if pair.seed == "all"
    ]
    parts = [lines, markdown_table(["row", *map(str, found.steps_shown)], rows)]
    return "\n\n".join([*parts, markdown_table(["ablation", "step", "ratio to its row"], ratios)])


def figure(found: StudyResult) -> bytes:
    """Loss by inner step as a PNG, a panel for each family.

    Learned optimizers: thin for each seed, thick over seeds. Of each hand-made optimizer the one
    that is best at the last step, dashed. Bands are 95 % intervals over tasks.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(found.families)
    shown, axes = pyplot.subplots(1, count, figsize=(6.5 * count, 5.5), squeeze=False)
    colours = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    for axis, (family, about) in zip(axes[0], found.families.items(), strict=True):
        for i, entry in enumerate(_drawn(about.contenders)):
            colour, whole = colours[i % len(colours)], entry.over_seeds
            style: dict[str, Any] = {"linewidth": 2.2}
            if entry.kind not in ("learned", "control"):
                style = {"linewidth": 1.2, "linestyle": "--"}
            steps = np.arange(len(whole.geomean))
            axis.plot(steps, whole.geomean, color=colour, label=entry.label, **style)
            axis.fill_between(steps, whole.low, whole.high, color=colour, alpha=0.25, linewidth=0)
            for run in entry.runs if len(entry.runs) > 1 else []:
                axis.plot(steps, run.geomean, color=colour, linewidth=0.6)
        axis.set_yscale("log")
        axis.set_xlabel("inner step")
        axis.set_ylabel("excess over the least loss" if about.least_mean > 0 else "loss")
        axis.set_title(f"family {family}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    tasks = found.config.tasks
    shown.suptitle(f"{tasks} unseen tasks: geometric mean and 95 % interval; thin: each seed")
    return png(shown, dpi=130)


def _drawn(contenders: dict[str, Contender]) -> list[Contender]:
    """Learned ones and controls, and the best of each hand-made optimizer."""
    drawn = [entry for entry in contenders.values() if entry.kind in ("learned", "control")]
    best: dict[str, Contender] = {}
    for name, entry in contenders.items():
        if entry.kind == "baseline":
            base = name.partition("@")[0]
            last = entry.over_seeds.geomean[-1]
            if base not in best or last < best[base].over_seeds.geomean[-1]:
                best[base] = entry
    return [*drawn, *best.values()]
