"""Files that are never half written, and that run no code when they are read.

A learned optimizer is one safetensors file: tensors, and in its header the metadata

    format            "metaopt"
    format_version    "1"
    metaopt_version   the version of the package that wrote it
    config            JSON, the full resolved configuration
    training          JSON, seeds, how far meta-training had gone, what command and commit made it
    validation        JSON, the validation curve at that point, and figures on unseen tasks
    licence           SPDX identifier; empty if whoever made it gave none

The state from which a run resumes is a second file, read with ``weights_only``.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from metaopt._version import __version__
from metaopt.base.errors import UserError, is_out_of_memory
from metaopt.base.files import write_atomically
from metaopt.base.tensor_file import read_whole

FORMAT = "metaopt"
FORMAT_VERSION = "1"
LICENCE = "MIT"
"""The licence of this package and of what it ships; older files without the field have it."""
_JSON_FIELDS = ("config", "training", "validation")
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


class CheckpointError(UserError):
    """A file is not a checkpoint of this package; the message is one line for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        tensors: the parameters by name.
        config: the full configuration as plain data.
        training: seeds, outer step, trajectories, command and commit.
        validation: the figures of the last validation.
        licence: the SPDX identifier of the licence; empty if none was given.
        metaopt_version: the version of the package that wrote it.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    training: dict[str, Any]
    validation: dict[str, Any]
    licence: str = ""
    metaopt_version: str = __version__


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, in the format of this version of the package."""
    write_atomically(path, encoded(checkpoint, str(path)))


def encoded(checkpoint: Checkpoint, source: str) -> bytes:
    """The bytes of a checkpoint file, in the format of this version of the package.

    Args:
        checkpoint: the content.
        source: the name of the file, for errors.
    """
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "metaopt_version": __version__,
        "config": json.dumps(checkpoint.config),
        "training": json.dumps(checkpoint.training),
        "validation": json.dumps(checkpoint.validation),
        "licence": require_licence(checkpoint.licence, source),
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.tensors.items()}
    return _ordered(safetensors.torch.save(tensors, metadata))


def require_licence(licence: str, source: str) -> str:
    """The licence; raises ``CheckpointError`` unless it is an SPDX identifier or empty."""
    if licence and not _SPDX.fullmatch(licence):
        raise CheckpointError(
            f"{source}: field licence: found {licence!r:.60}, expected an SPDX identifier, e.g. MIT"
        )
    return licence


def _ordered(content: bytes) -> bytes:
    """The file with the fields of its header sorted, so that equal content gives equal bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + content[start:]


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: if the file is missing or truncated, or another program or an unknown
            version of this one wrote it.
    """
    path = Path(path)
    tensors, metadata = read_whole(path, CheckpointError, "write it again with metaopt train")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: metadata field format: found {metadata.get('format')!r}, "
            f"expected {FORMAT!r}; the file is of another program"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: metadata field format_version: found {metadata.get('format_version')!r}, "
            f"expected {FORMAT_VERSION!r}; metaopt {metadata.get('metaopt_version', '?')} wrote it"
        )
    parsed = {}
    for field in _JSON_FIELDS:
        try:
            parsed[field] = json.loads(metadata[field])
        except (KeyError, ValueError, RecursionError):
            parsed[field] = None
        if not isinstance(parsed[field], dict):
            raise CheckpointError(
                f"{path}: metadata field {field}: found {metadata.get(field)!r:.60}, "
                f"expected a JSON object"
            )
    return Checkpoint(
        tensors,
        **parsed,
        licence=require_licence(metadata.get("licence", LICENCE), str(path)),
        metaopt_version=metadata.get("metaopt_version", "?"),
    )


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run (plain data and tensors) atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a run; raises ``CheckpointError`` if it is missing or damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path}: not a resume state that can be read: {reason}") from None
    # torch's reader can raise any exception at a damaged file.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        state = None
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: not a resume state; remove it, or start afresh without --resume"
        )
    return state
