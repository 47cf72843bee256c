"""What teleports of all adapters add to a training step, beside a step of AdamW.

    python -m benchmarks.pairs [--smoke] [--rule NAME] [--device cpu|cuda|cuda:N] [--json FILE]

A transformer of the size of MiniLM (6 layers, 384 wide) whose queries, values and feed-forward
layers have LoRA adapters of rank 16. A step is forward, backward and ``optimizer.step()``. AdamW,
the learned pair and the same pair that stays where it is take their steps in turns of ``PERIOD``,
within which frames are refreshed once and pairs move twice, after the first ``BEFORE`` steps, at
each of which they move; seconds are medians over the turns. The cost of teleports is what the pair
takes more than its updates alone, over all steps.

``--smoke`` takes a small model, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import metaopt
from benchmarks import machine
from benchmarks.ledger import Size, training_step
from benchmarks.timing import Side, compare
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.optim.reach import PastHorizonWarning
from metaopt.tasks.attention_networks import TokenTransformer
from metaopt.tasks.lora_layers import LowRank, adapted
from studies.lora.contenders import without_teleports
from studies.output import add_device

FULL = Size(1, 1, 1, width=384, depth=6, words=32, sequences=32, repeats=3)
SMOKE = Size(1, 1, 1, width=16, depth=1, words=4, sequences=2, repeats=1)
RULE = "lora_update_tele"
BEFORE, PERIOD = 50, 10
ADAPTED = (".q", ".v", ".up", ".down")


def _transformer(size: Size) -> TokenTransformer:
    heads = max(1, size.width // 32)
    return TokenTransformer(size.width, size.words, size.width, heads, size.depth, 10)


@dataclass(frozen=True)
class Costs:
    """Seconds a step, and what is trained."""

    pairs: int
    rank: int
    parameters: int
    adamw: float
    updates: float
    pair: float

    @property
    def teleport(self) -> float:
        """What teleports of all pairs add, in steps of AdamW."""
        return (self.pair - self.updates) / self.adamw


def _several(step: Callable[[], object], count: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(count):
            step()

    return run


def measured(size: Size, rank: int, rule: str, device: torch.device) -> Costs:
    """All three, in turns.

    Args:
        size: of the model, and of the measurement.
        rank: of the adapters.
        rule: the learned pair.
        device: where.
    """
    torch.manual_seed(0)
    models = [
        adapted(_transformer(size), rank, 2.0, lambda path: path.endswith(ADAPTED)).to(device)
        for _ in range(3)
    ]
    factors = [p for p in models[0].parameters() if p.requires_grad]
    updates = without_teleports(metaopt.LearnedOptimizer(models[1], rule))
    pair = metaopt.LearnedOptimizer(models[2], rule)
    assert pair.teleports_off is None
    optimizers = [torch.optim.AdamW(factors, lr=1e-3), updates, pair]
    x = torch.randn(size.sequences, size.words, size.width, device=device)
    sides = {
        name: Side(_several(training_step(model, optimizer, x), PERIOD), PERIOD)
        for name, model, optimizer in zip(
            ("adamw", "updates", "pair"), models, optimizers, strict=True
        )
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PastHorizonWarning)
        for _ in range(BEFORE // PERIOD if size.width > SMOKE.width else 0):
            sides["updates"].run()
            sides["pair"].run()
        seconds = compare(sides, device, size.repeats)
    return Costs(
        pairs=sum(isinstance(one, LowRank) for one in models[0].modules()),
        rank=rank,
        parameters=sum(p.numel() for p in factors),
        **seconds,
    )


def main(world: World) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What teleports of adapters add to a step.")
    parser.add_argument("--smoke", action="store_true", help="a small model")
    parser.add_argument("--rule", default=RULE, help="a learned pair (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    add_device(parser)
    given = parser.parse_args()
    device = cli.device(given.device, world)
    size, rank = (SMOKE, 2) if given.smoke else (FULL, 16)
    found = measured(size, rank, given.rule, device)
    header = ["pairs", "rank", "parameters", "AdamW, ms", "updates, ms", "pair, ms", "a teleport"]
    seconds = (found.adamw, found.updates, found.pair)
    counts = (found.pairs, found.rank, found.parameters)
    cells = [*map(str, counts), *(f"{1e3 * s:.1f}" for s in seconds)]
    row = [*cells, f"{found.teleport:.2f} of a step of AdamW"]
    print(f"{machine.measure(device).lines()}\n\n{markdown_table(header, [row])}")
    if given.json is not None:
        figures = asdict(found) | {"teleport": found.teleport}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
