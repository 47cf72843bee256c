"""What all commands share: arguments, devices and exit statuses.

0 success, 2 a mistake of the user's (one line), 130 Ctrl-C, 143 SIGTERM, 1 anything else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

import torch

from metaopt.base import process
from metaopt.base.allocator import keep_freed_memory
from metaopt.base.errors import (
    ProcessLostError,
    StoppedError,
    UserError,
    WriteError,
    is_out_of_memory,
)
from metaopt.base.process import World


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see --help")


def plain_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser without options; ``prog`` is how the command is called, if not by its file."""
    return _Parser(description=description, prog=prog)


def parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options that training and evaluation have."""
    made = plain_parser(description, prog)
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
        "--device",
        default="auto",
        help="auto (CUDA where there is one), cpu, cuda or cuda:N; under torchrun cuda is a device "
        "for each process",
    )
    return made


def positive(text: str) -> int:
    """The type of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def device(name: str, world: World) -> torch.device:
    """auto, cpu, cuda or cuda:N; raises ``UserError`` where it is not there.

    Args:
        name: as the user gave it.
        world: its processes on one machine take a CUDA device each.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or index.isdigit() != bool(colon) or name.startswith("cpu:"):
        raise UserError(f"--device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device(name)
    found = torch.cuda.device_count()
    if int(index or 0) >= found:
        raise UserError(
            f"--device: found {name!r}, but this machine has {found} CUDA devices; use --device cpu"
        )
    if world.local_size == 1:
        if index:
            # Graphs and streams are made on the current device.
            torch.cuda.set_device(int(index))
        return torch.device(name)
    if index or world.local_size > found:
        raise UserError(
            f"--device: found {name!r} for {world.local_size} processes on a machine with {found} "
            f"CUDA devices; each takes one of its own: use --device cuda with at most {found} "
            f"processes, or --device cpu"
        )
    # nccl and torch's own defaults go to the current device.
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def run(main: Callable[[World], None]) -> NoReturn:
    """Call ``main`` in the world of this process and leave with the exit status of what happened.

    Under torchrun with N processes, one line speaks for all of them.
    """
    keep_freed_memory()
    world = World()
    try:
        world = process.join()
        main(world)
    except UserError as error:
        status, line = 2, str(error)
    except StoppedError as error:
        status, line = 128 + error.number, str(error)
    except (ProcessLostError, WriteError) as error:
        status, line = 1, str(error)
    except KeyboardInterrupt:
        status, line = 130, "interrupted"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status, line = 1, f"out of memory: {error}"
    else:
        world.close()
        world.leave(0)
    world.part(" ".join(line.split()))
    world.leave(status)
