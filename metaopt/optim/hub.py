"""Where a learned optimizer lies: a file, a folder in the layout of Hugging Face, or the hub.

    model.safetensors    the checkpoint (``checkpoint``), whole: it is all that loading needs
    config.json          the same configuration, for the hub; if it is there it must agree
    README.md            the model card, with the figures of the checkpoint

``huggingface_hub`` (the extra ``hub``) is imported where a text names nothing here and reads as
``owner/name``, and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path

from metaopt._version import __version__
from metaopt.base import checkpoint, files
from metaopt.base.checkpoint import Checkpoint, CheckpointError
from metaopt.base.errors import UserError
from metaopt.optim.card import card

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_HUB_ID = re.compile(r"(?P<owner>\w[\w.-]*)/\w[\w.-]*")


def write(folder: Path, content: Checkpoint) -> None:
    """Write a checkpoint as a folder.

    At every moment the folder holds no rule, the old one or the new one: all files are on the disk
    before the first is replaced, and the old ``config.json`` goes before the new model comes.

    Raises:
        UserError: where that is not possible; one line.
    """
    text = card(content, str(folder))
    described = {
        "format": checkpoint.FORMAT,
        "format_version": checkpoint.FORMAT_VERSION,
        "library_name": "metaopt",
        "metaopt_version": __version__,
        "config": content.config,
    }
    contents = {
        folder / MODEL_FILE: checkpoint.encoded(content, str(folder)),
        folder / CONFIG_FILE: json.dumps(described, indent=1).encode(),
        folder / CARD_FILE: text.encode(),
    }
    try:
        with files.beside(contents) as written:
            (folder / CONFIG_FILE).unlink(missing_ok=True)
            for temporary, path in written:
                os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be written there ({error.strerror})") from None


def read(source: str | Path) -> tuple[Path, Checkpoint]:
    """The file that a source stands for, and what it holds.

    Args:
        source: a file; a folder; or, as text and where neither is here, a hub id ``owner/name``.

    Raises:
        CheckpointError: one line that says what is wrong with it.
    """
    path = Path(source)
    if not path.exists() and isinstance(source, str) and _is_hub_id(source):
        path = _downloaded(source)
    if not path.is_dir():
        return path, checkpoint.read(path)
    if not (path / MODEL_FILE).is_file():
        raise CheckpointError(
            f"{path / MODEL_FILE}: no such file; expected a folder that save_pretrained wrote, or "
            f"the path of a file (a run's is optimizer.safetensors)"
        )
    content = checkpoint.read(path / MODEL_FILE)
    _require_agreement(path / CONFIG_FILE, content)
    return path / MODEL_FILE, content


def _require_agreement(path: Path, content: Checkpoint) -> None:
    """Raise ``CheckpointError`` where a ``config.json`` is of another rule than the model."""
    if not path.is_file():
        return
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        described = None
    found = described.get("config") if isinstance(described, dict) else None
    if found != content.config:
        raise CheckpointError(
            f"{path}: field config: differs from the one in {MODEL_FILE}; remove the file, or "
            f"write both again with save_pretrained"
        )


def _is_hub_id(source: str) -> bool:
    """Whether a text that names nothing here is meant for the hub, and not a mistyped path."""
    matched = _HUB_ID.fullmatch(source)
    return (
        matched is not None
        and not source.endswith(".safetensors")
        and not Path(matched["owner"]).exists()
    )


def _downloaded(hub_id: str) -> Path:
    """The folder of a hub id, in the cache of ``huggingface_hub``."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"{hub_id}: no such file or folder; as the id of a Hugging Face repository it needs "
            f"huggingface_hub: pip install 'metaopt[hub]'"
        ) from None
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=[MODEL_FILE, CONFIG_FILE]))
    # The hub's client raises errors of its own, of its HTTP library and of the system; whatever it
    # is, it means this.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{hub_id}: no such file or folder, and the Hugging Face hub gave none: "
            f"{type(error).__name__}: {reason:.200}"
        ) from None
