"""Ctrl-C and SIGTERM as flags, so that they never interrupt an outer step."""

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
    """Notes the first Ctrl-C and every SIGTERM within its context; a second Ctrl-C interrupts.

    Schedulers and torchrun send SIGTERM to a process that has to end.
    """

    def __init__(self) -> None:
        self._received: dict[int, float] = {}

    def received(self) -> list[bool]:
        """For each signal in ``CAUGHT`` whether it came so far."""
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
        # If a process was lost, torchrun is about to send SIGTERM to the others, which first
        # have to close their files and say why they end.
        lost = kind is not None and issubclass(kind, ProcessLostError)
        for number, handler in zip(CAUGHT, self._before, strict=True):
            signal.signal(number, signal.SIG_IGN if lost else handler)
