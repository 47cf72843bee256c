"""Studies of pieces: kept in a folder by all that they depend on, told where they were stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studies.noether.folder import Folder


def folder(out: Path, name: str, what: Any) -> Folder:
    """Where the pieces of a study are kept, apart from those of other sizes.

    Args:
        out: the folder.
        name: begins their names.
        what: a dataclass, all that the pieces depend on.
    """
    digest = hashlib.sha256(json.dumps(asdict(what)).encode()).hexdigest()[:12]
    return Folder(out, f"{name}_{digest}")


@contextmanager
def until_stopped(done: Sized, missing: list[str], left: list[str]) -> Iterator[None]:
    """Ctrl-C ends what is inside, and the page is written of what there is.

    Args:
        done: what there is; where it is empty, Ctrl-C is what it always is.
        missing: gets a line that names what is ``left``.
        left: what has not been done; who is inside takes out what has.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not done:
            raise
        missing.append(f"Stopped before its end; not run: {'; '.join(left)}.")
