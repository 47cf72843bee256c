"""``tables.md``, made from ``study.json`` alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metaopt.base.errors import UserError
from metaopt.base.files import write_atomically
from metaopt.base.tables import markdown_table

BEGIN, END = "<!-- study table -->", "<!-- end study table -->"
_KINDS = ("learned", "control", "baseline", "reference")


def tables(found: dict[str, Any]) -> str:
    """Everything."""
    parts = ["# The study", _opening(found)]
    for family in found["families"]:
        parts += [f"## Family {family}", _family_lines(found, family), losses(found, family)]
        parts += [part for part in (teleports(found, family), tuned(found, family)) if part]
    parts += ["## Claims", _claims_lines(), claims(found), "## Ratios", pairs(found)]
    if any(row["search"] for row in found["rows"].values()):
        parts += ["## Search", _search_lines(found), search(found)]
    parts += ["## Budgets and costs", costs(found), cost_lines(found)]
    if found["left_out"]:
        parts += ["## Left out", "\n".join(f"- {line}" for line in found["left_out"])]
    return "\n\n".join(parts) + "\n"


def readme(found: dict[str, Any]) -> str:
    """What stands in the README: a row for each optimizer of all families, and the claims."""
    parts = [_opening(found), _spread_line()]
    for family in found["families"]:
        parts += [_family_lines(found, family), spread(found, family)]
    return "\n\n".join([*parts, claims_in_short(found), cost_lines(found)])


def _spread_line() -> str:
    return (
        "Learned optimizers and controls: the geometric mean over seeds, and the best and the "
        "worst seed. `diverged` counts tasks of all seeds."
    )


def spread(found: dict[str, Any], family: str) -> str:
    """A row for each optimizer, with the range over its seeds."""
    steps = [str(step) for step in found["steps_shown"]]
    rows = []
    for entry in _in_order(found, family):
        runs = entry["runs"]
        cells = []
        for step in steps:
            values = [run["at"][step]["geomean"] for run in runs]
            over = entry["over_seeds"]["at"][step]["geomean"] if len(runs) > 1 else values[0]
            ends = f" ({min(values):.2g} to {max(values):.2g})" if len(runs) > 1 else ""
            cells.append(f"{over:.3g}{ends}")
        timed = max(1e3 * run["seconds_per_step"] for run in runs)
        diverged = str(sum(run["diverged"] for run in runs))
        gradients = f"{runs[0]['gradients_per_step']:g}"
        rows.append([entry["label"], entry["kind"], *cells, diverged, gradients, f"{timed:.2g}"])
    header = ["optimizer", "kind", *steps, "diverged", "gradients/step", "ms/step"]
    return markdown_table(header, rows)


def claims_in_short(found: dict[str, Any]) -> str:
    """How many claims are met in every seed, and which are not."""
    missed = [claim for claim in found["claims"] if not claim["met_in_each"]]
    met = len(found["claims"]) - len(missed)
    lines = [f"Of {len(found['claims'])} claims checked {met} are met in every seed."]
    if missed:
        lines += ["Not met in every seed:", ""]
    for claim in missed:
        step = "" if claim["step"] is None else f" at step {claim['step']}"
        label = found["rows"][claim["row"]]["label"]
        values = [
            f"{at['value']:.3g}"
            for seed in map(str, found["config"]["seeds"])
            if (at := claim["found"].get(seed)) is not None
        ]
        said = ", ".join(values) or "nothing, left out"
        lines.append(
            f"- {claim['family']}, {label}, {claim['what']}{step}: found {said}, "
            f"asked {claim['bar']}"
        )
    return "\n".join(lines)


def require_markers(path: Path) -> None:
    """Raise ``UserError`` where a README has no place for the tables: before hours of work."""
    content = path.read_text(encoding="utf-8")
    if BEGIN not in content or END not in content:
        raise UserError(f"{path}: expected the lines {BEGIN} and {END}, found none")


def write_readme(path: Path, text: str) -> None:
    """Put text between the markers of a README; raises ``UserError`` where there are none."""
    require_markers(path)
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(path, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def _opening(found: dict[str, Any]) -> str:
    config = found["config"]
    seeds = ", ".join(map(str, config["seeds"]))
    dirty = " with changes" if found["dirty"] else ""
    return (
        f"{config['tasks']} test tasks (seed {config['task_seed']}), meta-training seeds {seeds}, "
        f"commit {found['commit'] or 'unknown'}{dirty}. Geometric means over tasks, 95 % bootstrap "
        f"intervals over tasks in brackets."
    )


def _family_lines(found: dict[str, Any], family: str) -> str:
    about = found["families"][family]
    shape = ", ".join(f"{key} {value}" for key, value in about["changed"].items()) or "as it is"
    what = "Loss by inner step"
    if about["least_mean"] > 0:
        what = f"Excess over the least loss (its mean is {about['least_mean']:.3g}) by inner step"
    return f"{what}, family {family} ({shape}); milliseconds are for all tasks together, one thread"


def _interval(ci: list[float]) -> str:
    return f"[{ci[0]:.2g}, {ci[1]:.2g}]"


def losses(found: dict[str, Any], family: str) -> str:
    """A row for each seed, and one over seeds."""
    steps = [str(step) for step in found["steps_shown"]]
    rows = []
    for entry in _in_order(found, family):
        several = len(entry["runs"]) > 1
        for run in entry["runs"]:
            seed = "" if run["seed"] is None else f" #{run['seed']}"
            cells = [f"{run['at'][step]['geomean']:.3g}" for step in steps]
            if not several:
                cells = [_with_interval(run["at"][step]) for step in steps]
            timed = f"{1e3 * run['seconds_per_step']:.2g}"
            rows.append([entry["label"] + seed, *cells, str(run["diverged"]), timed])
        if several:
            cells = [_with_interval(entry["over_seeds"]["at"][step]) for step in steps]
            rows.append([f"**{entry['label']}, over seeds**", *cells, "", ""])
    return markdown_table(["optimizer", *steps, "diverged", "ms/step"], rows)


def _in_order(found: dict[str, Any], family: str) -> Iterable[dict[str, Any]]:
    """The contenders of a family, learned ones before controls before hand-made ones."""
    contenders = found["families"][family]["contenders"].values()
    return (entry for kind in _KINDS for entry in contenders if entry["kind"] == kind)


def _with_interval(at: dict[str, Any]) -> str:
    return f"{at['geomean']:.3g} {_interval(at['ci95'])}"


def teleports(found: dict[str, Any], family: str) -> str:
    """What teleports did; empty without any."""
    rows = [
        [
            entry["label"] + ("" if run["seed"] is None else f" #{run['seed']}"),
            f"{run['teleport']['norm_mean']:.3g}",
            f"{100 * run['teleport']['refused_share']:.2g} %",
            f"{run['teleport']['drift_max']:.2g}",
            f"{run['teleport']['drift_log_total_mean']:.2g}",
        ]
        for entry in found["families"][family]["contenders"].values()
        for run in entry["runs"]
        if run["teleport"] is not None
    ]
    header = ["teleports of", "mean norm", "refused", "largest drift", "signed log total"]
    return markdown_table(header, rows) if rows else ""


def tuned(found: dict[str, Any], family: str) -> str:
    """What hand-made optimizers were tuned to."""
    lines = []
    for name, entry in found["families"][family]["contenders"].items():
        values = entry["runs"][0]["origin"].get("hyperparameters")
        if values:
            edges = ", ".join(entry["runs"][0]["origin"].get("at_the_edge_of_the_grid", []))
            note = f"; at the edge of the grid: {edges}" if edges else ""
            lines.append(f"- {name}: {', '.join(f'{k} {v:g}' for k, v in values.items())}{note}")
    return "\n".join(["Tuned on validation tasks:", "", *lines]) if lines else ""


def _claims_lines() -> str:
    return (
        "A loss is met where its geometric mean is; a ratio where the upper end of its interval "
        "is. Seed s is held against seed s; the worst seed against the rival's best is shown, "
        "beside what is asked for."
    )


def claims(found: dict[str, Any]) -> str:
    """Each bar, what was found in each seed, and whether it is met in each."""
    seeds = [str(seed) for seed in found["config"]["seeds"]]
    shown = [*seeds, "all", "worst/best"]
    rows = []
    for claim in found["claims"]:
        label = found["rows"][claim["row"]]["label"]
        cells = []
        for seed in shown:
            at = claim["found"].get(seed)
            if at is None:
                cells.append("")
                continue
            end = "" if at["ci95"] is None else f" {_interval(at['ci95'])}"
            cells.append(f"{at['value']:.3g}{end}{'' if claim['met'][seed] else ' no'}")
        step = "" if claim["step"] is None else str(claim["step"])
        met = "yes" if claim["met_in_each"] else "NO"
        rows.append([claim["family"], label, claim["what"], step, claim["bar"], *cells, met])
    names = [*(f"seed {seed}" for seed in seeds), "over seeds", "worst / best"]
    header = ["family", "optimizer", "what", "step", "bar", *names, "met"]
    return markdown_table(header, rows)


def pairs(found: dict[str, Any]) -> str:
    """Ratios to learned optimizers, controls and references over seeds; the JSON has all."""
    rows = []
    for family, about in found["families"].items():
        contenders = about["contenders"]
        for pair in about["pairs"]:
            if pair["seed"] == "all" and contenders[pair["b"]]["kind"] != "baseline":
                names = [contenders[pair[side]]["label"] for side in "ab"]
                ratio = f"{pair['ratio']:.3g} {_interval(pair['ci95'])}"
                won = f"{100 * pair['win_rate']:.0f} %"
                rows.append([family, *names, str(pair["step"]), ratio, won])
    return markdown_table(["family", "a", "b", "step", "a / b", "tasks won"], rows)


def _search_lines(found: dict[str, Any]) -> str:
    search = found["config"]["search"]
    return (
        f"Factors on all outer learning rates of a row, and `free` of the rule that moves the "
        f"weights, all pairs of them tried at seed {found['config']['seeds'][0]} with "
        f"{search['share']:g} of the outer steps; the mean log validation loss over the steps "
        f"chooses."
    )


def search(found: dict[str, Any]) -> str:
    """Scores by factor, a row of the table for each ``free``."""
    grid = found["config"]["search"]
    rows = []
    for name, row in found["rows"].items():
        scores = {(run["factor"], run["free"]): f"{run['score']:.3f}" for run in row["search"]}
        for free in grid["free"] if scores else []:
            cells = [scores[factor, free] for factor in grid["factors"]]
            is_chosen = free == row["chosen"]["free"]
            chosen = f"x {row['chosen']['factor']:g}" if is_chosen else ""
            rows.append([name, f"{free:g}", *cells, chosen])
    factors = [f"x {factor:g}" for factor in grid["factors"]]
    return markdown_table(["row", "free", *factors, "chosen"], rows)


def costs(found: dict[str, Any]) -> str:
    """Budgets and seconds by row."""
    rows = []
    for name, row in found["rows"].items():
        budget = row["budget"]
        seconds = sum(run["seconds"] for run in row["runs"])
        searched = sum(run["seconds"] for run in row["search"])
        rows.append(
            [
                name,
                row["group"],
                f"{budget['trajectories']:g}",
                str(budget["outer_steps"]),
                f"{budget['gradients']:g}",
                str(row["parameters"]),
                f"{seconds / len(row['runs']):.0f}",
                f"{seconds:.0f}",
                f"{searched:.0f}",
                str(sum(run["skipped"] for run in row["runs"])),
            ]
        )
    header = ["row", "group", "trajectories", "outer steps", "gradients", "parameters"]
    header += ["s a seed", "s all seeds", "s search", "skipped"]
    return markdown_table(header, rows)


def cost_lines(found: dict[str, Any]) -> str:
    """Totals."""
    cost = found["costs"]
    return (
        f"Seconds of processes of one thread each, {found['config']['jobs']} side by side: "
        f"{cost['training']:.0f} of meta-training, {cost['search']:.0f} of search, "
        f"{cost['evaluation']:.0f} of evaluation (tuning and the start of its processes apart). "
        f"Inner steps as logged are those of the budget in "
        f"{'every run' if cost['as_planned'] else 'NOT every run'}."
    )


def ablations(found: dict[str, Any]) -> str:
    """``ablations.md``: each lever beside the row that it was changed in."""
    steps = [str(step) for step in found["steps_shown"]]
    rows = []
    for name, entry in found["contenders"].items():
        cells = [_with_interval(entry["over_seeds"]["at"][step]) for step in steps]
        rows.append([name, *cells])
    share = found["config"]["ablations"]["share"]
    lines = (
        f"Seed {found['config']['seeds'][0]} alone, {share:g} of the outer steps, "
        f"{found['config']['tasks']} test tasks of each row's first family. Ratios are to the row "
        f"itself at that budget."
    )
    ratios = [
        [pair["a"], str(pair["step"]), f"{pair['ratio']:.3g} {_interval(pair['ci95'])}"]
        for pair in found["pairs"]
        if pair["seed"] == "all"
    ]
    header = ["ablation", "step", "ratio to its row"]
    parts = ["# Ablations", lines, markdown_table(["row", *steps], rows)]
    return "\n\n".join([*parts, markdown_table(header, ratios)]) + "\n"
