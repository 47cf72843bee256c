"""What a study finds: contenders side by side, seed by seed and over seeds, and its claims.

Over seeds means: for each task the geometric mean of the losses that the seeds reach, then the
statistics over tasks. Intervals are bootstrapped over tasks; the spread over seeds is shown by all
of them. A ``StudyResult`` is the content of ``study.json`` and ``ablations.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from metaopt.base.loss_statistics import diverged, geomean, geomean_interval, ratio_of
from studies.output import in_repository
from studies.study.config import HAND_MADE, Bar, StudyConfig
from studies.study.evaluation import Array, Compared, best_hand_made, shown_steps

Index = NDArray[np.int64]
Interval = tuple[float, float]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class At(_Model):
    """A loss at one step and its 95 % interval over tasks, None where only the loss was kept."""

    geomean: float
    ci95: Interval | None = None


class Curve(_Model):
    """Loss by inner step."""

    at: dict[int, At]  # the steps that are shown
    geomean: list[float] = []  # all steps, to four digits, for the figure
    low: list[float] = []  # of its 95 % interval
    high: list[float] = []  # of its 95 % interval


class Run(Curve):
    """One run of a contender on the test tasks; ``seed`` is None for hand-made optimizers."""

    seed: int | None
    diverged: int
    seconds_per_step: float
    gradients_per_step: float
    teleport: dict[str, float] | None
    origin: dict[str, Any]


class Contender(_Model):
    """A contender with all its seeds."""

    label: str
    kind: str
    runs: list[Run]
    over_seeds: Curve


class Pair(_Model):
    """a over b at a step: of a seed, over seeds (``all``), or a's worst over b's best."""

    a: str
    b: str
    step: int
    seed: str
    ratio: float
    ci95: Interval
    win_rate: float


class Family(_Model):
    """All contenders on one family: what it changes, its least loss, and the pairs claimed of."""

    changed: dict[str, Any]
    config: dict[str, Any]
    least_mean: float
    contenders: dict[str, Contender]
    pairs: list[Pair]


class Found(_Model):
    """What a claim is about, in one seed."""

    value: float
    ci95: Interval | None = None


class Claim(_Model):
    """A bar at a step: by seed what was found and whether it is met, and whether in each seed.

    A ratio is ``level`` where both losses have come down to rounding in every seed.
    """

    family: str
    row: str
    what: str
    step: int | None
    bar: str
    found: dict[str, Found]
    met: dict[str, bool]
    met_in_each: bool
    level: bool = False


class TrainedRow(_Model):
    """What a row was trained with, and what that took, in seconds of one thread."""

    label: str
    group: str
    train: str
    config: dict[str, Any]
    parameters: int
    budget: dict[str, float]
    chosen: dict[str, float | None]
    search: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    seconds: float
    search_seconds: float
    skipped: int


class StudyResult(_Model):
    """All figures of a study, from which page and figure are made."""

    metaopt_version: str
    commit: str | None
    dirty: bool
    config: StudyConfig
    steps_shown: list[int]
    families: dict[str, Family]
    rows: dict[str, TrainedRow] = {}
    claims: list[Claim] = []
    left_out: list[str] = []
    evaluation_seconds: float = 0.0
    as_planned: bool = True


def curve(losses: Array, index: Index) -> Curve:
    """Geometric mean and 95 % interval, at all steps and at those that are shown."""
    mean, (low, high) = geomean(losses), geomean_interval(losses, index)
    at = {
        step: At(geomean=float(mean[step]), ci95=(float(low[step]), float(high[step])))
        for step in shown_steps(len(losses) - 1)
    }
    whole = ([float(f"{value:.4g}") for value in values] for values in (mean, low, high))
    return Curve(at=at, **dict(zip(("geomean", "low", "high"), whole, strict=True)))


def contender(compared: Compared, index: Index) -> Contender:
    """Its figures."""
    runs = [
        Run(
            seed=run.seed,
            diverged=diverged(run.raw),
            seconds_per_step=run.about["seconds_per_step"],
            gradients_per_step=run.about["gradients_per_step"],
            teleport=run.about["teleport"],
            origin=in_repository(run.about["origin"]),
            **dict(curve(run.losses, index)),
        )
        for run in compared.runs
    ]
    over = curve(compared.over_seeds(), index)
    return Contender(label=compared.label, kind=compared.kind, runs=runs, over_seeds=over)


def ratios(a: Compared, b: Compared, index: Index) -> list[Pair]:
    """a over b: seed by seed, over seeds, and a's worst seed over b's best.

    Seed s of a is divided by seed s of b, where b has that seed, and otherwise by b's only run.
    """
    alone = b.runs[0].losses if len(b.runs) == 1 else None
    rivals = {run.seed: run.losses for run in b.runs}
    sides = {
        str(run.seed): (run.losses, rival)
        for run in a.runs
        if (rival := rivals.get(run.seed, alone)) is not None
    }
    sides["all"] = (a.over_seeds(), b.over_seeds())
    rows = []
    for step in shown_steps(len(a.runs[0].losses) - 1):
        sides["worst/best"] = (a.extreme(step, worst=True), b.extreme(step, worst=False))
        for seed, (of_a, of_b) in sides.items():
            mean, low, high, wins = map(float, ratio_of(of_a[step], of_b[step], index))
            named: dict[str, Any] = {"a": a.name, "b": b.name, "step": step, "seed": seed}
            rows.append(Pair(**named, ratio=mean, ci95=(low, high), win_rate=wins))
    return rows


Contenders = Mapping[str, Sequence[Compared]]
"""By family."""


def checked(study: StudyConfig, contenders: Contenders, index: Index) -> list[Claim]:
    """A claim for each bar and step, and for what teleports do."""
    rows = [
        _checked(bar, step, bound, contenders[bar.family], index)
        for bar in study.bars
        for step, bound in sorted(bar.below.items())
        if step <= study.steps
    ]
    for family, of_family in contenders.items():
        for contender in of_family:
            if contender.kind == "learned":
                rows += _health(study, family, contender)
    return rows


def _checked(
    bar: Bar, step: int, bound: float, contenders: Sequence[Compared], index: Index
) -> Claim:
    """A bar at a step; one whose row or rival was left out has nothing found, and is not met."""
    named = {contender.name: contender for contender in contenders}
    row, found, level = named.get(bar.row), {}, False
    if bar.against is None:
        what, asked = "loss", f"at most {bound:g}"
        if row is not None:
            curves = {str(run.seed): run.losses for run in row.runs} | {"all": row.over_seeds()}
            at = {seed: curve(losses, index).at[step] for seed, losses in curves.items()}
            found = {seed: Found(value=x.geomean, ci95=x.ci95) for seed, x in at.items()}
        met = {seed: one.value <= bound for seed, one in found.items()}
    else:
        what, asked, rival = f"ratio to {bar.against}", f"below {bound:g}", named.get(bar.against)
        if bar.against == HAND_MADE:
            rival = best_hand_made(contenders, step)
        if row is not None and rival is not None:
            of_hand = f"best hand-made ({rival.name})"
            what = f"ratio to {of_hand if bar.against == HAND_MADE else rival.label}"
            pairs = [pair for pair in ratios(row, rival, index) if pair.step == step]
            found = {pair.seed: Found(value=pair.ratio, ci95=pair.ci95) for pair in pairs}
            level = all(run.at_rounding(step) for run in (*row.runs, *rival.runs))
        met = {seed: one.ci95 is not None and one.ci95[1] < bound for seed, one in found.items()}
    return _claim(bar.family, bar.row, what, step, asked, found, met, level)


def _health(study: StudyConfig, family: str, contender: Compared) -> Iterator[Claim]:
    """Divergence, and what teleports did to the loss."""
    bar, runs = study.teleport_bar, {str(run.seed): run for run in contender.runs}

    def claim(what: str, asked: str, values: dict[str, float], sign: int, bound: float) -> Claim:
        met = {seed: sign * value <= sign * bound for seed, value in values.items()}
        found = {seed: Found(value=value) for seed, value in values.items()}
        return _claim(family, contender.name, what, None, asked, found, met)

    lost = {seed: float(diverged(run.raw)) for seed, run in runs.items()}
    yield claim("tasks diverged", "at most 0", lost, 1, 0)
    moved = {seed: run.about["teleport"] for seed, run in runs.items()}
    if all(moved.values()):
        drift = {seed: found["drift_max"] for seed, found in moved.items()}
        total = {seed: found["drift_log_total_mean"] for seed, found in moved.items()}
        yield claim("drift, largest", f"at most {bar.drift_max:g}", drift, 1, bar.drift_max)
        asked = f"at least {bar.log_total:g}"
        yield claim("drift, mean signed total", asked, total, -1, bar.log_total)


def _claim(
    family: str,
    row: str,
    what: str,
    step: int | None,
    bar: str,
    found: dict[str, Found],
    met: dict[str, bool],
    level: bool = False,
) -> Claim:
    # In every seed; the worst seed against the best is shown, and not asked for.
    each = bool(met) and all(met[seed] for seed in met if seed != "worst/best")
    named = {"family": family, "row": row, "what": what, "step": step, "bar": bar}
    return Claim.model_validate(
        {**named, "found": found, "met": met, "met_in_each": each, "level": level}
    )
