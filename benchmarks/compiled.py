"""Windows of compiled inner steps beside the same windows operation by operation.

    python -m benchmarks.compiled [--smoke] [--json FILE] [--write-page]

For some recipes and meta-batches, in one process: milliseconds of a window of 10 inner steps with
its meta-gradient, medians of rounds in which both take turns; the share of the machine's matmul
rate that each reaches; seconds of compiling into an empty folder, and from a folder that keeps what
was compiled; the inner steps after which the first of these has paid; and the largest relative
difference of the meta-gradient of a network, in float64, where another compilation computes it.

``--write-page`` puts the table into ``docs/results/speed.md``; ``--smoke`` takes one small recipe.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.counting import training_flop
from benchmarks.sweep import Work
from benchmarks.timing import Side, compare, seconds
from metaopt.base import cli
from metaopt.base.errors import UserError
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.meta import build
from metaopt.meta.compiled import CompiledSteps
from metaopt.meta.compiling import has_compiler
from metaopt.meta.trainer import MetaTrainer
from metaopt.meta.unroll import Advance, operation_by_operation
from metaopt.meta.windows import StepByStep
from studies.output import DOCS, Page

PAGE = Page(DOCS / "speed.md", "compiled table", "compiled")
RECIPES = (
    ("paper/lstm_update_tele.yaml", (1, 16, 64, 256)),
    ("lstm_update_tele.yaml", (16, 64)),
    ("coordinate_update_tele.yaml", (8, 64)),
)
"""Recipes, and the meta-batches of each; the first meta-batch of the last two is their own."""
SMALL = (("paper/lstm_update.yaml", (2,)),)
ROUNDS = 7
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """What was measured of one recipe at one meta-batch."""

    label: str  # its file
    batch: int  # trajectories side by side
    plain: float  # seconds of a window operation by operation
    compiled: float  # seconds of a window of compiled steps
    share: float  # of the machine's matmul rate, operation by operation
    share_compiled: float  # of it, compiled
    first: float  # seconds of compiling
    again: float  # seconds of it with what was kept
    pays: float  # inner steps until the first compilation has paid
    difference: float  # of the meta-gradient in float64


def window(work: Work, advance: Advance, dtype: str = "float32") -> Callable[[], list[Tensor]]:
    """What runs the first window of a run, and returns its meta-gradient."""
    config = work.loaded([f"dtype={dtype}"])
    trainer = MetaTrainer(config, CPU)
    tasks, inner = trainer._trajectories()
    loss = build.meta_loss(config.meta)
    windows = StepByStep(trainer.optimizer, trainer.observe, loss, advance)

    def run() -> list[Tensor]:
        windows(tasks, inner, config.meta.unroll)
        return [p.grad for p in trainer.optimizer.parameters() if p.grad is not None]

    return run


def difference(work: Work) -> float:
    """The largest relative one of any parameter's meta-gradient, in float64."""
    plain = window(work, operation_by_operation, "float64")()
    compiled = window(work, CompiledSteps(), "float64")()
    pairs = zip(plain, compiled, strict=True)
    return max(float((a - b).norm() / a.norm()) for a, b in pairs if a.norm() > 0)


def measured(work: Work, matmul_flops: float) -> Row:
    """One row."""
    meta = work.loaded().meta
    # Torch's own parts of a compilation are loaded once for all, which is not told.
    plain, compiled = window(work, operation_by_operation), window(work, CompiledSteps())
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        once = seconds(plain, CPU)
        first = seconds(compiled, CPU) - once
        again = seconds(window(work, CompiledSteps()), CPU) - once
        sides = {"plain": Side(plain, 1), "compiled": Side(compiled, 1)}
        found = compare(sides, CPU, ROUNDS)
        off = difference(work)
    flop = training_flop(work.loaded()) * work.batch * meta.unroll / meta.steps
    saved = (found["plain"] - found["compiled"]) / meta.unroll
    return Row(
        label=work.label,
        batch=work.batch,
        plain=found["plain"],
        compiled=found["compiled"],
        share=flop / found["plain"] / matmul_flops,
        share_compiled=flop / found["compiled"] / matmul_flops,
        first=first,
        again=again,
        pays=first / saved if saved > 0 else float("inf"),
        difference=off,
    )


def rows(recipes: Sequence[tuple[str, Sequence[int]]], matmul_flops: float) -> Iterator[Row]:
    """A row for each recipe and meta-batch, told when it is there."""
    for config, batches in recipes:
        for batch in batches:
            row = measured(Work(config, "meta-training", batch), matmul_flops)
            print(f"measured: {row.label}, {batch}", flush=True)
            yield row


def table(found: Sequence[Row]) -> str:
    """For people."""
    header = ["configuration", "B", "ms", "compiled", "times as fast", "share", "compiled"]
    header += ["s to compile", "again", "pays after", "difference"]
    lines = [
        [
            row.label,
            str(row.batch),
            f"{1e3 * row.plain:.1f}",
            f"{1e3 * row.compiled:.1f}",
            f"{row.plain / row.compiled:.2f}",
            f"{100 * row.share:.0f} %",
            f"{100 * row.share_compiled:.0f} %",
            f"{row.first:.0f}",
            f"{row.again:.0f}",
            "never" if row.pays == float("inf") else f"{row.pays:,.0f}",
            f"{row.difference:.0e}",
        ]
        for row in found
    ]
    return markdown_table(header, lines)


def main(world: World) -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description="Compiled inner steps.")
    parser.add_argument("--smoke", action="store_true", help="one small recipe")
    arguments = PAGE.parse(parser)
    if not has_compiler():
        raise UserError("there is no C++ compiler: install g++ or clang++, or name one by CXX")
    here = machine.measure(CPU)
    found = list(rows(SMALL if arguments.smoke else RECIPES, here.matmul_flops))
    text = f"{here.lines()}\n\n{table(found)}"
    PAGE.tell(arguments, text, [asdict(row) for row in found])


if __name__ == "__main__":
    cli.run(main)
