"""What ends a script other than success: mistakes of the user's, signals, lost processes."""

import torch

LONGEST_LINE = 600


class UserError(ValueError):
    """The message is one line: the file, the field, what was found and what would be right.

    Args:
        message: shown in one line and without its middle, where what it quotes is not so.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        if len(shown) > LONGEST_LINE:
            shown = f"{shown[: LONGEST_LINE // 2]} ... {shown[-LONGEST_LINE // 2 :]}"
        super().__init__(shown)


class MisfitError(ValueError):
    """An optimizer does not fit the tasks or the network that it is to work on."""


class StoppedError(Exception):
    """A signal ended a run after its state was saved.

    Args:
        number: of the signal; the exit status is 128 + number.
        message: one line for the user.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class ProcessLostError(RuntimeError):
    """Another process of the run is gone; the message is one line for the user."""


class WriteError(OSError):
    """A file of results cannot be written: a full disk, a folder that is read-only now.

    Args:
        number: of the error, ``errno``.
        reason: one line for the user.
        path: of the file or folder.
    """

    def __init__(self, number: int | None, reason: str, path: str) -> None:
        super().__init__(number, reason, path)

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short; of torch's processors' allocator only the text says so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)
