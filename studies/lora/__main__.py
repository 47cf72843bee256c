"""Optimizers of LoRA factors side by side, each tuned for each column; and why one is ahead.

    python -m studies.lora [--smoke] [--rules NAME ...] [--only NAME ...] [--seeds N]
                           [--width N] [--hidden N] [--rank N] [--shift NAME] [--out DIR]
                           [--why] [--json FILE] [--write-page]

Test tasks: a network that was pre-trained on digits is adapted by factors of low rank to digits
that are turned and inverted. All hand-made optimizers are swept, and the best rate is taken for
each column on these very tasks; learned rules are not tuned. ``--why`` follows learned rules
instead: condition numbers, cosines with directions, what is left when teleports stop. What the
folder (``runs/lora`` by default) already has is not run again, so that a stopped command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.files import make_folder
from metaopt.base.process import World
from studies import pool
from studies.lora import page, why, why_page
from studies.lora.contenders import Contender, hand_made, learned, package_version, packaged
from studies.lora.kept import Runs
from studies.lora.result import Size, table
from studies.lora.runs import Tasks
from studies.lora.task import SHIFTS, Setting
from studies.output import DOCS, PRETRAINED, ROOT, Page

PAGE = Page(DOCS / "lora.md", "lora tables", "lora")
WHY = Page(DOCS / "lora.md", "lora why", "lora_why")
RULES = ("lora_update_tele", "lora_update", "lora_lr_tele")
SMOKE = Size(seeds=2, columns=(2, 4), horizons=(3,), marks=(0, 1, 2, 4), timed=2, points=2)
SMALL = Setting(width=8, rank=2, batch=8, steps=5)


def chosen(
    rules: Sequence[str] | None, only: Sequence[str] | None, world: World
) -> list[Contender]:
    """Who takes part.

    Args:
        rules: learned rules; None for those of ``RULES`` that are shipped.
        only: names of the contenders that stay; None for all.
        world: says who is left out.

    Raises:
        UserError: if there is no contender of a name.
    """
    if rules is None:
        rules = [name for name in RULES if (PRETRAINED / f"{name}.safetensors").exists()]
    found = [*learned(rules), *hand_made()]
    if package_version() is None:
        world.say("left out: what pytorch-optimizer has; pip install 'metaopt-symmetry[studies]'")
    else:
        found += packaged()
    if only is None:
        return found
    names = [contender.name for contender in found]
    for name in only:
        if name not in names:
            raise UserError(f"--only: found {name!r}, expected some of {'; '.join(names)}")
    return [contender for contender in found if contender.name in only]


def _arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    own = Setting()
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in seconds")
    parser.add_argument("--why", action="store_true", help="follow learned rules instead")
    parser.add_argument("--rules", nargs="*", metavar="NAME", help="learned rules, or files")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders alone")
    parser.add_argument("--seeds", type=int, help=f"default {Size().seeds}")
    parser.add_argument("--width", type=int, help=f"default {own.width}")
    parser.add_argument("--hidden", type=int, help=f"hidden layers, default {own.hidden}")
    parser.add_argument("--rank", type=int, help=f"default {own.rank}")
    parser.add_argument("--shift", help=f"default {own.shift}; one of {', '.join(SHIFTS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/lora")
    return (WHY if "--why" in sys.argv else PAGE).parse(parser)


def main(world: World) -> None:
    """Run, print, write the page."""
    arguments = _arguments(argparse.ArgumentParser(description="Optimizers of LoRA factors."))
    changed = {
        name: value
        for name in ("width", "hidden", "rank", "shift")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(f"--seeds: found {arguments.seeds}, expected at least 1")
    setting = replace(SMALL if arguments.smoke else Setting(), **changed)
    size = SMOKE if arguments.smoke else Size()
    size = replace(size, seeds=arguments.seeds or size.seeds)
    contenders = [
        replace(contender, grid=contender.grid[: size.points])
        for contender in chosen(arguments.rules, arguments.only, world)
    ]
    if arguments.write_page is not None and (package_version() is None or arguments.only):
        raise UserError("--write-page: the page has all contenders; see --only, and studies' extra")
    out = arguments.out or ROOT / "runs" / "lora"
    make_folder(out)
    torch.set_num_threads(1)
    with pool.alone(out):
        tasks = Tasks.of(setting, size.seeds)
        about = {
            "setting": asdict(setting),
            "sizes": setting.sizes,
            "versions": {"pytorch-optimizer": package_version(), "torch": torch.__version__},
        }
        if arguments.why:
            followed = why.WhySize.smoke() if arguments.smoke else why.WhySize()
            found = about | why.followed(tasks, [c for c in contenders if c.learned], followed, out)
            WHY.tell(arguments, why_page.text(found), found, why_page.figure(found))
        else:
            runs = Runs(out, tasks, size.marks)
            found = _as_json(about | table(runs, contenders, size))
            PAGE.tell(arguments, page.text(found), found, page.figure(found))


def _as_json(found: dict[str, Any]) -> dict[str, Any]:
    """With the keys that JSON has, so that a page is made of the file beside it."""
    return json.loads(json.dumps(found))


if __name__ == "__main__":
    cli.run(main)
