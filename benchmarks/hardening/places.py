"""Places for files that become full, or read-only: a small tmpfs where this process may mount one.

Without that right a full disk is the limit on the size of a file, and a read-only folder one whose
permissions say so, which bind everybody but root.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 32 * 2**20
BALLAST = "ballast"
LIMIT = 2**14
"""Bytes of a file, in the place of a full disk: less than states and checkpoints have."""


def may_mount() -> bool:
    """Whether a tmpfs can be mounted here."""
    return os.geteuid() == 0 and _mount("--fake", "-t", "tmpfs", "tmpfs", "/tmp")


@contextmanager
def place(folder: Path) -> Iterator[Path]:
    """A folder on a disk of its own, where that is possible."""
    folder.mkdir(parents=True)
    mounted = may_mount() and _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    inside = folder / "inside"
    inside.mkdir()
    try:
        yield inside
    finally:
        relieve(inside)
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


def fill(inside: Path) -> None:
    """From now on there is no room for another page, or for a few at most."""
    if not os.path.ismount(inside.parent):
        # Writing past the limit is then an error, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
        return
    spare = b"\0" * random.Random(time.time_ns()).choice((0, 1, 4096, 3 * 4096))
    (inside.parent / "spare").write_bytes(spare)
    descriptor = os.open(inside.parent / BALLAST, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, b"\0" * 4096):
            pass
    except OSError:
        pass
    finally:
        os.close(descriptor)
        (inside.parent / "spare").unlink()


def forbid(inside: Path) -> None:
    """From now on nothing can be made, replaced or opened for writing there."""
    if os.path.ismount(inside.parent):
        # Over it, since files are open for writing: those stay open, as with a failing disk.
        _mount("--bind", str(inside), str(inside))
        _mount("-o", "remount,bind,ro", str(inside))
    else:
        inside.chmod(0o555)


def relieve(inside: Path) -> None:
    """There is room again, and writing is allowed."""
    # ismount knows nothing of a folder over itself.
    while subprocess.run(["umount", str(inside)], capture_output=True, check=False).returncode == 0:
        pass
    inside.chmod(0o755)
    (inside.parent / BALLAST).unlink(missing_ok=True)


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
