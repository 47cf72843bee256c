"""What metaopt comes with, by name: configurations and small learned optimizers.

In a wheel they lie in ``data/`` beside this file, where ``setup.py`` puts them; in the repository,
and so in an editable installation, in ``configs/`` and ``checkpoints/pretrained/``.
"""

from __future__ import annotations

from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_INSTALLED = Path(__file__).resolve().with_name("data")


def _folder(installed: str, in_repository: str) -> Path:
    """Installed first: beside an installed package lie other packages' folders."""
    if _INSTALLED.is_dir():
        return _INSTALLED / installed
    return _REPOSITORY / in_repository


CONFIGS = _folder("configs", "configs")
"""The configurations; the paper's are in ``paper/``."""
PRETRAINED = _folder("pretrained", "checkpoints/pretrained")
"""The learned optimizers."""
LARGE = ("lstm_lr_tele", "lstm_update", "lstm_update_tele")
"""Learned optimizers of 9 to 19 MB: they are in the repository, and in no wheel."""


def configuration(name: str | Path) -> Path | None:
    """The shipped configuration of a name, with ``.yaml`` or without; None where there is none."""
    return _found(CONFIGS, Path(name), ".yaml")


def configurations() -> list[str]:
    """The names of all shipped configurations."""
    return sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def optimizer(name: str | Path) -> Path | None:
    """The file of the shipped optimizer of a name, e.g. ``digits_update_tele``; None without."""
    return _found(PRETRAINED, Path(name), ".safetensors")


def optimizers() -> list[Path]:
    """The files of all shipped optimizers that are here."""
    return sorted(PRETRAINED.glob("*.safetensors"))


def is_shipped(path: Path) -> bool:
    """Whether a file is one of the shipped optimizers."""
    return path.resolve().parent == PRETRAINED.resolve()


def where_large_ones_are(name: str | Path) -> str | None:
    """Where a large optimizer is that is not here, in one line; None for all other names."""
    stem = str(name).removesuffix(".safetensors")
    if stem not in LARGE:
        return None
    return (
        f"{stem}: too large for the installed package; it is the file "
        f"checkpoints/pretrained/{stem}.safetensors of metaopt's repository: clone that and give "
        f"the file's path, or train it: metaopt train --config {stem}"
    )


def _found(folder: Path, name: Path, suffix: str) -> Path | None:
    """The file of a name below a folder, and never outside of it."""
    if name.is_absolute() or ".." in name.parts:
        return None
    for path in (folder / name, folder / f"{name}{suffix}"):
        if path.is_file():
            return path
    return None
