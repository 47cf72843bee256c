"""What a step of the default rule costs from ten thousand parameters to a hundred million.

    python -m benchmarks.drop_in_sizes [--smoke] [--most N] [--device cpu|cuda|cuda:N]
                                       [--json FILE] [--write-page]

Networks of four square layers with ReLU between. In each, the default rule, the layer-wise pair
(``digits_update_tele``) and what one would take instead have their turns with AdamW (``foreach``)
two by two, so that what else the machine does falls on both; a ratio is of the means over the same
rounds, whole tens of them, since SOAP and the default rule do more at every tenth step. Bytes of
state and those beyond it are for a parameter, as in ``benchmarks.drop_in``.

What would take over ``LIMIT`` seconds, by the size before it, is left out by name. ``--most`` stops
at so many parameters.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import drop_in_rivals, machine
from benchmarks.drop_in import LR, REFRESHED, Make, Trained, learned_by, take
from benchmarks.drop_in_rivals import ADAMW
from benchmarks.memory import in_use, peak_bytes
from benchmarks.timing import Side, in_turns
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.optim import learned
from studies.output import DOCS, PRETRAINED, Page, add_device

PAGE = Page(DOCS / "speed.md", "size table", "drop_in_sizes")
LAYERS = 4
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
SMALL = (256, 1024)
SAMPLES = 32
LIMIT = 300.0
"""Seconds that the rounds of one optimizer may take."""
POWER = 1.5
"""Products of square matrices grow at most like this power of their entries."""
PAIR = "digits_update_tele"


@dataclass(frozen=True)
class Row:
    """One optimizer at one size."""

    size: int  # parameters that were asked for
    optimizer: str
    parameters: int = 0  # of the network
    seconds: float = 0.0  # for a step, the mean
    times: float = 0.0  # those of AdamW in the same rounds
    state_bytes: float = 0.0  # between steps, for a parameter
    peak_bytes: float = 0.0  # beyond that, within a step
    left_out: str | None = None  # why there are no figures


def width_of(size: int) -> int:
    """Of layers that have about so many parameters together."""
    return round(math.sqrt(size / LAYERS))


def square(width: int) -> nn.Module:
    """Four layers of that width."""
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(width, width, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def makers() -> dict[str, Make]:
    """By name, AdamW first."""
    pair = learned.load(PRETRAINED / f"{PAIR}.safetensors")
    return {**drop_in_rivals.makers(LR), PAIR: learned_by(pair)}


def too_long(smaller: Row | None, size: int, steps: int) -> str | None:
    """Why a size is left out, or None.

    Args:
        smaller: the row of the size before, of the same optimizer.
        size: parameters.
        steps: that would be taken in all.
    """
    if smaller is None:
        return None
    if smaller.left_out is not None:
        return "left out as the size before"
    wanted = smaller.seconds * (size / smaller.size) ** POWER * steps
    return f"would take about {wanted:.0f} s" if wanted > LIMIT else None


def measured(size: int, name: str, make: Make, device: torch.device, rounds: int) -> Row:
    """One optimizer at one size, in turns with AdamW."""
    inputs = width_of(size)
    network = partial(square, inputs)
    one = Trained(network, inputs, SAMPLES, make, device)
    sides = {name: Side(one.optimizer.step, 1.0)}
    if name != ADAMW:
        other = Trained(network, inputs, SAMPLES, partial(drop_in_rivals.adamw, LR), device)
        sides[ADAMW] = Side(other.optimizer.step, 1.0)
    taken = in_turns(sides, device, rounds, rounds)
    means = {side: statistics.fmean(own) for side, own in taken.items()}
    peak, _ = peak_bytes(partial(take, one.optimizer, rounds), device, in_use(device))
    return Row(
        size,
        name,
        one.parameters,
        means[name],
        means[name] / means[ADAMW],
        one.state_bytes / one.parameters,
        max(peak, 0) / one.parameters,
    )


def rows(sizes: Sequence[int], device: torch.device, rounds: int = REFRESHED) -> Iterator[Row]:
    """All measurements, the smallest networks first."""
    last: dict[str, Row] = {}
    optimizers = makers()
    with tqdm(total=len(sizes) * len(optimizers), desc="steps") as bar:
        for size in sizes:
            for name, make in optimizers.items():
                bar.set_postfix_str(f"{name}, {size:,} parameters")
                reason = too_long(last.get(name), size, 3 * rounds)
                found = (
                    measured(size, name, make, device, rounds)
                    if reason is None
                    else Row(size, name, left_out=reason)
                )
                last[name] = found
                bar.update()
                yield found


def table(found: Sequence[Row]) -> str:
    """For people."""
    header = ["parameters", "", "ms a step", "times AdamW", "state B", "beyond it B"]
    lines = []
    for row in found:
        figures = (
            [row.left_out, "", "", ""]
            if row.left_out is not None
            else [
                f"{1e3 * row.seconds:.3g}",
                f"{row.times:.3g}",
                f"{row.state_bytes:.1f}",
                f"{row.peak_bytes:.0f}",
            ]
        )
        lines.append([f"{row.parameters or row.size:,}", row.optimizer, *figures])
    return markdown_table(header, lines)


def main(world: World) -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description="The cost of a step by size.")
    parser.add_argument("--smoke", action="store_true", help="tiny models")
    parser.add_argument("--most", type=cli.positive, default=SIZES[-1], metavar="N")
    add_device(parser)
    arguments = PAGE.parse(parser)
    device = cli.device(arguments.device, world)
    sizes = SMALL if arguments.smoke else tuple(n for n in SIZES if n <= arguments.most)
    found = list(rows(sizes, device, 1 if arguments.smoke else REFRESHED))
    text = f"{machine.measure(device).lines()}; bytes are for a parameter\n\n{table(found)}"
    PAGE.tell(arguments, text, [asdict(row) for row in found])


if __name__ == "__main__":
    cli.run(main)
