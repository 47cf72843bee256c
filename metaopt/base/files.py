"""Files that are never half written: written under another name, synced to disk, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from metaopt.base.errors import UserError, WriteError


def make_folder(folder: Path) -> None:
    """Make a folder for results; raise ``UserError`` if that is not possible."""
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
    """Turn an ``OSError`` within the context into a ``WriteError`` that names ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        WriteError: if it cannot be written; the old file is then unchanged.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """``write_atomically`` for several files: if one cannot be written, none of them changes."""
    with beside(contents) as written:
        for temporary, path in written:
            os.replace(temporary, path)


@contextmanager
def beside(contents: Mapping[Path, bytes]) -> Iterator[list[tuple[Path, Path]]]:
    """Write files under temporary names; within the context they can be renamed.

    Yields:
        For each file its temporary path and its final path.

    Raises:
        WriteError: if a file cannot be written; the temporary files are then removed.
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
