"""What made a file: the command, and the commit of the code in the working folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence

# Matches the folders of an absolute path, not its last part.
_FOLDERS = re.compile(r"(?<![\w.-])[~/][^\s,;'\"\[\]{}]*/")


def made_by(program: Sequence[str], config: str, overrides: Sequence[str]) -> dict[str, str]:
    """The fields ``command`` and ``commit`` of a learned optimizer.

    The command is written without what depends on this machine and does not change the result:
    output folder, device, ``--resume``, and the folders of absolute paths. The commit is that of
    the git repository which contains the working folder, with ``-dirty`` if tracked files were
    changed. Without a repository there is none.

    Args:
        program: the words that start the program, e.g. ``["metaopt", "train"]``.
        config: the configuration, as it was given.
        overrides: ``key.sub=value``, as they were given.
    """
    sets = [word for override in overrides for word in ("--set", without_folders(override))]
    command = shlex.join([*program, "--config", without_folders(config), *sets])
    found = _commit()
    return {"command": command} | ({} if found is None else {"commit": found})


def without_folders(text: str) -> str:
    """The text with each absolute path cut to its last part, as folders belong to one machine."""
    return _FOLDERS.sub("", text)


def _commit() -> str | None:
    # Excluding all tags leaves the whole hash, then -dirty.
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
