"""Disks that are full and folders that are read-only, from a random moment on.

Training, evaluation and saving are tried in turn, over what an earlier one has left. Expected are
one line on stderr and the exit status 1 or 2; files that were there load and are the earlier ones
or the new ones; and once there is room, the same command ends as if nothing had been.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metaopt
from benchmarks.hardening import places
from benchmarks.hardening.runs import COORDINATE, SHAPES, differences
from benchmarks.hardening.settings import Found, Hardening, side_by_side
from benchmarks.hardening.victim import Plan, begun, errors_of
from metaopt.base.checkpoint import read_state
from metaopt.meta.run_files import BEST_FILE, LAST_FILE, STATE_FILE
from studies.output import PRETRAINED

PATIENCE = 120.0
ACTS = ("fill", "forbid")
OLD = PRETRAINED / "coordinate_update.safetensors"
NEW = PRETRAINED / "coordinate_lr_tele.safetensors"
_BAR = re.compile(r"\|.*\d+/\d+ \[|^\s*$")


@dataclass
class Scene:
    """What is tried in one place."""

    inside: Path  # the folder on a disk of its own
    log: Path  # of the commands
    act: str  # fill or forbid
    draw: random.Random  # of what is random

    def operations(self, command: list[str]) -> int:
        """Undisturbed, in the repository: how many operations on files it makes."""
        count = self.log.parent / "operations"
        self.done(command, Plan(count=str(count), place=str(self.inside), at_home=False))
        return int(count.read_text(encoding="ascii"))

    def done(self, command: list[str], plan: Plan | None = None) -> None:
        """A command that must succeed."""
        plan = plan or Plan(place=str(self.inside), at_home=False)
        status = begun(plan, command, self.log).wait(PATIENCE)
        if status != 0:
            raise FaultError(f"with room, it ended with {status}: {self.said()[-3:]}")

    def disturbed(self, command: list[str], operations: int) -> bool:
        """A command that ends in one line, or has no need of room any more and succeeds.

        The place is relieved after it. Returns whether it succeeded.
        """
        errors_of(self.log).unlink(missing_ok=True)
        at = self.draw.randint(1, operations)
        plan = Plan(self.act, at, str(self.inside), at_home=False)
        status = begun(plan, command, self.log).wait(PATIENCE)
        places.relieve(self.inside)
        said = self.said()
        if (status, len(said)) not in ((0, 0), (1, 1), (2, 1)):
            raise FaultError(f"operation {at} of {operations}: status {status}, stderr {said[-6:]}")
        return status == 0

    def said(self) -> list[str]:
        """Lines on stderr without bars."""
        text = errors_of(self.log).read_text(encoding="utf-8", errors="replace")
        return [line for line in re.split(r"[\r\n]+", text) if not _BAR.search(line)]


class FaultError(Exception):
    """What fell short, in a line."""


def disk(settings: Hardening, folder: Path) -> Found:
    """Try as many moments as ``settings`` say."""
    whole = folder / "whole" / "run"
    whole.parent.mkdir(parents=True)
    count = whole.parent / "operations"
    victim = COORDINATE.begun(Plan(count=str(count)), whole, whole.parent / "log")
    if victim.wait(PATIENCE) != 0:
        raise RuntimeError(f"the undisturbed run failed: {whole.parent}")
    tried = list(_trials(whole, int(count.read_text(encoding="ascii"))))

    def fault_of(i: int) -> str | None:
        name, trial = tried[i % len(tried)]
        act = ACTS[i // len(tried) % len(ACTS)]
        own = folder / f"trial{i}"
        own.mkdir()
        with places.place(own / "disk") as inside:
            scene = Scene(inside, own / "log", act, random.Random(f"{settings.seed} {i}"))
            try:
                trial(scene)
            except FaultError as fault:
                return f"trial {i}, {name}, {act}: {fault}"
        shutil.rmtree(own)
        return None

    found = side_by_side(fault_of, range(settings.disk), settings.jobs, "full or read-only")
    faults = [fault for fault in found if fault is not None]
    lost = sum("lost" in fault for fault in faults)
    return Found(f"disk {len(found) - len(faults)}/{len(found)} lost {lost}", faults)


def _trials(whole: Path, operations: int) -> Iterator[tuple[str, Callable[[Scene], None]]]:
    yield "training", lambda scene: _training(scene, whole, operations)
    yield "evaluation", _evaluation
    yield "training", lambda scene: _training(scene, whole, operations)
    yield "save", lambda scene: _saving(scene, "save", "rule.safetensors")
    yield "save_pretrained", lambda scene: _saving(scene, "save_pretrained", "rule")


def _training(scene: Scene, whole: Path, operations: int) -> None:
    """A run that was killed goes on until it is disturbed, and then to its end."""
    own = scene.inside / "run"
    if scene.draw.random() < 0.5:
        killed = Plan(at=scene.draw.randint(operations // 4, operations - 1))
        COORDINATE.begun(killed, own, scene.log).wait(PATIENCE)
    had = [name for name in (BEST_FILE, LAST_FILE, STATE_FILE) if (own / name).is_file()]
    errors_of(scene.log).unlink(missing_ok=True)
    # The last operation is the last chance: the first that is left may be beyond it.
    at = scene.draw.randint(1, operations // (4 if had else 1))
    plan = Plan(scene.act, at, str(scene.inside))
    status = COORDINATE.begun(plan, own, scene.log).wait(PATIENCE)
    places.relieve(scene.inside)
    said = scene.said()
    if not ((status in (1, 2) and len(said) == 1) or (status == 0 and not said)):
        raise FaultError(f"operation {at} of {operations}: status {status}, stderr {said[-6:]}")
    for name in had:
        try:
            read_state(own / name) if name == STATE_FILE else metaopt.load(own / name)
        except ValueError as error:
            raise FaultError(f"lost {name}: {error}") from error
    status = COORDINATE.begun(Plan(), own, scene.log).wait(PATIENCE)
    if status != 0:
        raise FaultError(f"resumed, it ended with {status}: {scene.said()[-3:]}")
    if different := list(differences(own, whole)):
        raise FaultError(f"resumed, not as the undisturbed run: {', '.join(different)}")


def _evaluation(scene: Scene) -> None:
    """A second evaluation over the files of a first."""
    own = scene.inside / "eval"
    grids = "tuning.grids={GD: {lr: [1e-3, 1e-2]}}"
    tiny = (
        "tasks=4",
        "steps=4",
        "tuning.tasks=4",
        "bootstrap=20",
        "baselines=[GD]",
        grids,
        *SHAPES,
    )
    sets = [part for override in tiny for part in ("--set", override)]
    first = ["eval", "--checkpoints", str(OLD), "--out", str(own), "--device", "cpu", *sets]
    second = [*first, "--set", "task_seed=1", "--set", "tuning.seed=1"]
    operations = scene.operations(first)
    before, shown = _files(own), _shown(own)
    cache = scene.inside / "runs" / "tuned_baselines.json"
    known = json.loads(cache.read_text(encoding="utf-8"))
    succeeded = scene.disturbed(second, operations)
    after = _files(own)
    if succeeded and after == before:
        raise FaultError("lost: it succeeded, and wrote nothing")
    if after.keys() != before.keys():
        raise FaultError(f"lost: {', '.join(before.keys() - after.keys())}")
    kept = [name for name in before if after[name] == before[name]]
    # Where a folder is read-only between two renames, some files are new and some are old.
    if scene.act == "fill" and 0 < len(kept) < len(before):
        raise FaultError("lost: earlier and new results stand side by side")
    if after == before and _shown(own) != shown:
        raise FaultError("lost: events of the earlier evaluation")
    remembered = json.loads(cache.read_text(encoding="utf-8"))
    if not known.items() <= remembered.items():
        raise FaultError("lost: tuned values")
    scene.done(second)
    found = json.loads((own / "results.json").read_text(encoding="utf-8"))
    if found["task_seed"] != 1:
        raise FaultError("with room, there are no new results")


def _files(own: Path) -> dict[str, bytes]:
    names = ("results.json", "curves.csv", "convergence.png")
    return {name: (own / name).read_bytes() for name in names if (own / name).is_file()}


def _shown(own: Path) -> dict[str, bytes]:
    """The event files of an evaluation."""
    paths = sorted((own / "tensorboard").rglob("events*"))
    return {str(path.relative_to(own)): path.read_bytes() for path in paths}


def _saving(scene: Scene, command: str, name: str) -> None:
    """Another rule is saved over one that is there."""
    target = scene.inside / name
    operations = scene.operations([command, str(OLD), str(target)])
    succeeded = scene.disturbed([command, str(NEW), str(target)], operations)
    old, new = (metaopt.load(path).name for path in (OLD, NEW))
    try:
        found: Any = metaopt.load(target).name
    except ValueError as error:
        raise FaultError(f"lost: {error}") from error
    if found not in ((new,) if succeeded else (old, new)):
        raise FaultError(f"lost: found {found}")
    scene.done([command, str(NEW), str(target)])
    if metaopt.load(target).name != new:
        raise FaultError("with room, it was not saved")
