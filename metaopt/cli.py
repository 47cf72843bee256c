"""What both scripts share: arguments, devices and exit statuses.

0 success, 2 a mistake of the user's (one line), 130 Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from metaopt.errors import UserError


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see --help")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that both scripts have."""
    made = _Parser(description=description)
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key.sub=value",
        dest="overrides",
        help="override a field of the configuration; may be repeated",
    )
    made.add_argument("--out", metavar="DIR", help="where the results go")
    made.add_argument(
        "--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N"
    )
    return made


def device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N; raises ``UserError`` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or index.isdigit() != bool(colon) or name.startswith("cpu:"):
        raise UserError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device: found {name!r}, but this machine has {torch.cuda.device_count()} CUDA "
            f"devices; use --device cpu"
        )
    return torch.device(name)


def run(main: Callable[[], None]) -> NoReturn:
    """Call ``main`` and leave with the exit status of what happened."""
    try:
        main()
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
