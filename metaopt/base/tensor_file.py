"""Reading a safetensors file whole; no code from the file is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors
from torch import Tensor

from metaopt.base.errors import one_line


def read_whole(
    path: Path, error: Callable[[str], Exception], again: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata.

    Args:
        path: the file.
        error: makes what is raised, of a message, if the file is missing, damaged or unreadable.
        again: what to do about a damaged one.
    """
    if not path.is_file():
        raise error(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except safetensors.SafetensorError as damage:
        found = one_line(str(damage), 200)
        raise error(f"{path}: not a whole safetensors file ({found}); {again}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
