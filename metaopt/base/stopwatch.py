"""Times steps, without the work that is done between them, such as judging and measuring."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch


class NoWatch:
    """A stopwatch that measures nothing."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """The work within the context is timed."""
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The work within the context is not timed, although it lies within ``running``."""
        yield


UNTIMED = NoWatch()


class Stopwatch(NoWatch):
    """The wall-clock time of what runs within ``running``, without what runs within ``aside``.

    On a CUDA device it records events in the stream, so that it does not wait for the device.

    Args:
        device: the device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """The work within the context is timed."""
        self._mark()
        yield
        self._mark()

    aside = running
    """Marks alternate: those of ``aside`` stop the watch and start it again."""

    @property
    def seconds(self) -> float:
        """The time so far, in seconds; waits for the device."""
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
