"""What all commands share: arguments, devices and exit statuses.

The exit status is 0 on success, 2 for a mistake of the user's (one line on stderr), 130 on Ctrl-C,
143 on SIGTERM and 1 otherwise.
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
    """An ``ArgumentParser`` that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see --help")


def plain_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser without options.

    Args:
        description: what the command does.
        prog: how the command is called, if not by the name of its file.
    """
    return _Parser(description=description, prog=prog)


def parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options of training and evaluation: ``--set``, ``--out``, ``--device``."""
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
    """The device that ``--device`` names: auto, cpu, cuda or cuda:N.

    Args:
        name: as the user wrote it.
        world: the processes of the run; those on one machine take a CUDA device each.

    Raises:
        UserError: if the machine has no such device, or too few for its processes.
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
    """Call ``main`` and exit with the status that its outcome has.

    Under torchrun with N processes, only one line is printed for all of them.

    Args:
        main: the command; it is given the processes of the run.
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
