"""Teleports by search, measured beside their controls.

    python -m studies.teleport optimizers|generalisation [--smoke] [--seeds N] [--out DIR]
                               [--fashion DIR] [--json FILE] [--write-page]

optimizers: five optimizers with the published recipe, and what of its effect is the reset of their
state, the drift of an inexact action, or the teleport. generalisation: what sharpness and curvature
have to do with the test loss, over 100 runs, and by teleports up and down in each. What the folder
(``runs/teleport`` by default) already has is not run again, so that a stopped command goes on;
Ctrl-C writes the page of what there is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies import pool
from studies.images import FASHION, data_sets
from studies.output import DOCS, ROOT, Page
from studies.teleport import generalisation, generalisation_page, optimizers, optimizers_page


@dataclass(frozen=True)
class Study:
    """One of them."""

    page: Page
    run: Callable[..., dict[str, Any]]
    full: Any
    smoke: Any
    text: Callable[[Mapping[str, Any]], str]
    figure: Callable[[Mapping[str, Any]], bytes]


STUDIES = {
    "optimizers": Study(
        Page(DOCS / "teleport_optimizers.md", "teleport optimizers", "teleport_optimizers"),
        optimizers.study,
        optimizers.Size(),
        optimizers.SMOKE,
        optimizers_page.text,
        optimizers_page.figure,
    ),
    "generalisation": Study(
        Page(DOCS / "teleport_generalisation.md", "teleport generalisation", "teleport_general"),
        generalisation.study,
        generalisation.Size(),
        generalisation.SMOKE,
        generalisation_page.text,
        generalisation_page.figure,
    ),
}


def _arguments() -> tuple[Study, argparse.Namespace]:
    parser = argparse.ArgumentParser(description="Teleports by search, beside their controls.")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/teleport")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each kind")
    parser.add_argument("--fashion", type=Path, default=FASHION, metavar="DIR", help="IDX files")
    # The page of which the flags write depends on the study, which is read before them.
    chosen = STUDIES[parser.parse_known_args()[0].study]
    return chosen, chosen.page.parse(parser)


def main(world: World) -> None:
    """Run, print, write the page."""
    study, arguments = _arguments()
    size = study.smoke if arguments.smoke else study.full
    if arguments.seeds is not None:
        if arguments.seeds < 2:
            raise UserError(f"--seeds: found {arguments.seeds}, expected at least 2")
        size = replace(size, seeds=arguments.seeds)
    sets, missing = data_sets(arguments.fashion, arguments.smoke)
    out = arguments.out or ROOT / "runs" / "teleport"
    make_folder(out)
    with pool.alone(out):
        found = study.run(sets, missing, size, out)
    found = json.loads(json.dumps(found))
    study.page.tell(arguments, study.text(found), found, study.figure(found))


if __name__ == "__main__":
    cli.run(main)
