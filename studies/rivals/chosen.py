"""What a command names: tasks, contenders, sizes, and where the pieces are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.shipped import DEFAULT
from studies.images import FASHION
from studies.output import ROOT
from studies.rivals import contenders, tasks
from studies.rivals.contenders import Contender
from studies.rivals.plan import SMOKE, Size
from studies.rivals.tasks import Task

RULES = (DEFAULT,)


@dataclass(frozen=True)
class Chosen:
    """All that a command names."""

    tasks: list[Task]
    contenders: list[Contender]
    size: Size
    out: Path
    missing: list[str]  # a line for each that is not there


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``read`` reads."""
    own = Size()
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, all tasks")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="default all")
    parser.add_argument("--rules", nargs="*", default=RULES, metavar="NAME", help="learned rules")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders alone")
    parser.add_argument("--seeds", type=cli.positive, metavar="N", help=f"default {own.seeds}")
    parser.add_argument(
        "--steps",
        type=cli.positive,
        nargs="+",
        metavar="N",
        help=f"the columns, default {' '.join(map(str, own.columns))}",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/rivals")
    parser.add_argument("--fashion", type=Path, default=FASHION, metavar="DIR")


def named(option: str, names: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """The names that an option leaves, in the order of what there is.

    Raises:
        UserError: if there is none of a name.
    """
    for name in names or ():
        if name not in there:
            raise UserError(f"{option}: found {name!r}, expected some of {'; '.join(there)}")
    return [name for name in there if names is None or name in names]


def columns(size: Size, steps: Sequence[int]) -> Size:
    """With other columns, and further steps around them for AdamW's cosine."""
    new = tuple(sorted(set(steps)))
    around = {max(1, new[0] // 4), max(1, new[0] // 2), 2 * new[-1]}
    between = {round((a * b) ** 0.5) for a, b in pairwise(new)}
    return replace(size, columns=new, between=tuple(sorted((around | between) - set(new))))


def read(arguments: argparse.Namespace) -> Chosen:
    """What the arguments of ``add_choices`` name.

    Raises:
        UserError: if a task or a contender is not there.
    """
    size = SMOKE if arguments.smoke else Size()
    size = replace(size, seeds=arguments.seeds or size.seeds)
    if arguments.steps is not None:
        size = columns(size, arguments.steps)
    there, missing = tasks.found(arguments.fashion)
    everyone, left_out = contenders.everyone(arguments.rules)
    by_name = {contender.name: contender for contender in everyone}
    return Chosen(
        [there[name] for name in named("--tasks", arguments.tasks, list(there))],
        [by_name[name] for name in named("--only", arguments.only, list(by_name))],
        size,
        (arguments.out or ROOT / "runs" / "rivals").resolve(),
        missing + left_out,
    )
