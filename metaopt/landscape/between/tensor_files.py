"""Files of tensors with a name of their format: safetensors, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from metaopt.base.files import write_atomically
from metaopt.base.tensor_file import read_whole

VERSION = "1"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, str]
) -> None:
    """Write tensors, whole or not at all.

    Args:
        path: the file.
        tensors: the tensors by name.
        kind: what the file holds, as "metaopt curve".
        about: further metadata.

    Raises:
        WriteError: if it cannot be written; the old file is then unchanged.
    """
    # Each tensor whole and alone: safetensors refuses those that share memory.
    content = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    metadata = {"format": kind, "format_version": VERSION, **about}
    write_atomically(path, safetensors.torch.save(content, metadata))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata that ``write_tensors`` wrote; no code from the file is run.

    Args:
        path: the file.
        kind: what it must hold.

    Raises:
        ValueError: if the file is missing, damaged, unreadable, or holds something else.
    """
    tensors, metadata = read_whole(path, ValueError, "save it again")
    if (metadata.get("format"), metadata.get("format_version")) != (kind, VERSION):
        raise ValueError(
            f"{path}: expected a file of format {kind!r} {VERSION}, found "
            f"{metadata.get('format')!r} {metadata.get('format_version')}"
        )
    return tensors, metadata
