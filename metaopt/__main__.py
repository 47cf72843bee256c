"""All commands under one name: ``metaopt train | eval | show | fields``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from metaopt import cli, commands, config_table, show
from metaopt.distributed import World

COMMANDS: dict[str, tuple[Callable[[World, Sequence[str], str], None], str]] = {
    "train": (commands.train, "meta-train a learned optimizer, as train_meta.py does"),
    "eval": (commands.evaluate, "compare optimizers on unseen tasks, as eval_meta.py does"),
    "show": (show.main, "print what a learned optimizer is"),
    "fields": (config_table.main, "print the table of all configuration fields"),
}


def main(world: World) -> None:
    """Read which command is meant, and do it.

    Args:
        world: the processes that do it.
    """
    told = "; ".join(f"{name}: {text}" for name, (_, text) in COMMANDS.items())
    parser = cli.plain_parser("Learned optimizers that move along symmetries.", prog="metaopt")
    parser.add_argument("command", choices=COMMANDS, help=f"{told}; each has a --help of its own")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    found = parser.parse_args()
    command, _ = COMMANDS[found.command]
    command(world, found.arguments, f"metaopt {found.command}")


def run() -> NoReturn:
    """The console script ``metaopt``."""
    cli.run(main)


if __name__ == "__main__":
    run()
