"""What has been found is kept, piece by piece, so that a stopped study goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaopt.base.files import write_atomically


@dataclass(frozen=True)
class Folder:
    """Of one part at one size."""

    path: Path
    stem: str  # begins all names; has a digest of the sizes, so that nothing is taken for another's

    def kept(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A piece: read if an earlier command has found it, else computed and written."""
        path = self.path / f"{self.stem}_{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(compute()).encode())
        return json.loads(path.read_text(encoding="utf-8"))
