"""The bars of the study, computed: what was found, seed by seed, and whether it is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.base.loss_statistics import diverged
from studies.study.compared import Compared, Index, best_hand_made, curve, ratios
from studies.study.config import HAND_MADE, Bar, StudyConfig

Contenders = Mapping[str, Sequence[Compared]]
"""By family."""


def checked(study: StudyConfig, contenders: Contenders, index: Index) -> list[dict[str, Any]]:
    """A row for each bar and step, and for what teleports do: by seed, what was found."""
    rows = []
    for bar in study.bars:
        named = {contender.name: contender for contender in contenders[bar.family]}
        for step, bound in sorted(bar.below.items()):
            if step <= study.steps:
                rows.append(_checked(bar, step, bound, named, index))
    for family, of_family in contenders.items():
        for contender in of_family:
            if contender.kind == "learned":
                rows += _health(study, family, contender)
    return rows


def _checked(
    bar: Bar, step: int, bound: float, named: Mapping[str, Compared], index: Index
) -> dict[str, Any]:
    """A bar at a step; one whose row or rival was left out has nothing found, and is not met."""
    row = named.get(bar.row)
    if bar.against is None:
        if row is None:
            return _row(bar.family, bar.row, "loss", step, f"at most {bound:g}", {}, {})
        found = {
            str(run.seed): curve(run.losses, index)["at"].get(str(step)) for run in row.runs
        } | {"all": curve(row.over_seeds(), index)["at"].get(str(step))}
        values = {seed: (at["geomean"], at["ci95"]) for seed, at in found.items() if at}
        met = {seed: value <= bound for seed, (value, _) in values.items()}
        return _row(bar.family, bar.row, "loss", step, f"at most {bound:g}", values, met)
    if bar.against == HAND_MADE:
        rival = best_hand_made(list(named.values()), step)
    else:
        rival = named.get(bar.against)
    if row is None or rival is None:
        what = f"ratio to {bar.against}"
        return _row(bar.family, bar.row, what, step, f"below {bound:g}", {}, {})
    of_step = [pair for pair in ratios(row, rival, index) if pair["step"] == step]
    values = {pair["seed"]: (pair["ratio"], pair["ci95"]) for pair in of_step}
    met = {seed: interval[1] < bound for seed, (_, interval) in values.items()}
    name = rival.label if bar.against != HAND_MADE else f"best hand-made ({rival.name})"
    return _row(bar.family, bar.row, f"ratio to {name}", step, f"below {bound:g}", values, met)


def _health(study: StudyConfig, family: str, contender: Compared) -> list[dict[str, Any]]:
    """Divergence, and what teleports did to the loss."""
    bar = study.teleport_bar
    runs = {str(run.seed): run for run in contender.runs}
    lost = {seed: (float(diverged(run.raw)), None) for seed, run in runs.items()}
    rows = [
        _row(
            family,
            contender.name,
            "tasks diverged",
            None,
            "at most 0",
            lost,
            {seed: value == 0 for seed, (value, _) in lost.items()},
        )
    ]
    teleports = {seed: run.about["teleport"] for seed, run in runs.items()}
    if all(teleports.values()):
        drift = {seed: (found["drift_max"], None) for seed, found in teleports.items()}
        total = {seed: (found["drift_log_total_mean"], None) for seed, found in teleports.items()}
        rows += [
            _row(
                family,
                contender.name,
                "drift, largest",
                None,
                f"at most {bar.drift_max:g}",
                drift,
                {seed: value <= bar.drift_max for seed, (value, _) in drift.items()},
            ),
            _row(
                family,
                contender.name,
                "drift, mean signed total",
                None,
                f"at least {bar.log_total:g}",
                total,
                {seed: value >= bar.log_total for seed, (value, _) in total.items()},
            ),
        ]
    return rows


def _row(
    family: str,
    name: str,
    what: str,
    step: int | None,
    bound: str,
    values: Mapping[str, tuple[float, Any]],
    met: Mapping[str, bool],
) -> dict[str, Any]:
    return {
        "family": family,
        "row": name,
        "what": what,
        "step": step,
        "bar": bound,
        "found": {seed: {"value": value, "ci95": ci} for seed, (value, ci) in values.items()},
        "met": dict(met),
        # In every seed; the worst seed against the best is shown, and not asked for.
        "met_in_each": bool(met) and all(met[seed] for seed in met if seed != "worst/best"),
    }
