"""Studies of pieces: run side by side, kept by all that they depend on, told where they stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from studies.noether.folder import Folder

P = TypeVar("P", bound=Hashable)
R = TypeVar("R")


def digest(what: Any) -> str:
    """Twelve digits that tell a dataclass from one with other fields: for the name of a file."""
    return hashlib.sha256(json.dumps(asdict(what)).encode()).hexdigest()[:12]


def folder(out: Path, name: str, what: Any) -> Folder:
    """Where the pieces of a study are kept, apart from those of other sizes.

    Args:
        out: the folder.
        name: begins their names.
        what: a dataclass, all that the pieces depend on.
    """
    return Folder(out, f"{name}_{digest(what)}")


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


def side_by_side(
    run: Callable[[P], R], pieces: Sequence[P], jobs: int | None, what: str
) -> dict[P, R]:
    """What each piece gives, with a bar; they run in processes of one thread.

    Args:
        run: what is asked of a piece; like these, it can be pickled.
        pieces: those that take longest first, so that no core waits at the end.
        jobs: processes at a time; None: one for each core; with 1 there is no other than this one.
        what: they are, for the bar.
    """
    if jobs == 1:
        return {piece: run(piece) for piece in tqdm(pieces, desc=what)}
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        each = pool.map(run, pieces)
        return dict(zip(pieces, tqdm(each, total=len(pieces), desc=what), strict=True))
