"""The landscape between trained networks: what joins them, and what an ensemble gains by it.

    python -m studies.connectivity [--smoke] [--seeds N] [--out DIR] [--fashion DIR] [--json FILE]
                                   [--write-page]

Pairs of independently trained networks: the barrier of the chord, after their alignment by
continuous symmetries, by permutations, by all symmetries, and along a trained bend; and FGE beside
independent networks, snapshots and SWA at equal budgets. What the folder (``runs/connectivity`` by
default) already has is not run again, so that a stopped command goes on; Ctrl-C writes the page of
what there is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies import pool
from studies.connectivity.page import figure, text
from studies.connectivity.plan import SMOKE, Size, study
from studies.images import FASHION, data_sets
from studies.output import DOCS, ROOT, Page

PAGE = Page(DOCS / "connectivity.md", "connectivity", "connectivity")


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="What lies between trained networks.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/connectivity")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--seeds", type=int, metavar="N", help="pairs, and seeds of ensembles")
    parser.add_argument("--fashion", type=Path, default=FASHION, metavar="DIR", help="IDX files")
    arguments = PAGE.parse(parser)
    size = SMOKE if arguments.smoke else Size()
    if arguments.seeds is not None:
        if arguments.seeds < 2:
            raise UserError(f"--seeds: found {arguments.seeds}, expected at least 2")
        size = replace(size, seeds=arguments.seeds)
    sets, missing = data_sets(arguments.fashion, arguments.smoke)
    out = arguments.out or ROOT / "runs" / "connectivity"
    make_folder(out)
    with pool.alone(out):
        found = study(sets, missing, size, out)
    found = json.loads(json.dumps(found))
    PAGE.tell(arguments, text(found), found, figure(found))


if __name__ == "__main__":
    cli.run(main)
