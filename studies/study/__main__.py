"""The study as a command: meta-train, compare on unseen tasks, write it up.

    python -m studies.study --config study.yaml [--smoke] [--ablations] [--out DIR]
                               [--write-readme] [--ship] [--set key.sub=value ...] [--device ...]

Every learned row gets the same search and the same budget, which is checked before anything is
trained. The folder (``runs/study`` by default) gets ``study.json`` with all figures, and
``tables.md`` and ``study.png`` made from it. ``--ablations`` runs the levers instead, at one seed
and a share of the budget, and writes ``ablations.json`` and ``ablations.md``. Stopped at any point,
the same command goes on. ``--smoke`` is all of it, ablations too, in tiny sizes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaopt.base import cli, config
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder, write_atomically
from metaopt.base.process import World
from studies.output import PRETRAINED, ROOT
from studies.study import jobs
from studies.study.compared import Compared
from studies.study.config import Row, StudyConfig, smoked
from studies.study.evaluation import Evaluation
from studies.study.figure import figure
from studies.study.ship import ship
from studies.study.study import Study
from studies.study.summary import ablated, summarised
from studies.study.tables import ablations as ablations_table
from studies.study.tables import claims, readme, require_markers, tables, write_readme

Listed = tuple[str, str, str, Sequence[tuple[int | None, Evaluation]]]
"""Name, label and kind of a contender, and its evaluations by seed."""


def main(world: World) -> None:
    """Run the study, or what is left of it."""
    parser = cli.parser("Meta-train everything, compare it, and write it up.")
    parser.add_argument("--config", default="study.yaml", help="a path, or a name in configs/")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, under a minute")
    parser.add_argument("--ablations", action="store_true", help="the levers instead of the study")
    parser.add_argument(
        "--write-readme", action="store_true", help="put the tables into README.md and docs/"
    )
    parser.add_argument(
        "--ship", action="store_true", help="put the first seed's into checkpoints/pretrained/"
    )
    arguments = parser.parse_args()
    settings = config.load(StudyConfig, arguments.config, arguments.overrides)
    if arguments.smoke:
        if settings.smoke is None:
            raise UserError(f"{arguments.config}: field smoke: --smoke needs it")
        if arguments.write_readme or arguments.ship:
            raise UserError("--smoke: its figures mean nothing; leave out --write-readme, --ship")
        settings = config.check(StudyConfig, smoked(settings), f"{arguments.config} with --smoke")
    if arguments.ablations and arguments.ship:
        raise UserError("--ship: the ablations are not shipped; leave out --ablations")
    if arguments.write_readme and not arguments.ablations:
        require_markers(ROOT / "README.md")
    default = "runs/study_smoke" if arguments.smoke else "runs/study"
    study = Study(settings, Path(arguments.out or default), arguments.device)
    study.planner.check_budgets()
    make_folder(study.out)
    with jobs.alone(study.out):
        if not arguments.ablations:
            found = core(study)
            if arguments.write_readme:
                write_readme(ROOT / "README.md", readme(found))
                write_atomically(ROOT / "docs" / "study.md", tables(found).encode())
                write_atomically(ROOT / "docs" / "study.png", figure(found))
            if arguments.ship:
                for path in ship(study, found, PRETRAINED):
                    world.say(f"shipped: {path}")
            world.say(f"\n{claims(found)}\n")
        if arguments.ablations or arguments.smoke:
            text = ablations_table(levers(study))
            if arguments.write_readme:
                write_atomically(ROOT / "docs" / "ablations.md", text.encode())
            world.say(f"\n{text}")
    world.say(f"results: {study.out}")


def core(study: Study) -> dict[str, Any]:
    """Search, meta-training, evaluation; returns the content of ``study.json``."""
    settings = study.settings
    study.search(settings.rows)
    study.train([run for row in settings.rows for run in study.trainings(row)])
    learned: dict[tuple[str, str], list[tuple[int | None, Evaluation]]] = {
        (row.name, family): [
            (run.settings.seed, study.of_learned(run, family)) for run in study.trainings(row)
        ]
        for row in settings.rows
        for family in row.families
    }
    names = [*settings.baselines, *settings.references]
    hand_made: dict[tuple[str, str], Evaluation] = {
        (name, family): study.of_hand_made(name, family)
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
        contenders[family], why = _compared(study, listed)
        left_out += why
    found = summarised(study, contenders, left_out)
    _write(study.out / "study.json", found)
    write_atomically(study.out / "tables.md", tables(found).encode())
    write_atomically(study.out / "study.png", figure(found))
    return found


def _label(study: Study, row: Row, family: str) -> str:
    """In the tables of a family; says so where the row was meta-trained on another one."""
    label = study.trainings(row)[0].settings.label
    return label if row.train == family else f"{label}, from {row.train}"


def levers(study: Study) -> dict[str, Any]:
    """The ablations and the rows that they start from; the content of ``ablations.json``."""
    listed = study.settings.ablations.rows
    rows = [study.settings.row(name) for name in dict.fromkeys(a.row for a in listed)]
    study.search(rows)
    runs = [(study.ablated(None, row), row) for row in rows]
    runs += [
        (study.ablated(a, study.settings.row(a.row)), study.settings.row(a.row)) for a in listed
    ]
    study.train([run for run, _ in runs])
    evaluations = [(run, study.of_learned(run, row.families[0])) for run, row in runs]
    study.evaluate([[evaluation] for _, evaluation in evaluations])
    contenders, left_out = _compared(
        study,
        [
            (run.name, run.name, "ablation", [(run.settings.seed, evaluation)])
            for run, evaluation in evaluations
        ],
    )
    found = ablated(study, contenders) | {"left_out": left_out}
    _write(study.out / "ablations.json", found)
    write_atomically(study.out / "ablations.md", ablations_table(found).encode())
    return found


def _compared(study: Study, listed: Sequence[Listed]) -> tuple[list[Compared], list[str]]:
    contenders, left_out = [], []
    for name, label, kind, evaluations in listed:
        contender, why = study.compared(name, label, kind, evaluations)
        if contender is None:
            left_out.append(why)
        else:
            contenders.append(contender)
    return contenders, left_out


def _write(path: Path, found: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    cli.run(main)
