"""What a user's machine may do to a run and its files, tried out.

    python -m benchmarks.hardening [--smoke] [--only kills|disk|fuzz] [--set field=value ...]
                                   [--out DIR]

    kills    training runs killed with SIGKILL and resumed: they end with the bits of unbroken ones
    disk     full disks and read-only folders: one line, an exit status, and nothing lost
    fuzz     damaged configurations, overrides and files: one line, within bounds of time and memory

What fell short is told in a line each, and its files stay in DIR (a temporary folder, unless it is
given); the exit status is then 1.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.hardening.disk import disk
from benchmarks.hardening.fuzz import fuzz
from benchmarks.hardening.kills import kills
from benchmarks.hardening.settings import Found, Hardening
from metaopt.base import cli, config
from metaopt.base.files import make_folder
from metaopt.base.process import World

SETTINGS = Path(__file__).with_name("hardening.yaml")
PARTS: dict[str, Callable[[Hardening, Path], Found]] = {
    "kills": kills,
    "disk": disk,
    "fuzz": fuzz,
}


def main(world: World) -> None:
    """Try all parts, or one."""
    parser = cli.plain_parser(
        "Kill runs, fill disks, damage files.", prog="python -m benchmarks.hardening"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for files; stays")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="field=value",
        dest="overrides",
        help="override a field of hardening.yaml beside this file; may be repeated",
    )
    arguments = parser.parse_args()
    settings = config.load(Hardening, SETTINGS, arguments.overrides)
    if arguments.smoke:
        settings = settings.model_copy(update=settings.smoke.model_dump())
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="hardening"))
    make_folder(folder)
    chosen = [arguments.only] if arguments.only else list(PARTS)
    found = [PARTS[name](settings, folder / name) for name in chosen]
    for fault in (fault for one in found for fault in one.faults):
        world.say(fault)
    world.say(", ".join(one.summary for one in found))
    if any(one.faults for one in found):
        world.say(f"what fell short: {folder}")
        sys.exit(1)
    if arguments.out is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    cli.run(main)
