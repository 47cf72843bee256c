"""All contenders on one task, in a process of one thread, which ``studies.rivals`` begins.

    python -m studies.rivals.one TASK --out DIR [--smoke] [--rules NAME ...] [--only NAME ...] ..

It takes the arguments of ``studies.rivals``, and keeps each piece as it ends.
"""

from __future__ import annotations

import argparse

import torch

from metaopt.base import cli
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies.rivals.chosen import add_choices, read
from studies.rivals.plan import Runs, folder


def main(world: World) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description="All contenders on one task.")
    add_choices(parser)
    chosen = read(parser.parse_args())
    torch.set_num_threads(1)
    for task in chosen.tasks:
        kept = folder(chosen.out, task)
        make_folder(kept.path)
        for contender in chosen.contenders:
            Runs(task, contender, chosen.size, kept).outcome()


if __name__ == "__main__":
    cli.run(main)
