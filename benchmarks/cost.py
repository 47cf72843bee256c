"""What meta-training costs: time and memory against each size of the problem.

    python -m benchmarks.cost [--device cpu|cuda|cuda:N] [--json FILE]
                              [--plot docs/results/cost.png]

For the flattened pair (``configs/lstm_update_tele.yaml``) and the coordinate-wise one: seconds for
an inner step of one trajectory (a whole outer step over its inner steps and trajectories) and peak
memory, against

- width of the optimizee's hidden layers (``task.width``, 10 to 200),
- length of the truncation window (``meta.unroll``),
- trajectories side by side (``meta.batch``),
- layers of the optimizee (``task.layers``),
- steps of a trajectory (``meta.steps``) at a fixed window, where memory stays the same: a whole
  trajectory is run.

All other sizes are those of the configurations, at meta-batch 16. What would take over 60 s or 4 GB
is left out by name. Times are medians over 3 repeats after a warm-up, of one window or of a whole
trajectory; memory as in ``benchmarks.memory``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.sweep import Piece, Row, Work, sweep
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from studies.output import add_device, add_json, write_json

CONFIGS = ("lstm_update_tele.yaml", "coordinate_update_tele.yaml")
BATCH = 16


@dataclass(frozen=True)
class Axis:
    """One size that is varied."""

    field: str  # of the configuration
    name: str  # on the plot
    values: tuple[int, ...]  # ascending
    power: float = 1.0  # costs grow at most like this power of the size
    whole: bool = False  # run whole trajectories instead of a window


AXES = (
    Axis("task.width", "width", (10, 20, 50, 100, 200), power=2.0),
    Axis("meta.unroll", "window length", (5, 10, 20, 50, 100)),
    Axis("meta.batch", "meta-batch", (1, 4, 16, 64, 256)),
    Axis("task.layers", "layers", (2, 3, 4, 6, 8)),
    Axis("meta.steps", "steps of a trajectory", (50, 100, 200, 400), whole=True),
)


@dataclass(frozen=True)
class Point:
    """One size of one configuration: what was varied, and what the sweep found."""

    config: str
    field: str
    row: Row

    @property
    def step_seconds(self) -> float:
        """For an inner step of one trajectory."""
        return self.row.seconds / self.row.steps


def points(config: str, axis: Axis, device: torch.device, batch: int = BATCH) -> Iterator[Point]:
    """Along one axis, ascending, as far as the limits go."""
    pieces = [piece(config, axis, value, batch) for value in axis.values]
    for row in sweep(pieces, device, axis.power, budget=0):
        yield Point(config, axis.field, row)


def piece(config: str, axis: Axis, value: int, batch: int) -> Piece:
    """One size: a window, or a whole trajectory."""
    work = Work(config, "meta-training", batch, (f"{axis.field}={value}",))
    if axis.field == "meta.batch":
        work = Work(config, "meta-training", value)
    return Piece(value, work, work.windows_of_trajectory if axis.whole else 1)


def table(found: Sequence[Point]) -> str:
    """For people."""
    rows = []
    for point in found:
        figures = [f"{1e6 * point.step_seconds:.1f}", f"{point.row.peak_bytes / 1e6:.0f}"]
        if point.row.left_out is not None:
            figures = [f"left out: {point.row.left_out}", ""]
        name = point.config.removesuffix(".yaml")
        rows.append([name, point.field, str(point.row.size), *figures])
    return markdown_table(["configuration", "size", "value", "us a step", "peak MB"], rows)


def plot(found: Sequence[Point], path: Path) -> None:
    """Time above, memory below, a column a size; logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(AXES), figsize=(3 * len(AXES), 5.5), sharex="col", sharey="row", squeeze=False
    )
    for column, axis in enumerate(AXES):
        for config in dict.fromkeys(point.config for point in found):
            own = [
                (point.row.size, 1e6 * point.step_seconds, point.row.peak_bytes / 1e6)
                for point in found
                if (point.config, point.field, point.row.left_out) == (config, axis.field, None)
            ]
            label = config.removesuffix(".yaml")
            for row, values in enumerate(([o[1] for o in own], [o[2] for o in own])):
                panels[row, column].plot([o[0] for o in own], values, marker="o", label=label)
        for row in range(2):
            panels[row, column].set_xscale("log")
            panels[row, column].set_yscale("log")
            panels[row, column].grid(visible=True, which="major", alpha=0.3)
        ticks = list(axis.values)
        panels[1, column].set_xticks(ticks, list(map(str, ticks)))
        panels[1, column].minorticks_off()
        panels[1, column].set_xlabel(axis.name)
    panels[0, 0].set_ylabel("us a step of one trajectory")
    panels[1, 0].set_ylabel("peak memory, MB")
    panels[0, 0].legend(fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(world: World) -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description="Cost curves of meta-training.")
    add_device(parser)
    add_json(parser)
    parser.add_argument("--plot", type=Path, default=Path("docs/results/cost.png"), metavar="FILE")
    arguments = parser.parse_args()
    device = cli.device(arguments.device, world)
    found: list[Point] = []
    for axis in AXES:
        for config in CONFIGS:
            found += points(config, axis, device)
            print(f"measured: {axis.name} of {config}", file=sys.stderr, flush=True)
    print(f"\n{table(found)}")
    plot(found, arguments.plot)
    print(f"plot in {arguments.plot}")
    if arguments.json is not None:
        rows = [asdict(one) | {"step_seconds": one.step_seconds} for one in found]
        write_json(arguments.json, rows)


if __name__ == "__main__":
    cli.run(main)
