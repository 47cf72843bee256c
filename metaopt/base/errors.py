"""The errors that end a script: mistakes of the user's, signals, lost processes, full disks."""

from __future__ import annotations

import reprlib
from typing import Any

import torch

LONGEST_LINE = 600


class _Shortened(reprlib.Repr):
    """Represents values of any size and depth, and stops when enough is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 10
        self.maxstring = self.maxlong = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:
            # Python refuses to write integers of more than some thousand digits.
            return f"a whole number of {x.bit_length()} bits"


_SHORTENED = _Shortened()


def shown(value: Any, limit: int = 60) -> str:
    """A value as errors show it: one line of at most ``limit`` characters."""
    return f"{_SHORTENED.repr(value):.{limit}}"


def one_line(text: str, limit: int = 600) -> str:
    """A text without line breaks, cut off after ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


class UserError(ValueError):
    """A mistake of the user's. The message is one line that a command prints without a traceback.

    It names the file, the field, what was found and what would be right.

    Args:
        message: the message. Line breaks are removed, and the middle of a very long one.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        if len(shown) > LONGEST_LINE:
            shown = f"{shown[: LONGEST_LINE // 2]} ... {shown[-LONGEST_LINE // 2 :]}"
        super().__init__(shown)


class MisfitError(ValueError):
    """An optimizer does not fit the tasks or the network that it is used on."""


class StoppedError(Exception):
    """A signal ended a run after its state was saved.

    Args:
        number: the number of the signal; the exit status is 128 + number.
        message: one line for the user.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class ProcessLostError(RuntimeError):
    """Another process of the run has ended; the message is one line for the user."""


class WriteError(OSError):
    """A file of results cannot be written, e.g. to a full disk or a read-only folder.

    Args:
        number: the system's error number, ``errno``.
        reason: one line for the user.
        path: the file or folder.
    """

    def __init__(self, number: int | None, reason: str, path: str) -> None:
        super().__init__(number, reason, path)

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory; torch on the CPU says so only in its message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)
