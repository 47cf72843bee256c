"""Files that are never half written: written beside, synced to the disk, and renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from metaopt.base.errors import UserError, WriteError


def make_folder(folder: Path) -> None:
    """Make a folder for results; raises ``UserError`` where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: no folder for results can be made there ({error.strerror}); "
            f"choose another with --out"
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: this folder cannot be written to; choose another with --out")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says of writes within, as a ``WriteError`` that names ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one, never a part.

    Raises:
        WriteError: where that is not possible; the old file is then as it was.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """``write_atomically`` for several files: one that finds no room leaves all as they were."""
    with beside(contents) as written:
        for temporary, path in written:
            os.replace(temporary, path)


@contextmanager
def beside(contents: Mapping[Path, bytes]) -> Iterator[list[tuple[Path, Path]]]:
    """Files on the disk under other names, with the paths that they are to be renamed to within.

    Raises:
        WriteError: where something cannot be written; nothing is left of it.
    """
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
                written.append((Path(name), path))
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(name, 0o666 & ~umask)  # mkstemp makes files private
        with writing(written[0][1].parent):
            yield written
            for folder in {path.parent for path in contents}:
                _sync(folder)
    finally:
        for temporary, _ in written:
            # A folder that has become read-only keeps what is in it.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
