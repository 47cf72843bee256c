"""Where the time of an outer step goes: stopwatches around the calls of a trainer's own objects.

Each part's time excludes that of the parts called within it, and what no part covers is "the rest
of the outer step". A part that a trainer never calls is shown as such. On CUDA the stopwatches wait
for the device at every boundary, which costs overlap: read shares, and the total from elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.counting import training_flop
from benchmarks.sweep import Work
from benchmarks.timing import synchronize
from metaopt.base.tables import markdown_table
from metaopt.meta.trainer import MetaTrainer
from metaopt.rules.learned.precision import Precision
from metaopt.tasks.regression import RegressionFamily, TaskBatch
from metaopt.teleport.engine import TeleportEngine

DRAW = "drawing tasks"
OPTIMIZEE = "optimizee: loss and gradient"
RULES = "features, and splitting outputs"
PRODUCTS = "products of the LSTMs' weights"
NETWORKS = "LSTMs and heads, forward"
TELEPORT = "teleport, forward"
BACKWARD = "backward"
ADAM = "Adam"
REST = "the rest of the outer step"
PARTS = (PRODUCTS, OPTIMIZEE, RULES, NETWORKS, TELEPORT, BACKWARD, ADAM, DRAW, REST)


class Stopwatch:
    """Seconds by part, nested parts taken out of the outer ones.

    Args:
        device: waited for at each boundary.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens within."""
        self._switch()
        self._running.append(name)
        self.calls[name] = self.calls.get(name, 0) + 1
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed


def _parts(trainer: MetaTrainer) -> Iterator[tuple[str, Any, str]]:
    """(part, owner, name of the function) of everything that is timed."""
    for precision in (Precision, *Precision.__subclasses__()):
        for name in {"plus", "times", "outer"} & vars(precision).keys():
            yield PRODUCTS, precision, name
    yield DRAW, RegressionFamily, "sample"
    yield OPTIMIZEE, TaskBatch, "observe"
    yield TELEPORT, TeleportEngine, "teleport"
    yield BACKWARD, torch.Tensor, "backward"
    yield ADAM, trainer.adam, "step"
    for rule in trainer.optimizer.rules.values():
        yield RULES, rule, "propose"
        for name, module in rule.named_children():
            if name in ("lstm", "head", "wire", "step_head"):
                yield NETWORKS, module, "forward"


def breakdown(work: Work, windows: int, device: torch.device) -> Mapping[str, float | None]:
    """Seconds of an outer step by part, means over ``windows`` after one to warm up.

    None for a part that was never called.
    """
    trainer = MetaTrainer(work.loaded(), device)
    trainer.outer_step()
    watch = Stopwatch(device)
    with ExitStack() as stack:
        for part, owner, name in _parts(trainer):
            timed = watch.around(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, timed))
        for _ in range(windows):
            with watch.part(REST):
                trainer.outer_step()
    return {part: watch.seconds[part] / windows if part in watch.calls else None for part in PARTS}


def rate_of_products(
    work: Work, parts: Mapping[str, float | None], matmul_flops: float
) -> float | None:
    """The share of the machine's matmul rate that products reach; None where none was called.

    Args:
        work: one configuration.
        parts: what ``breakdown`` found of it.
        matmul_flops: operations a second.
    """
    seconds = parts[PRODUCTS]
    if seconds is None:
        return None
    flop = training_flop(work.loaded()) * work.batch / work.windows_of_trajectory
    return flop / seconds / matmul_flops


def table(
    found: Mapping[str, Mapping[str, float | None]], shares: Mapping[str, float | None]
) -> str:
    """For people: milliseconds of an outer step and shares, a column a configuration.

    Args:
        found: the parts of each configuration.
        shares: of the machine's matmul rate, what the products reach in their own time; None where
            they were not called by themselves.
    """
    totals = {
        name: sum(value for value in parts.values() if value is not None)
        for name, parts in found.items()
    }

    def cell(name: str, value: float | None) -> str:
        if value is None:
            return "not called"
        return f"{1e3 * value:.1f} ms ({100 * value / totals[name]:.0f} %)"

    rows = [[part, *(cell(name, parts[part]) for name, parts in found.items())] for part in PARTS]
    rows.append(["together", *(f"{1e3 * total:.1f} ms" for total in totals.values())])
    each = (shares[name] for name in found)
    rates = ("not called" if share is None else f"{100 * share:.0f} %" for share in each)
    rows.append([f"rate of the {PRODUCTS}", *rates])
    return markdown_table(["part of an outer step", *found], rows)
