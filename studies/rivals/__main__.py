"""Optimizers side by side on ten small tasks that no meta-training saw; rivals are tuned.

    python -m studies.rivals [--smoke] [--tasks NAME ...] [--rules NAME ...] [--only NAME ...]
                             [--seeds N] [--steps N ...] [--jobs N] [--out DIR] [--fashion DIR]
                             [--json FILE] [--write-page]

Each rival has one number that is tuned, its rate, in two ways that are both shown: by a few trials
on validation rows, and at its best of a grid (and of what trials chose) for each column on the very
losses that are shown, which favours it. Learned rules have ``lr`` 1 and are told nothing. All
contenders of a task and a seed have the same initial weights and mini-batches. Tasks are processes
of one thread, some side by side. What the folder (``runs/rivals`` by default) already has is not
run again, so that a stopped command goes on; Ctrl-C leaves the tables of the tasks that are
complete.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from metaopt.base import cli
from metaopt.base.errors import StoppedError, UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies import pool
from studies.lora.contenders import PACKAGE, package_version
from studies.output import DOCS, Page, write_between
from studies.rivals import data, page, plan, result
from studies.rivals.chosen import Chosen, add_choices, read
from studies.rivals.contenders import COSINE, Contender
from studies.rivals.tasks import Task

PAGE = Page(DOCS / "rivals.md", "rivals tables", "rivals")
BY_TASK = Page(DOCS / "rivals_tasks.md", "rivals by task", "rivals")


def _job(task: Task, chosen: Chosen, arguments: argparse.Namespace) -> pool.Job:
    command = [sys.executable, "-m", "studies.rivals.one", "--tasks", task.name]
    command += ["--out", str(chosen.out), "--fashion", str(arguments.fashion)]
    command += ["--rules", *arguments.rules, "--seeds", str(chosen.size.seeds)]
    command += ["--only", *(contender.name for contender in chosen.contenders)]
    command += ["--smoke"] if arguments.smoke else []
    if arguments.steps is not None:
        command += ["--steps", *map(str, arguments.steps)]
    log = chosen.out / f"{plan.folder(chosen.out, task).path.name}.log"
    return pool.Job(
        task.name, tuple(command), log, _progress(task, log), lambda: f"{task.name}: done"
    )


def _progress(task: Task, log: Any) -> Callable[[], str]:
    def progress() -> str:
        lines = (
            log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        )
        return f"{task.name}: {next((line for line in reversed(lines) if line), 'begins')}"

    return progress


def outcomes(task: Task, chosen: Chosen) -> dict[str, Any] | None:
    """All contenders on a task, from the folder; None where a piece has not been run."""
    kept = plan.folder(chosen.out, task)
    kept = plan.Kept(kept.path, kept.stem)

    def outcome(contender: Contender) -> dict[str, Any]:
        return asdict(plan.Runs(task, contender, chosen.size, kept).outcome())

    try:
        return {contender.name: outcome(contender) for contender in chosen.contenders}
    except plan.NotRunError:
        return None


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="Optimizers on tasks that no meta-training saw.")
    add_choices(parser)
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N")
    arguments = PAGE.parse(parser)
    chosen = read(arguments)
    partial = arguments.only or arguments.tasks or package_version() is None
    if arguments.write_page == PAGE.path and partial:
        raise UserError(f"--write-page: the page has all tasks and contenders, {PACKAGE}'s too")
    make_folder(chosen.out)
    stopped: StoppedError | None = None
    with pool.alone(chosen.out):
        waiting = [task for task in chosen.tasks if outcomes(task, chosen) is None]
        try:
            jobs = [_job(task, chosen, arguments) for task in waiting]
            pool.run(jobs, arguments.jobs, "tasks")
        except StoppedError as error:
            stopped = error
        of_tasks = {task: outcomes(task, chosen) for task in chosen.tasks}
    done = {task: of for task, of in of_tasks.items() if of is not None}
    if stopped is not None and not done:
        raise stopped
    left = [task.name for task, of in of_tasks.items() if of is None]
    found = {
        "size": asdict(chosen.size),
        "missing": chosen.missing
        + ([f"Stopped before its end; not run: {'; '.join(left)}."] if left else []),
        "text": data.about_text(),
        "versions": {PACKAGE: package_version(), "torch": torch.__version__},
        "contenders": {
            c.name: {"learned": c.learned, "grid": c.grid, "told": c.told}
            for c in chosen.contenders
        },
        "tasks": {task.name: {"about": task.about, "contenders": of} for task, of in done.items()},
    }
    # With the keys that JSON has, so that a page is made of the file beside it.
    found = json.loads(json.dumps(found))
    found |= json.loads(json.dumps(result.comparison(found)))
    # All that it draws is relative to AdamW with a cosine.
    drawn = page.figure(found) if COSINE in found["contenders"] else None
    PAGE.tell(arguments, page.text(found), found, drawn)
    print(f"\n{page.by_task(found)}")
    if arguments.write_page == PAGE.path:
        write_between(BY_TASK.path, BY_TASK.name, page.by_task(found))
    if stopped is not None:
        raise stopped


if __name__ == "__main__":
    cli.run(main)
