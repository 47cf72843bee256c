"""The study as a command: meta-train, compare on unseen tasks, write it up.

    python -m studies.study --config study.yaml [--smoke] [--ablations] [--out DIR]
                               [--write-page] [--ship] [--set key.sub=value ...] [--device ...]

Every learned row gets the same search and the same budget, which is checked before anything is
trained. The folder (``runs/study`` by default) gets ``study.json`` with all figures, and
``study.md`` and ``study.png`` made from it. ``--ablations`` runs the levers instead, at one seed
and a share of the budget, and writes ``ablations.json`` and ``ablations.md``. ``--write-page``
puts the same into ``docs/results/``, ``--ship`` the first seed's checkpoints into
``checkpoints/pretrained/``. Stopped at any point, the same command goes on. ``--smoke`` is all of
it, ablations too, in tiny sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from metaopt._version import __version__
from metaopt.base import checkpoint, cli, config
from metaopt.base.checkpoint import LICENCE, Checkpoint
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder, write_atomically
from metaopt.base.loss_statistics import resamples
from metaopt.base.process import World
from metaopt.meta.run_files import LAST_FILE
from studies import pool
from studies.output import DOCS, PRETRAINED, Page, commit, git
from studies.study import page
from studies.study.config import Row, StudyConfig, smoked
from studies.study.evaluation import (
    Compared,
    Evaluation,
    compared,
    least_losses,
    sha256,
    shown_steps,
)
from studies.study.plan import Study, Training, budget
from studies.study.result import (
    Family,
    Index,
    StudyResult,
    TrainedRow,
    checked,
    contender,
    ratios,
)

STUDY = Page(DOCS / "study.md", "study tables", "study")
ABLATIONS = Page(DOCS / "ablations.md", "ablations tables", "ablations")
Listed = tuple[str, str, str, Sequence[tuple[int | None, Evaluation]]]
"""Name, label and kind of a contender, and its evaluations by seed."""


def main(world: World) -> None:
    """Run the study, or what is left of it."""
    parser = cli.parser("Meta-train everything, compare it, and write it up.")
    parser.add_argument("--config", default="study.yaml", help="a path, or a name in configs/")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, under a minute")
    parser.add_argument("--ablations", action="store_true", help="the levers instead of the study")
    parser.add_argument(
        "--ship", action="store_true", help="put the first seed's into checkpoints/pretrained/"
    )
    arguments = (ABLATIONS if "--ablations" in sys.argv else STUDY).parse(parser)
    settings = config.load(StudyConfig, arguments.config, arguments.overrides)
    if arguments.smoke:
        if settings.smoke is None:
            raise UserError(f"{arguments.config}: field smoke: --smoke needs it")
        if arguments.ship:
            raise UserError("--ship: what --smoke finds means nothing; leave one out")
        settings = config.check(StudyConfig, smoked(settings), f"{arguments.config} with --smoke")
    if arguments.ablations and arguments.ship:
        raise UserError("--ship: the ablations are not shipped; leave out --ablations")
    default = "runs/study_smoke" if arguments.smoke else "runs/study"
    study = Study(settings, Path(arguments.out or default), arguments.device)
    study.check_budgets()
    make_folder(study.out)
    with pool.alone(study.out):
        if not arguments.ablations:
            found = core(study)
            text, figure = page.page(found), page.figure(found)
            _write(study.out, "study", found, text, figure)
            if arguments.ship:
                for path in ship(study, found, PRETRAINED):
                    world.say(f"shipped: {path}")
            STUDY.tell(arguments, text, found.model_dump(mode="json"), figure)
        if arguments.ablations or arguments.smoke:
            found = levers(study)
            text = page.ablations(found)
            _write(study.out, "ablations", found, text)
            if arguments.ablations:
                ABLATIONS.tell(arguments, text, found.model_dump(mode="json"))
            else:
                world.say(f"\n{text}")
    world.say(f"results: {study.out}")


def _write(out: Path, stem: str, found: StudyResult, text: str, figure: bytes = b"") -> None:
    write_atomically(out / f"{stem}.json", (found.model_dump_json(indent=1) + "\n").encode())
    write_atomically(out / f"{stem}.md", f"{text}\n".encode())
    if figure:
        write_atomically(out / f"{stem}.png", figure)


def core(study: Study) -> StudyResult:
    """Search, meta-training, evaluation."""
    settings = study.settings
    study.train([run for row in settings.rows for run in study.searched(row).values()], "search")
    study.train([run for row in settings.rows for run in study.trainings(row)])
    learned: dict[tuple[str, str], list[tuple[int | None, Evaluation]]] = {
        (row.name, family): [
            (run.settings.seed, study.of_run(run, family)) for run in study.trainings(row)
        ]
        for row in settings.rows
        for family in row.families
    }
    names = [*settings.baselines, *settings.references]
    hand_made = {
        (name, family): study.evaluation(family, name)
        for family in settings.families
        for name in names
    }
    # Tuning takes longest, so it begins.
    groups = [[hand_made[name, family] for name in names] for family in settings.families]
    for row in settings.rows:
        of_row = [learned[row.name, family] for family in row.families]
        groups.append([evaluation for runs in of_row for _, evaluation in runs])
    study.evaluate(groups)
    contenders: dict[str, list[Compared]] = {}
    left_out = []
    kinds = {row.name: "learned" for row in settings.learned}
    for family in settings.families:
        listed: list[Listed] = [
            (row.name, _label(study, row, family), kinds.get(row.name, "control"), runs)
            for row in settings.rows
            if (runs := learned.get((row.name, family)))
        ]
        listed += [(name, name, "baseline", [(None, hand_made[name, family])]) for name in names]
        contenders[family], why = _compared(listed)
        left_out += why
    index = _index(study)
    rows = {row.name: _row(study, row) for row in settings.rows}
    families = {name: _family(study, name, of, index) for name, of in contenders.items()}
    return StudyResult(
        **_about(study),
        families=families,
        rows=rows,
        claims=checked(settings, contenders, index),
        left_out=left_out,
        evaluation_seconds=sum(
            settings.steps * run.seconds_per_step
            for family in families.values()
            for entry in family.contenders.values()
            for run in entry.runs
        ),
        as_planned=all(
            run["inner_steps"] == row.budget["inner_steps"]
            for row in rows.values()
            for run in row.runs
        ),
    )


def levers(study: Study) -> StudyResult:
    """The ablations, and before them the rows that they start from."""
    settings, listed = study.settings, study.settings.ablations.rows
    rows = [settings.row(name) for name in dict.fromkeys(ablation.row for ablation in listed)]
    study.train([run for row in rows for run in study.searched(row).values()], "search")
    runs = [(study.ablated(row), row) for row in rows]
    runs += [(study.ablated(row, a), row) for a in listed for row in [settings.row(a.row)]]
    study.train([run for run, _ in runs])
    evaluations = [(run, study.of_run(run, row.families[0])) for run, row in runs]
    study.evaluate([[evaluation] for _, evaluation in evaluations])
    contenders, left_out = _compared(
        [
            (run.name, run.name, "ablation", [(run.settings.seed, evaluation)])
            for run, evaluation in evaluations
        ]
    )
    index, by_name = _index(study), {one.name: one for one in contenders}
    pairs = [
        pair
        for a in listed
        if (name := f"{a.row}-{a.name}") in by_name and a.row in by_name
        for pair in ratios(by_name[name], by_name[a.row], index)
    ]
    found = {one.name: contender(one, index) for one in contenders}
    family = Family(changed={}, config={}, least_mean=0, contenders=found, pairs=pairs)
    return StudyResult(**_about(study), families={"ablations": family}, left_out=left_out)


def _label(study: Study, row: Row, family: str) -> str:
    """In the tables of a family; says so where the row was meta-trained on another one."""
    label = study.trainings(row)[0].settings.label
    return label if row.train == family else f"{label}, from {row.train}"


def _compared(listed: Sequence[Listed]) -> tuple[list[Compared], list[str]]:
    """Those with results, and why others have none."""
    found = [compared(*one) for one in listed]
    there = [one for one in found if isinstance(one, Compared)]
    return there, [one for one in found if isinstance(one, str)]


def _index(study: Study) -> Index:
    settings = study.settings
    bootstrap = study.evaluation(next(iter(settings.families))).settings.bootstrap
    return resamples(settings.tasks, bootstrap, settings.task_seed)


def _about(study: Study) -> dict[str, Any]:
    return {
        "metaopt_version": __version__,
        "commit": commit(),
        "dirty": bool(git("status", "--porcelain")),
        "config": study.settings,
        "steps_shown": shown_steps(study.settings.steps),
    }


def _family(study: Study, family: str, contenders: Sequence[Compared], index: Index) -> Family:
    settings = study.evaluation(family).settings
    claimed = {bar.row for bar in study.settings.bars}
    return Family(
        changed=study.settings.families[family],
        config=settings.model_dump(mode="json"),
        least_mean=float(least_losses(settings).mean()),
        contenders={one.name: contender(one, index) for one in contenders},
        pairs=[
            pair
            for a in contenders
            if a.name in claimed
            for b in contenders
            if b is not a
            for pair in ratios(a, b, index)
        ],
    )


def _row(study: Study, row: Row) -> TrainedRow:
    """What a row was trained with, and what that took."""
    runs, searched = study.trainings(row), study.searched(row)
    first, took = runs[0], [_run(run) for run in runs]
    search = [asdict(point) | {"score": run.score()} | _run(run) for point, run in searched.items()]
    return TrainedRow(
        label=first.settings.label,
        group=row.group,
        train=row.train,
        config=first.settings.model_dump(mode="json"),
        parameters=sum(prod(tensor.shape) for tensor in first.learned().tensors.values()),
        budget=asdict(budget(first.settings)),
        chosen=asdict(study.chosen(row)),
        search=search,
        runs=took,
        seconds=sum(run["seconds"] for run in took),
        search_seconds=sum(run["seconds"] for run in search),
        skipped=sum(run["skipped"] for run in took),
    )


def _run(run: Training) -> dict[str, Any]:
    last, metrics = checkpoint.read(run.folder / LAST_FILE), run.last_metrics()
    return {
        "seed": run.settings.seed,
        "folder": run.folder.name,
        "command": run.shown(),
        "sha256": sha256(run.checkpoint),
        "seconds": metrics["seconds"],
        "inner_steps": metrics["inner_steps"],
        "trajectories": last.training["trajectories"],
        "skipped": last.training["skipped"],
        "best_outer_step": run.learned().validation["outer_step"],
    }


def ship(study: Study, found: StudyResult, folder: Path) -> list[Path]:
    """Copy the first seed of every learned row that stands for one of the default configurations.

    A row does if it is named as its configuration file and trained on the family ``default``.

    Args:
        study: finished.
        found: by it.
        folder: where they go, named after their configuration.

    Returns:
        The files written; raises ``UserError`` where no row stands for a default configuration.
    """
    written = []
    for row in study.settings.learned:
        if f"{row.name}.yaml" != Path(row.config).name or row.train != "default":
            continue
        run = study.trainings(row)[0]
        learned = run.learned()
        training = learned.training | {"commit": found.commit, "command": run.shown()}
        validation = learned.validation | {"test": _figures(found, row.name)}
        path = folder / f"{row.name}.safetensors"
        shipped = Checkpoint(learned.tensors, learned.config, training, validation, LICENCE)
        checkpoint.write(path, shipped)
        written.append(path)
    if not written:
        raise UserError("--ship: no learned row is named as its configuration file")
    return written


def _figures(found: StudyResult, name: str) -> Mapping[str, Any]:
    """Of the first seed, by family."""
    figures = {}
    for family, about in found.families.items():
        if name in about.contenders:
            run = about.contenders[name].runs[0].model_dump(mode="json")
            figures[family] = {
                "tasks": found.config.tasks,
                "task_seed": found.config.task_seed,
                "task": about.changed,
                "least_loss_mean": about.least_mean,
                "loss_geomean_above_least": run["at"],
                "diverged": run["diverged"],
                "teleport": run["teleport"],
            }
    return figures


if __name__ == "__main__":
    cli.run(main)
