"""Where SGD goes on an orbit, and what it does there.

    python -m studies.noether [--smoke] [--only a,b,..] [--out DIR] [--fashion DIR] [--json FILE]
                              [--write-page]

a: every row of the table of noise equilibria, reached by long SGD and missed by gradient descent.
b: the factorisation 30-40-30, where SGD sharpens and where it flattens. c: u w x ~ y, decay and
collapse. d: growth of scale-invariant weights, and a small transformer. e: one ``balance`` instead
of a warm-up. f: digits and Fashion-MNIST. ``--only`` runs some of them; what the folder
(``runs/noether`` by default) already has is not run again, so that a stopped command goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies import pool
from studies.noether import equilibria, networks, page, scalar, scale, sharpness, warmup
from studies.noether.figure import figure
from studies.output import DOCS, ROOT, Page
from studies.parts import Part, letters

PAGE = Page(DOCS / "noether.md", "noether tables", "noether")


PARTS: dict[str, Part] = {
    "a": Part(equilibria.part, equilibria.FULL, equilibria.SMOKE),
    "b": Part(sharpness.part, sharpness.FULL, sharpness.SMOKE),
    "c": Part(scalar.part, scalar.FULL, scalar.SMOKE),
    "d": Part(scale.part, scale.FULL, scale.SMOKE),
    "e": Part(warmup.part, warmup.FULL, warmup.SMOKE),
    "f": Part(networks.part, networks.FULL, networks.SMOKE),
}


def found(letter: str, smoke: bool, out: Path, fashion: Path | None) -> dict[str, Any]:
    """A part, run or read."""
    part = PARTS[letter]
    size = part.smoke if smoke else part.full
    if letter == "f" and fashion is not None:
        size = replace(size, fashion=str(fashion))
    return part.found(letter, size, out)


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="Where SGD goes on an orbit.")
    parser.add_argument("--only", type=letters(PARTS), default=list(PARTS), metavar="a,b,..")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/noether")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, under a minute")
    parser.add_argument("--fashion", type=Path, metavar="DIR", help="Fashion-MNIST's IDX files")
    arguments = PAGE.parse(parser)
    if arguments.write_page is not None and arguments.only != list(PARTS):
        raise UserError("--only: the page has all parts; leave one of --only, --write-page out")
    out = arguments.out or ROOT / "runs" / "noether"
    make_folder(out)
    torch.set_num_threads(1)
    with pool.alone(out):
        parts = {one: found(one, arguments.smoke, out, arguments.fashion) for one in arguments.only}
    PAGE.tell(arguments, page.text(parts), parts, figure(parts))


if __name__ == "__main__":
    cli.run(main)
