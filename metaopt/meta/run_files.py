"""The files of a run in its folder, and how an earlier run's are kept when another begins there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from metaopt.base.files import writing

STATE_FILE = "state.pt"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
BEST_FILE = "optimizer.safetensors"
LAST_FILE = "last.safetensors"
PROFILE_FOLDER = "profile"
EVENT_FILES = "events.out.tfevents.*"


def set_aside(folder: Path) -> Path | None:
    """Move a run's files, and nothing else, into ``before-1/``, or the first number that is free.

    Each file is renamed, the state first: at no moment is there a state beside files that are gone.

    Returns:
        Where they are; None where there was no run.

    Raises:
        WriteError: where they cannot be moved.
    """
    found = [*_of_a_run(folder)]
    if not found:
        return None
    with writing(folder):
        kept = next(place for place in _places(folder) if _made(place))
        for path in found:
            path.rename(kept / path.name)
    return kept


def _of_a_run(folder: Path) -> Iterator[Path]:
    names = (STATE_FILE, METRICS_FILE, CONFIG_FILE, BEST_FILE, LAST_FILE, PROFILE_FOLDER)
    yield from (path for path in (folder / name for name in names) if path.exists())
    yield from sorted(folder.glob(EVENT_FILES))


def _places(folder: Path) -> Iterator[Path]:
    return (folder / f"before-{number}" for number in itertools.count(1))


def _made(place: Path) -> bool:
    try:
        place.mkdir()
    except FileExistsError:
        return False
    return True
