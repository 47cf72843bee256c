"""Where a learned optimizer lies: a file, a folder, a shipped one by its name, or the hub.

A folder is that of a run, whose best is ``optimizer.safetensors``, or one in the layout of Hugging
Face:

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
from metaopt.base import checkpoint, files, shipped
from metaopt.base.checkpoint import Checkpoint, CheckpointError
from metaopt.base.errors import UserError
from metaopt.meta.run_files import BEST_FILE
from metaopt.optim.card import card

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
SHIPPED = "shipped"
"""The origin of what comes with metaopt."""
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


def located(source: str | Path) -> Path:
    """The file that a source stands for.

    Args:
        source: a file; a folder that ``save_pretrained`` wrote; a run's folder, for its best; where
            nothing here is called so, the name of a shipped optimizer; or, as text and where that
            is none either, a hub id ``owner/name``.

    Raises:
        CheckpointError: one line that says what was looked for.
    """
    path = Path(source)
    if not path.exists():
        path = _elsewhere(source)
    if not path.is_dir():
        return path
    for name in (MODEL_FILE, BEST_FILE):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path / MODEL_FILE}: no such file; expected a folder that save_pretrained wrote, the "
        f"folder of a run (with {BEST_FILE}), or the path of a file"
    )


def read(source: str | Path) -> tuple[Path, Checkpoint]:
    """The file that a source stands for (``located``), and what it holds.

    Raises:
        CheckpointError: one line that says what is wrong with it.
    """
    path = located(source)
    content = checkpoint.read(path)
    if path.name == MODEL_FILE and Path(source) != path:
        _require_agreement(path.with_name(CONFIG_FILE), content)
    return path, content


def origin(source: str | Path, path: Path) -> str:
    """Where a learned optimizer comes from: ``shipped``, ``runs/NAME``, another path, or a hub id.

    Args:
        source: what was asked for.
        path: the file that it stands for.
    """
    if shipped.is_shipped(path):
        return SHIPPED
    if not Path(source).exists():
        return str(source)
    whole = path.parent if path.name in (BEST_FILE, MODEL_FILE) else path
    whole = Path(os.path.abspath(whole))
    here = Path.cwd()
    if whole != here and whole.is_relative_to(here):
        return str(whole.relative_to(here))
    return str(whole)


def _elsewhere(source: str | Path) -> Path:
    """What a source stands for that is no path here."""
    if (found := shipped.optimizer(source)) is not None:
        return found
    if (where := shipped.where_large_ones_are(source)) is not None:
        raise CheckpointError(where)
    if isinstance(source, str) and _is_hub_id(source):
        return _downloaded(source)
    if str(source) and Path(source).name == str(source) and not Path(source).suffix:
        known = ", ".join(path.stem for path in shipped.optimizers())
        raise CheckpointError(
            f"{source}: no such file or folder here, and no shipped optimizer (those are: {known})"
        )
    return Path(source)


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
            f"huggingface_hub: pip install 'metaopt-symmetry[hub]'"
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
