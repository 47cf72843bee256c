"""What the package contains, by name: configurations and small learned optimizers.

In a wheel they are in ``data/`` beside this file, where ``setup.py`` puts them. In the repository,
and so in an editable installation, they are in ``configs/`` and ``checkpoints/pretrained/``.
"""

from __future__ import annotations

from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_INSTALLED = Path(__file__).resolve().with_name("data")


def _folder(installed: str, in_repository: str) -> Path:
    """The folder of the wheel if it exists, otherwise that of the repository.

    In this order, since the second path of an installed package is not its own.
    """
    if _INSTALLED.is_dir():
        return _INSTALLED / installed
    return _REPOSITORY / in_repository


CONFIGS = _folder("configs", "configs")
"""The configurations; the paper's are in ``paper/``."""
PRETRAINED = _folder("pretrained", "checkpoints/pretrained")
"""The learned optimizers."""
DEFAULT = "general_update"
"""The learned optimizer for any model, taken where none is named."""
LARGE = ("lstm_lr_tele", "lstm_update", "lstm_update_tele")
"""Learned optimizers of 9 to 19 MB: they are in the repository, and in no wheel."""


def configuration(name: str | Path) -> Path | None:
    """The shipped configuration of this name, with ``.yaml`` or without; None if there is none."""
    return _found(CONFIGS, Path(name), ".yaml")


def configurations() -> list[str]:
    """The names of all shipped configurations."""
    return sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def optimizer(name: str | Path) -> Path | None:
    """The file of the shipped optimizer of this name, e.g. ``digits_update_tele``, or None."""
    return _found(PRETRAINED, Path(name), ".safetensors")


def optimizers() -> list[Path]:
    """The files of all shipped optimizers that are present."""
    return sorted(PRETRAINED.glob("*.safetensors"))


def is_shipped(path: Path) -> bool:
    """Whether a file is one of the shipped optimizers."""
    return path.resolve().parent == PRETRAINED.resolve()


def where_large_ones_are(name: str | Path) -> str | None:
    """One line that says where a large optimizer can be found; None for other names."""
    stem = str(name).removesuffix(".safetensors")
    if stem not in LARGE:
        return None
    return (
        f"{stem}: too large for the installed package; it is the file "
        f"checkpoints/pretrained/{stem}.safetensors of metaopt's repository: clone that and give "
        f"the file's path, or train it: metaopt train --config {stem}"
    )


def _found(folder: Path, name: Path, suffix: str) -> Path | None:
    """The file of this name in the folder; None if there is none, or it is outside the folder."""
    if name.is_absolute() or ".." in name.parts:
        return None
    for path in (folder / name, folder / f"{name}{suffix}"):
        if path.is_file():
            return path
    return None
