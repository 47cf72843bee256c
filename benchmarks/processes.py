"""Meta-training by 1, 2 and 4 processes against a model of its cost, and what the model foretells.

    python -m benchmarks.processes [--smoke] [--json FILE] [--write-page]

    T(P) = max(1, P / cores) C(B / P) + R(P)          of an outer step of B trajectories

C(b) is what one process with one thread takes for b trajectories, R(P) what P idle processes take
to exchange meta-gradients (``World.mean_``: one all-reduce). Both are measured, and so is T(P)
itself, on this machine, with more processes than cores as well. Of graphics processors and nodes
that are not here the model says

    T(P) = c + e B / P + 2 (P - 1) / P bytes / bandwidth + 2 (P - 1) latency

with c and e from the line through two measured meta-batches of one GPU, and an all-reduce in a
ring. Bandwidths and latencies are assumptions, which the table names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from benchmarks import machine
from benchmarks.process_steps import Steps
from benchmarks.sweep import WHOLE
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from studies.output import DOCS, ROOT, Page

PAGE = Page(DOCS / "processes.md", "processes tables", "processes")
CONFIGS = ("lstm_update_tele.yaml", "coordinate_update_tele.yaml")
PROCESSES = (1, 2, 4)
TINY = ("task.width=4", "task.inputs=4", "task.outputs=4", "task.samples=4")
OF_ONE_GPU = {
    "lstm_update_tele.yaml": {64: 23.6e-3, 1024: 41.0e-3},
    "coordinate_update_tele.yaml": {64: 27.7e-3, 1024: 115e-3},
}
"""Seconds of an outer step on an H200, by meta-batch: docs/results/speed.md, "On a GPU"."""


@dataclass(frozen=True)
class Link:
    """What joins processors: an assumption.

    Attributes:
        name: in the table.
        bandwidth: bytes a second in each direction.
        latency: seconds of a message.
    """

    name: str
    bandwidth: float
    latency: float


LINKS = (
    Link("8 GPUs of a node, 300 GB/s, 5 us", 300e9, 5e-6),
    Link("8 nodes of a GPU, 100 Gb/s, 30 us", 12.5e9, 30e-6),
)
COUNT = 8


@dataclass(frozen=True)
class Size:
    """Of a measurement."""

    batch: int  # B
    steps: int  # outer steps that are timed
    overrides: tuple[str, ...] = ()


FULL = Size(64, 5)
SMOKE = Size(4, 1, TINY)


@dataclass(frozen=True)
class Row:
    """P processes; seconds of an outer step.

    Attributes:
        config: the file.
        processes: P.
        batch: B.
        seconds: found.
        compute: max(1, P / cores) C(B / P).
        exchange: R(P).
        bytes: of the meta-gradient.
    """

    config: str
    processes: int
    batch: int
    seconds: float
    compute: float
    exchange: float
    bytes: int

    @property
    def predicted(self) -> float:
        """T(P)."""
        return self.compute + self.exchange


def run(config: str, processes: int, batch: int, size: Size) -> Steps:
    """Outer steps of ``batch`` trajectories by so many fresh processes of one thread."""
    worker = ["-m", "benchmarks.process_steps", config, str(size.steps), *WHOLE]
    worker += [f"meta.batch={batch}", f"validation.tasks={processes}", *size.overrides]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    printed = subprocess.run(
        [sys.executable, *launch, *worker],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return Steps(**json.loads(printed.strip().splitlines()[-1]))


def rows(configs: Sequence[str], size: Size, cores: int) -> Iterator[Row]:
    """All measurements."""
    with tqdm(total=len(configs) * len(PROCESSES), desc="outer steps") as bar:
        for config in configs:
            for P in PROCESSES:
                bar.set_postfix_str(f"{config}, {P} processes")
                alone = run(config, 1, size.batch // P, size)
                found = alone if P == 1 else run(config, P, size.batch, size)
                compute = max(1.0, P / cores) * alone.seconds
                bar.update()
                yield Row(
                    config, P, size.batch, found.seconds, compute, found.exchange, found.bytes
                )


def foretold(of_one: dict[int, float], batch: int, P: int, size: int, link: Link) -> float:
    """Seconds of an outer step by P processors.

    Args:
        of_one: those of one, by meta-batch; two of them.
        batch: B.
        P: their number.
        size: bytes of the meta-gradient.
        link: what joins them.
    """
    (small, first), (large, second) = sorted(of_one.items())
    each = (second - first) / (large - small)
    compute = first + each * (batch / P - small)
    ring = 2 * (P - 1) / P * size / link.bandwidth + 2 * (P - 1) * link.latency
    return compute + (ring if P > 1 else 0.0)


def table(found: Sequence[Row]) -> str:
    """What was measured, beside the model."""
    header = [
        "",
        "processes",
        "ms an outer step",
        "foretold",
        "of that exchange",
        "found / foretold",
    ]
    header += ["speed-up"]
    alone = {row.config: row.seconds for row in found if row.processes == 1}
    lines = [
        [
            row.config.removesuffix(".yaml"),
            f"{row.processes}",
            f"{1e3 * row.seconds:.1f}",
            f"{1e3 * row.predicted:.1f}",
            f"{1e3 * row.exchange:.2f}",
            f"{row.seconds / row.predicted:.2f}",
            f"{alone[row.config] / row.seconds:.2f}",
        ]
        for row in found
    ]
    return markdown_table(header, lines)


def foretold_table(found: Sequence[Row]) -> str:
    """What the model says of processors that are not here."""
    header = ["", f"{COUNT} processors", "B", "ms an outer step", "of that exchange", "speed-up"]
    lines = []
    sizes = {row.config: row.bytes for row in found}
    for config, size in sizes.items():
        of_one = OF_ONE_GPU[config]
        for link in LINKS:
            for batch in (1024, COUNT * 1024):
                seconds = foretold(of_one, batch, COUNT, size, link)
                free = foretold(of_one, batch, COUNT, size, Link("", float("inf"), 0.0))
                one = foretold(of_one, batch, 1, size, link)
                lines.append(
                    [
                        config.removesuffix(".yaml"),
                        link.name,
                        f"{batch:,}",
                        f"{1e3 * seconds:.1f}",
                        f"{1e3 * (seconds - free):.2f}",
                        f"{one / seconds:.2f}",
                    ]
                )
    return markdown_table(header, lines)


def main(world: World) -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description="Meta-training by several processes.")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, one outer step")
    arguments = PAGE.parse(parser)
    cores = os.cpu_count() or 1
    found = list(rows(CONFIGS, SMOKE if arguments.smoke else FULL, cores))
    size = found[0].batch
    text = "\n\n".join(
        [
            f"{machine.measure(torch.device('cpu')).lines()}; {cores} cores, {size} trajectories, "
            f"processes of one thread",
            table(found),
            "Foretold, from one H200 and the links that are named:",
            foretold_table(found),
        ]
    )
    PAGE.tell(arguments, text, [asdict(row) for row in found])


if __name__ == "__main__":
    cli.run(main)
