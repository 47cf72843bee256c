"""The worked example on digits in one command: meta-train, evaluate, tell, ship.

    python -m studies.digits [--out DIR] [--smoke] [--json FILE] [--write-page] [--ship]

Meta-trains ``configs/digits_update_tele.yaml``, and the same without its teleporter; evaluates both
by ``configs/eval_digits.yaml`` (images that no meta-training saw, a width that none had, hand-made
optimizers tuned for the step that they are named after), and once more from unbalanced initial
weights: other points of the same orbits. Everything runs through ``train_meta.py --resume`` and
``eval_meta.py``, one after the other, so that a command that was stopped goes on where it was.
``--write-page`` puts the tables into ``docs/results/digits.md``, and ``--ship`` the pair into
``checkpoints/pretrained/``, with command, commit and figures.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaopt.base import checkpoint, cli
from metaopt.base.checkpoint import LICENCE
from metaopt.base.errors import UserError
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from studies.output import DOCS, PRETRAINED, ROOT, Page, commit, in_repository
from studies.shipping import figures_of, results

PAGE = Page(DOCS / "digits.md", "digits tables", "digits")
PAIR = "digits_update_tele"
STEPS = (10, 20, 100, 1000)
ALONE = (
    "label=layer LSTM(update)",
    "rules.teleport=null",
    "teleporter=null",
)
UNBALANCED = (
    "task.options={width: 48, unseen: true, unbalanced: 1.5}",
    "baselines=[Adam@100,Adam]",
)
SMALL_RUN = (
    "meta.outer_steps=2",
    "meta.steps=6",
    "meta.unroll=3",
    "meta.batch=2",
    "validation.tasks=2",
    "task.more=null",
)
SMALL_EVALUATION = ("tasks=3", "steps=6", "tuning.tasks=2", "baselines=[Adam@3,Adam]")


def training(folder: Path, teleports: bool, smoke: bool) -> tuple[Path, list[str]]:
    """Where a run goes, and its command."""
    name = PAIR if teleports else "digits_update"
    overrides = [] if teleports else [f"name={name}", *ALONE]
    overrides += SMALL_RUN if smoke else ()
    out = folder / name
    return out, _command("train_meta.py", f"{PAIR}.yaml", overrides, out)


def evaluation(
    folder: Path, checkpoints: list[Path], overrides: tuple[str, ...], smoke: bool
) -> list[str]:
    """The command of an evaluation."""
    small = SMALL_EVALUATION if smoke else ()
    command = _command("eval_meta.py", "eval_digits.yaml", [*overrides, *small], folder)
    return [*command, "--checkpoints", *map(str, checkpoints)]


def _command(script: str, config: str, overrides: list[str], out: Path) -> list[str]:
    sets = [word for override in overrides for word in ("--set", override)]
    return ["python", script, "--config", config, *sets, "--out", str(out)]


def run(command: list[str]) -> None:
    """In a process of its own; raises ``UserError`` where it fails."""
    print(shlex.join(command), flush=True)
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(command)} ended with status {done.returncode}")


def _shown(found: dict[str, Any]) -> list[int]:
    """Inner steps of the tables."""
    return sorted({step for step in STEPS if step <= found["steps"]} | {found["steps"]})


def tables(found: dict[str, Any]) -> str:
    """Losses by inner step; ratios of learned optimizers to hand-made ones, and of pairs to others.

    Args:
        found: the content of ``results.json``.
    """
    steps, last = _shown(found), found["steps"]
    lines = [
        [
            name,
            *(f"{one['loss_geomean'][step]:.3g}" for step in steps),
            f"{one['loss_q95'][last]:.3g}",
            str(one["diverged"]),
        ]
        for name, one in found["optimizers"].items()
    ]
    header = ["test loss at step", *map(str, steps), f"95 % quantile at {last}", "diverged"]
    ratios = [
        [pair["a"], pair["b"], str(pair["step"]), _ratio(pair), f"{100 * pair['win_rate']:.0f} %"]
        for pair in found["pairs"]
        if pair["step"] in (100, last) and _is_compared(found, pair)
    ]
    of_ratios = markdown_table(["ratio of", "to", "at step", "95 % interval", "wins"], ratios)
    return f"{markdown_table(header, lines)}\n\n{of_ratios}"


def _is_compared(found: dict[str, Any], pair: dict[str, Any]) -> bool:
    """Learned optimizers with those tuned for the step, and the pair with its updates alone."""
    a, b = pair["a"], pair["b"]
    one, other = (found["optimizers"][name] for name in (a, b))
    if one["kind"] != "learned":
        return False
    if other["kind"] == "learned":
        return a != b and b == a.replace("(update,tele)", "(update)")
    return bool(other["origin"]["tuned_for_step"] == pair["step"])


def _ratio(pair: dict[str, Any]) -> str:
    low, high = pair["ci95"]
    return f"{pair['ratio']:.3f} ({low:.3f} to {high:.3f})"


def ship(evaluated: Path, run_folder: Path, command: list[str], folder: Path) -> Path:
    """The checkpoint of a run, with command, commit and figures.

    Args:
        evaluated: the folder of an evaluation that it took part in.
        run_folder: of the run.
        command: that made it.
        folder: where it goes.

    Returns:
        The file written.
    """
    found, source = results(evaluated), run_folder / "optimizer.safetensors"
    name = next(
        name
        for name, one in found["optimizers"].items()
        if one["origin"].get("checkpoint") == str(source)
    )
    content = checkpoint.read(source)
    # Without --out, which is a folder of this machine.
    content.training.update({"commit": commit(), "command": shlex.join(command[:-2])})
    content.validation["test"] = {"digits": figures_of(evaluated, name, _shown(found))}
    path = folder / f"{PAIR}.safetensors"
    checkpoint.write(path, replace(content, licence=LICENCE))
    return path


def _shorten(found: dict[str, Any]) -> None:
    """Leave the losses at the steps of the tables alone, and no path of this machine."""
    for one in found["optimizers"].values():
        one["origin"] = in_repository(one["origin"])
        for key in [key for key in one if key.startswith("loss_")]:
            one[key] = {step: one[key][step] for step in _shown(found)}


def main(world: World) -> None:
    """Train, evaluate, print, write."""
    parser = argparse.ArgumentParser(description="The worked example on digits.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/digits")
    parser.add_argument("--smoke", action="store_true", help="all of it in tiny sizes")
    parser.add_argument("--ship", action="store_true", help="into checkpoints/pretrained/")
    arguments = PAGE.parse(parser)
    smoke = arguments.smoke
    default = ROOT / "runs" / ("digits_smoke" if smoke else "digits")
    folder = (arguments.out or default).resolve()
    if smoke and arguments.ship:
        raise UserError("--ship: what --smoke finds means nothing; leave one out")
    runs = [training(folder, pair, smoke) for pair in (True, False)]
    for _, command in runs:
        run([*command, "--resume"])
    files = [out / "optimizer.safetensors" for out, _ in runs]
    balanced, unbalanced = folder / "balanced", folder / "unbalanced"
    run(evaluation(balanced, files, (), smoke))
    run(evaluation(unbalanced, files, UNBALANCED, smoke))
    found = {folder.name: results(folder) for folder in (balanced, unbalanced)}
    text = (
        f"{tables(found['balanced'])}\n\nFrom unbalanced initial weights (each hidden unit moved "
        f"along its orbit):\n\n{tables(found['unbalanced'])}"
    )
    for one in found.values():
        _shorten(one)
    PAGE.tell(arguments, text, found)
    if arguments.ship:
        print(ship(balanced, *runs[0], PRETRAINED))


if __name__ == "__main__":
    cli.run(main)
