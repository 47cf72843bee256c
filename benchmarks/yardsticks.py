"""metaopt beside what else there is, in turns in one process: whole outer steps of the same recipe.

Flattened rules stand beside a loop over single trajectories (``plain_loop``), coordinate-wise ones
beside ``nn.LSTMCell`` with autograd (``autograd_yardstick``), both beside JAX (``jax_yardstick``).
All begin from the same weights and draw the same tasks; tests hold their losses and meta-gradients
together. Every side takes trajectories of as many windows, each with its draw of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from benchmarks.autograd_yardstick import AutogradStep
from benchmarks.parameters import initial
from benchmarks.plain_loop import PlainLoop
from benchmarks.scaling import BUDGET, windows_within
from benchmarks.timing import REPEATS, Side, compare, seconds
from benchmarks.work import Work
from metaopt.base.tables import markdown_table
from metaopt.meta.config import TrainConfig

METAOPT, LOOP, CELL, JAX = "metaopt", "one at a time", "nn.LSTMCell", "JAX"
SAME_RECIPE = ("meta.order=1", "meta.average=null")
"""What every side has: first order, and no average beside it."""


class Windowed(Protocol):
    """What takes outer steps."""

    def window(self) -> object:
        """One outer step."""


@dataclass(frozen=True)
class Comparison:
    """Seconds a trajectory of full length.

    Attributes:
        label: its file, and what was set.
        batch: trajectories side by side (one at a time has its own).
        windows: of the trajectories that were timed.
        seconds: by side.
    """

    label: str
    batch: int
    windows: int
    seconds: Mapping[str, float]

    def ratio(self, side: str) -> float:
        """How many times metaopt is faster."""
        return self.seconds[side] / self.seconds[METAOPT]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ratios = {side: self.ratio(side) for side in self.seconds if side != METAOPT}
        return asdict(self) | {"ratios": ratios}


def jax_missing(device: torch.device) -> str | None:
    """Why there is no JAX yardstick, or None."""
    if find_spec("jax") is None:
        return (
            "JAX is not installed, so its yardstick is left out: "
            "pip install -c constraints.txt -e '.[bench]'"
        )
    import jax

    try:
        jax.devices(_platform(device))
    except RuntimeError:
        return f"this JAX has no {_platform(device)} device, so its yardstick is left out"
    return None


def compared(
    config: str,
    batch: int,
    rivals: Sequence[str],
    device: torch.device,
    overrides: Sequence[str] = (),
    budget: float = BUDGET,
) -> Comparison:
    """Time metaopt and its rivals, all in float32 but for ``overrides``, at one meta-batch."""
    work = Work(config, "meta-training", batch, (*SAME_RECIPE, *overrides))
    full, unroll = work.windows_of_trajectory, work.loaded().meta.unroll
    batched = [name for name in rivals if name != LOOP]

    with _jax_on(device) if JAX in rivals else _nothing():
        run = _side(CELL if CELL in rivals else METAOPT, work, 1, device)
        run()
        windows = windows_within(budget, seconds(run, device), full)
        sides = {
            name: Side(_side(name, work, windows, device), batch * windows / full)
            for name in (METAOPT, *batched)
        }
        if LOOP in rivals:
            alone = work.loaded([f"meta.steps={full * unroll}"])
            loop = PlainLoop(alone, initial(alone), device)
            sides[LOOP] = Side(partial(_windows, loop, full), 1)
        return Comparison(work.label, batch, windows, compare(sides, device, REPEATS))


def _side(name: str, work: Work, windows: int, device: torch.device) -> Callable[[], object]:
    """What runs a trajectory of ``windows`` windows."""
    if name == METAOPT:
        return work.ready(windows, device)
    config = work.loaded([f"meta.steps={windows * work.loaded().meta.unroll}"])
    return partial(_windows, _rival(name, config, device), windows)


def _rival(name: str, config: TrainConfig, device: torch.device) -> Windowed:
    if name == CELL:
        return AutogradStep(config, initial(config), device)
    from benchmarks.jax_yardstick import jax_step

    return jax_step(config, initial(config))


def _windows(rival: Windowed, count: int) -> None:
    for _ in range(count):
        rival.window()


@contextmanager
def _jax_on(device: torch.device) -> Iterator[None]:
    import jax

    with jax.default_device(jax.devices(_platform(device))[0]):
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _platform(device: torch.device) -> str:
    return "gpu" if device.type == "cuda" else "cpu"


def table(found: Sequence[Comparison]) -> str:
    """For people: seconds a trajectory, and in brackets how many times metaopt is faster."""
    rivals = [LOOP, CELL, JAX]

    def cell(row: Comparison, rival: str) -> str:
        if rival not in row.seconds:
            return ""
        return f"{row.seconds[rival]:.4g} ({row.ratio(rival):.2f}x)"

    rows = [
        [
            row.label,
            str(row.batch),
            f"{row.seconds[METAOPT]:.4g}",
            *(cell(row, rival) for rival in rivals),
        ]
        for row in found
    ]
    return markdown_table(["configuration", "B", METAOPT, *rivals], rows)
