"""All commands under one name: ``metaopt train | eval | show | fields``.

``train_meta.py`` and ``eval_meta.py`` of the repository run the first two. Only these import
TensorBoard, so that the other commands start quickly, and work if it is not installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from metaopt._version import __version__
from metaopt.base import cli, config, shipped
from metaopt.base.began import BEGAN
from metaopt.base.errors import UserError
from metaopt.base.field_table import field_table
from metaopt.base.process import World
from metaopt.base.provenance import made_by
from metaopt.evaluation.config import EvalConfig
from metaopt.meta.config import TrainConfig
from metaopt.meta.torch_profile import WARM_UP
from metaopt.optim import hub, show

_CONFIG = "a path, or the name of a shipped one, e.g. coordinate_update_tele"


def train(world: World, given: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Read the configuration, meta-train, and print the validation table and the result's path.

    Args:
        world: the processes of the run, which share each meta-batch.
        given: the command-line arguments; None for those of this process.
        prog: how the command is called, if not by the name of its file.
    """
    from metaopt.meta.run import Run

    parser = cli.parser("Meta-train a learned optimizer.", prog)
    parser.add_argument("--config", required=True, help=_CONFIG)
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run")
    parser.add_argument(
        "--profile",
        type=cli.positive,
        metavar="N",
        help=f"trace N outer steps, after {WARM_UP} to warm up, into profile/ of the results; "
        "TensorBoard and ui.perfetto.dev open it",
    )
    arguments = parser.parse_args(given)
    settings = config.load(TrainConfig, arguments.config, arguments.overrides)
    folder = Path(arguments.out) if arguments.out else Path("runs") / settings.name
    device = cli.device(arguments.device, world)
    program = ["python", "train_meta.py"] if prog is None else prog.split()
    made = made_by(program, arguments.config, arguments.overrides) if world.first else None
    try:
        run = Run(settings, folder, device, BEGAN, world, made)
    except UserError as error:
        raise UserError(f"{arguments.config}: {error}") from None
    world.say(run.execute(arguments.resume, arguments.profile))


def evaluate(world: World, given: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluate learned optimizers and baselines, write the results, and print the table.

    Args:
        world: the processes of the run, which share the tasks.
        given: the command-line arguments; None for those of this process.
        prog: how the command is called, if not by the name of its file.
    """
    from metaopt.evaluation.evaluate import execute

    parser = cli.parser("Compare learned and hand-made optimizers on unseen tasks.", prog)
    parser.add_argument(
        "--config", default="eval.yaml", help="a path, or the name of a shipped one"
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="PATH",
        help="learned optimizers: files, folders, runs, or names of shipped ones; by default all "
        "that are shipped and those of runs/",
    )
    arguments = parser.parse_args(given)
    settings = config.load(EvalConfig, arguments.config, arguments.overrides)
    named = arguments.checkpoints is not None
    if named:
        paths = [hub.located(path) for path in arguments.checkpoints]
    else:
        paths = [
            *shipped.optimizers(),
            *sorted(Path("runs").glob("*/optimizer.safetensors")),
        ]
    folder = Path(arguments.out) if arguments.out else Path("runs/eval")
    device = cli.device(arguments.device, world)
    world.say(execute(settings, paths, folder, device, world, required=named))


def tables() -> str:
    """The fields of both configurations, as ``metaopt fields`` prints them."""
    scripts = (("train_meta.py", TrainConfig), ("eval_meta.py", EvalConfig))
    return "\n\n".join(f"`{name}`\n\n{field_table(fields)}" for name, fields in scripts)


def fields(world: World, given: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print the fields of both configurations, with types, defaults and meanings.

    Args:
        world: the processes of the run; the first one prints.
        given: the command-line arguments, of which there must be none; None for this process's.
        prog: how the command is called, if not by the name of its file.
    """
    cli.plain_parser("Print the table of all configuration fields.", prog).parse_args(given)
    world.say(tables())


COMMANDS: dict[str, tuple[Callable[[World, Sequence[str], str], None], str]] = {
    "train": (train, "meta-train a learned optimizer, as train_meta.py does"),
    "eval": (evaluate, "compare optimizers on unseen tasks, as eval_meta.py does"),
    "show": (show.main, "print what a learned optimizer is, or the symmetries of a model"),
    "fields": (fields, "print the table of all configuration fields"),
}


def main(world: World) -> None:
    """Run the command that the first argument names.

    Args:
        world: the processes of the run.
    """
    told = "; ".join(f"{name}: {text}" for name, (_, text) in COMMANDS.items())
    parser = cli.plain_parser("Learned optimizers that move along symmetries.", prog="metaopt")
    parser.add_argument("--version", action="version", version=f"metaopt {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=f"{told}; each has a --help of its own")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    found = parser.parse_args()
    command, _ = COMMANDS[found.command]
    command(world, found.arguments, f"metaopt {found.command}")


def run() -> NoReturn:
    """Run ``metaopt`` as a console script."""
    cli.run(main)


if __name__ == "__main__":
    run()
