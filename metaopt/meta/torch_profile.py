"""A trace of a few outer steps by ``torch.profiler``, for TensorBoard or https://ui.perfetto.dev."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from tqdm import tqdm

from metaopt.base.files import write_atomically

WARM_UP = 3
"""Outer steps that go by before the trace begins."""


class NoProfile:
    """Profiles nothing."""

    def step(self) -> None:
        """An outer step ended, with the validation that belongs to it."""

    def __enter__(self) -> NoProfile:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Profile(NoProfile):
    """Within its context, traces ``steps`` outer steps after ``WARM_UP`` others.

    A run that ends earlier leaves a trace of the outer steps that there were, and says so.

    Args:
        steps: outer steps to trace.
        folder: the folder of the trace.
        device: the device that the run computes on.
        outer_step: the outer steps taken before this part of the run.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device, outer_step: int) -> None:
        self._steps = steps
        self._folder = folder
        self._first = outer_step + WARM_UP + 1
        self._last = outer_step
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._torch = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._written = False

    def step(self) -> None:
        """An outer step ended, with the validation that belongs to it."""
        self._last += 1
        self._torch.step()

    def __enter__(self) -> Profile:
        self._torch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._torch.__exit__(None, None, None)
        if not self._written:
            tqdm.write(
                f"--profile {self._steps}: no trace, since the run ended within {WARM_UP} outer "
                f"steps of warm-up"
            )

    def _write(self, traced: torch.profiler.profile) -> None:
        last = min(self._last, self._first + self._steps - 1)
        if last < self._first:
            return
        path = self._folder / f"outer_steps_{self._first}_{last}.pt.trace.json.gz"
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / path.name
            traced.export_chrome_trace(str(whole))
            write_atomically(path, whole.read_bytes())
        self._written = True
        ended = "" if last == self._first + self._steps - 1 else ", where the run ended"
        tqdm.write(f"profile of outer steps {self._first} to {last}{ended}: {path}")
