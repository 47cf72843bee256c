"""``python -m studies.theory``: when teleports help, by exact numbers.

    (a) the bound over the whole orbit, beside plain SGD, T = 10 to 100,000
    (b) Newton's direction at the steepest point of a level set: quadratic, at one rate
    (c) when one teleport is enough: Booth's function, not Rosenbrock's
    (d) strongly convex losses: the worst case stays
    (e) Rosenbrock and Booth with rotations, paths on level sets
    (f) points beside a curved minimum
    The page: docs/results/theory.md

Options:
    --write-page [FILE]   write the tables into docs/results/theory.md, all figures into
                          theory.json and the picture beside it
    --only a,b,..         only these parts
    --out DIR             where figures are kept as they are found, for a study that was stopped;
                          default runs/theory
    --smoke               tiny sizes, which show that everything works

Three minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies import pool
from studies.output import DOCS, ROOT, Page
from studies.parts import Part, letters
from studies.theory import bound, convex, displacement, enough, newton, page, paths
from studies.theory.figure import figure

PAGE = Page(DOCS / "theory.md", "theory tables", "theory")


PARTS: dict[str, Part] = {
    "a": Part(bound.part, bound.FULL, bound.SMOKE),
    "b": Part(newton.part, newton.FULL, newton.SMOKE),
    "c": Part(enough.part, enough.FULL, enough.SMOKE),
    "d": Part(convex.part, convex.FULL, convex.SMOKE),
    "e": Part(paths.part, paths.FULL, paths.SMOKE),
    "f": Part(displacement.part, displacement.FULL, displacement.SMOKE),
}


def found(letter: str, smoke: bool, out: Path) -> dict[str, Any]:
    """A part, run or read."""
    part = PARTS[letter]
    size = part.smoke if smoke else part.full
    return part.found(letter, size, out)


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="When teleports help, by exact numbers.")
    parser.add_argument("--only", type=letters(PARTS), default=list(PARTS), metavar="a,b,..")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/theory")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    arguments = PAGE.parse(parser)
    if arguments.write_page is not None and arguments.only != list(PARTS):
        raise UserError("--only: the page has all parts; leave one of --only, --write-page out")
    out = arguments.out or ROOT / "runs" / "theory"
    make_folder(out)
    with pool.alone(out):
        parts = {one: found(one, arguments.smoke, out) for one in arguments.only}
    PAGE.tell(arguments, page.text(parts), parts, figure(parts))


if __name__ == "__main__":
    cli.run(main)
