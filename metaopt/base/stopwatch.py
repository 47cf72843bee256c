"""How long steps take, without what is done beside them: judging on other data, and measuring."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch


class NoWatch:
    """Times nothing."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is to be timed."""
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is no part of it, though it happens within."""
        yield


UNTIMED = NoWatch()


class Stopwatch(NoWatch):
    """The wall clock of what runs under ``running``, less all that is done ``aside``.

    On a CUDA device its marks are events of the stream, so that no mark waits for the device.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is to be timed."""
        self._mark()
        yield
        self._mark()

    aside = running
    """Marks alternate: those of what is done aside stop the watch and start it again."""

    @property
    def seconds(self) -> float:
        """So far; waits for the device."""
        for event in self._events[-1:]:
            event.synchronize()
        on_host = sum(end - begin for begin, end in list(pairwise(self._times))[::2])
        on_device = (a.elapsed_time(b) for a, b in list(pairwise(self._events))[::2])
        return on_host + sum(on_device) / 1e3

    def _mark(self) -> None:
        if self._device.type != "cuda":
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)
