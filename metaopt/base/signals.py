"""Ctrl-C and SIGTERM as flags, so that they never cut an outer step in two."""

from __future__ import annotations

import signal
import time
from types import FrameType

from metaopt.base.errors import ProcessLostError

SECONDS_OF_ONE_PRESS = 1.0
"""torchrun hands on the Ctrl-C that the terminal sent to its processes already: within this time
two are one."""
CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Within its context the first Ctrl-C and every SIGTERM are noted; a second Ctrl-C interrupts.

    SIGTERM is what schedulers and torchrun send to a process that has to leave.
    """

    def __init__(self) -> None:
        self._received: dict[int, float] = {}

    def received(self) -> list[bool]:
        """Which of ``CAUGHT`` came so far."""
        return [number in self._received for number in CAUGHT]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._received.setdefault(number, now)
        if number == signal.SIGINT and now - first > SECONDS_OF_ONE_PRESS:
            raise KeyboardInterrupt

    def __enter__(self) -> Signals:
        self._before = [signal.signal(number, self._note) for number in CAUGHT]
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # Where a process was lost, torchrun is about to send SIGTERM to the others: not before
        # they have closed their files and said why.
        lost = kind is not None and issubclass(kind, ProcessLostError)
        for number, handler in zip(CAUGHT, self._before, strict=True):
            signal.signal(number, signal.SIG_IGN if lost else handler)
