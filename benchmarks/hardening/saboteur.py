"""Something happens in the middle of writing a file: at the n-th operation on one.

Operations are counted in the order in which the package makes them: half of a file's content is
written, it is brought to the disk (``fsync``), it takes its place (``os.replace``, before and
after), half a row of metrics is written.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from metaopt.meta.run_files import METRICS_FILE


class Saboteur:
    """Counts operations on files, and acts once within the chosen one.

    Args:
        at: number of the operation, from 1; 0 for none.
        act: what happens.
    """

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._left = at
        self._act = act
        self.count = 0

    def install(self) -> None:
        """Stand between this process and its files, for as long as it lives."""
        replace, fsync, fdopen, opened = os.replace, os.fsync, os.fdopen, io.open

        def replacing(*paths: Any) -> None:
            self.operation()
            replace(*paths)
            self.operation()

        def syncing(descriptor: int) -> None:
            self.operation()
            fsync(descriptor)

        def from_descriptor(*arguments: Any, **options: Any) -> Any:
            return _Torn(fdopen(*arguments, **options), self)

        def opening(path: Any, *arguments: Any, **options: Any) -> Any:
            file = opened(path, *arguments, **options)
            return _Torn(file, self) if str(path).endswith(METRICS_FILE) else file

        for module, name, instead in (
            (os, "replace", replacing),
            (os, "fsync", syncing),
            (os, "fdopen", from_descriptor),
            (io, "open", opening),
        ):
            setattr(module, name, instead)

    def operation(self) -> None:
        """One more; the chosen one ends in the act."""
        self.count += 1
        if self.count == self._left:
            self._act()


class _Torn:
    """A file whose writes have a middle."""

    def __init__(self, file: Any, saboteur: Saboteur) -> None:
        self._file = file
        self._saboteur = saboteur

    def write(self, content: Any) -> None:
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._saboteur.operation()
        self._file.write(content[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)
