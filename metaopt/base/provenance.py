"""What made a file: the command, and the commit of the code in the working folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence

# The folders of an absolute path; its last part stays.
_FOLDERS = re.compile(r"(?<![\w.-])[~/][^\s,;'\"\[\]{}]*/")


def made_by(program: Sequence[str], config: str, overrides: Sequence[str]) -> dict[str, str]:
    """The fields ``command`` and ``commit`` of a learned optimizer.

    Args:
        program: words that start it, e.g. ``["metaopt", "train"]``.
        config: as it was given.
        overrides: ``key.sub=value``, as they were given.

    Returns:
        The command without what says where on this machine it ran and not what it made: output
        folder, device, ``--resume``, and the folders of absolute paths. The commit, with ``-dirty``
        where tracked files were changed, is that of the git repository that the working folder is
        in; there is none without one.
    """
    sets = [word for override in overrides for word in ("--set", without_folders(override))]
    command = shlex.join([*program, "--config", without_folders(config), *sets])
    found = _commit()
    return {"command": command} | ({} if found is None else {"commit": found})


def without_folders(text: str) -> str:
    """The text with each absolute path cut to its last part: folders are a machine's own."""
    return _FOLDERS.sub("", text)


def _commit() -> str | None:
    # Tags are left aside: the whole hash alone, then -dirty.
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
