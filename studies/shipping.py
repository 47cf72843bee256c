"""Put runs among what ships, with figures on test tasks that no meta-training saw.

    python -m studies.shipping NAME ...

Each NAME is a run of the configuration of that name, ``python train_meta.py --config NAME.yaml``,
in ``runs/NAME/``. It is evaluated by ``eval_meta.py`` on 32 test tasks of its family, at the sizes
of ``UNSEEN``, and goes to ``checkpoints/pretrained/NAME.safetensors`` with the command and the
commit that meta-trained it, these figures and the licence.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaopt.base import checkpoint, cli
from metaopt.base.checkpoint import LICENCE
from metaopt.base.errors import UserError
from metaopt.base.process import World
from studies.output import PRETRAINED, ROOT

TASKS = 32
STEPS = (1, 10, 20, 50, 100)
UNSEEN = {
    "general": "{of: pictures, hidden: 60-30}",
    "lora": "{width: 96, rank: 8, unseen: true, shifts: test}",
    "factorised": "{size: 32, rank: 5, from_condition: 1000}",
    "attention": "{width: 32, heads: 4, unseen: true}",
}
"""Options of the test tasks, by the first part of a name; no configuration has them."""


def results(folder: Path) -> dict[str, Any]:
    """What an evaluation wrote."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def figures_of(folder: Path, name: str, steps: Iterable[int]) -> dict[str, Any]:
    """Figures of an optimizer on unseen tasks, as a checkpoint carries them (``figures.Unseen``).

    Args:
        folder: of the evaluation.
        name: of the optimizer in it.
        steps: the inner steps that are shown.
    """
    found = results(folder)
    one = found["optimizers"][name]
    with (folder / "curves.csv").open(encoding="utf-8", newline="") as file:
        curve = [row for row in csv.DictReader(file) if row["optimizer"] == name]
    return {
        "tasks": found["tasks"],
        "task_seed": found["task_seed"],
        "task": found["config"]["task"]["options"],
        # Of a loss that has no known least one.
        "least_loss_mean": 0.0,
        "loss_geomean_above_least": {
            str(step): {
                "geomean": one["loss_geomean"][step],
                "ci95": [float(curve[step]["low"]), float(curve[step]["high"])],
            }
            for step in steps
        },
        "diverged": one["diverged"],
        "teleport": one["teleport"],
    }


def ship(name: str) -> Path:
    """Evaluate a run, and write its checkpoint with the figures.

    Args:
        name: of the run, and of its configuration.

    Raises:
        UserError: if there is no such run, or no test tasks of its family are known.
    """
    source, family = ROOT / "runs" / name / "optimizer.safetensors", name.partition("_")[0]
    if family not in UNSEEN:
        raise UserError(f"NAME: found {name}, expected one that begins with {', '.join(UNSEEN)}")
    if not source.exists():
        raise UserError(f"{source}: no such file: python train_meta.py --config {name}.yaml")
    content = checkpoint.read(source)
    folder = ROOT / "runs" / "shipping" / name
    task = content.config["task"]
    given = [f"tasks={TASKS}", f"steps={STEPS[-1]}", "baselines=[]"]
    given += [f"task.family={task['family']}", f"task.options={UNSEEN[family]}"]
    command = [sys.executable, str(ROOT / "eval_meta.py"), "--checkpoints", str(source)]
    command += [word for one in given for word in ("--set", one)]
    subprocess.run([*command, "--out", str(folder)], check=True, cwd=ROOT)
    (label,) = results(folder)["optimizers"]
    content.validation["test"] = {family: figures_of(folder, label, STEPS)}
    path = PRETRAINED / f"{name}.safetensors"
    checkpoint.write(path, replace(content, licence=LICENCE))
    return path


def main(world: World) -> None:
    """Ship each run that is named."""
    parser = argparse.ArgumentParser(description="Put runs among what ships, with figures.")
    parser.add_argument("names", nargs="+", metavar="NAME", help="of runs and configurations")
    for name in parser.parse_args().names:
        print(ship(name))


if __name__ == "__main__":
    cli.run(main)
