"""Studies of parts with letters: which parts a command names, and each of them run or read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.noether.folder import Folder
from studies.pieces import folder


@dataclass(frozen=True)
class Part:
    """What is run together."""

    run: Callable[[Any, Folder], dict[str, Any]]
    full: Any
    smoke: Any

    def found(self, letter: str, size: Any, out: Path) -> dict[str, Any]:
        """The part at a size, run or read: other sizes have other files.

        Args:
            letter: of the part.
            size: a dataclass, such as ``full``.
            out: the folder of the study.
        """
        return self.run(size, folder(out, letter, size))


def letters(parts: Collection[str]) -> Callable[[str], list[str]]:
    """What reads ``a,b,..``: the named parts, in order; an error names one that is not there."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [letter for letter in chosen if letter not in parts]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"found {unknown[0]!r}, expected some of {','.join(parts)}"
            )
        return [letter for letter in parts if letter in chosen]

    return read
