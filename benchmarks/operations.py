"""How many operations of torch a step of each shipped recipe takes: a number, and no time.

    python -m benchmarks.operations [--write] [--json FILE]

On networks of a few thousand weights a step is as fast as Python launches its operations, whatever
the machine. Counted are all that torch's dispatcher runs, forward and backward, but for views,
which compute nothing and which versions of torch make more or fewer of:

- meta-training: the second outer step of each configuration, a window of ten inner steps of two
  trajectories on the first of its task families, its backward pass, the clip and Adam;
- drop-in: ten steps of ``LearnedOptimizer`` by each learned optimizer, after some to warm up, on a
  network of two layers of 20 by 20, given gradients and losses.

Counts are divided by ten. ``operations.json`` holds what was counted when it was last written; a
test fails where a recipe takes more than 5 % over that. ``--write`` counts anew and writes it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from metaopt import LearnedOptimizer, load
from metaopt.base import cli, config, shipped
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.teleport.config import LINEAR_PAIRS
from studies.output import add_json, write_json

RECORDED = Path(__file__).with_name("operations.json")
RENEWED = "python -m benchmarks.operations --write"
ALLOWED = 0.05
"""By how much of it a count may grow."""
STEPS = 10
"""The rules that do something now and then do it once in as many steps."""
WARM_UP = 5
WIDTH, SAMPLES = 20, 10
SMALL = (
    "meta.compile=never",
    "meta.batch=2",
    "meta.horizon={kind: fixed}",
    "meta.truncation=even",
    f"meta.steps={2 * STEPS}",
    f"meta.unroll={STEPS}",
    "task.more=null",
    "validation.tasks=1",
)
TRAINING, DROP_IN = "meta-training", "drop-in"


class Counter(TorchDispatchMode):
    """Within the context, counts the operations that are no views.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and run it."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def of_training(name: str) -> float:
    """Operations of an outer step, for each of its inner steps.

    Args:
        name: of a shipped configuration.
    """
    trainer = MetaTrainer(config.load(TrainConfig, name, SMALL), torch.device("cpu"))
    # The first one also draws tasks, and computes what depends on them alone.
    trainer.outer_step()
    with Counter() as counter:
        trainer.outer_step()
    return counter.count / STEPS


def network(pairs: bool) -> nn.Module:
    """Two layers without biases, with nothing between them where linear pairs are wanted."""
    torch.manual_seed(0)
    first, last = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
    return nn.Sequential(first, last) if pairs else nn.Sequential(first, nn.LeakyReLU(0.1), last)


def of_drop_in(name: str) -> float:
    """Operations of a step of ``LearnedOptimizer``, with gradients and a loss that are there.

    Args:
        name: of a shipped optimizer.
    """
    rule = load(name)
    moved = rule.config.teleporter
    model = network(pairs=moved is not None and moved.action == LINEAR_PAIRS)
    optimizer = LearnedOptimizer(model, rule, full_batch=True)
    x = torch.rand(SAMPLES, WIDTH)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found: Tensor = model(x).square().mean()
        found.backward()
        return found.detach()

    def count() -> int:
        found = loss()
        with Counter() as counter:
            optimizer.step(lambda: found)
        return counter.count

    for _ in range(WARM_UP):
        count()
    return sum(count() for _ in range(STEPS)) / STEPS


def recipes() -> dict[str, Callable[[], float]]:
    """What counts the operations of each shipped recipe, by ``what: name``."""
    trained = [
        name.removesuffix(".yaml")
        for name in shipped.configurations()
        if not name.startswith(("eval", "study"))
    ]
    kept = [path.stem for path in shipped.optimizers()]
    counts: dict[str, Callable[[], float]] = {}
    for what, names, count in ((TRAINING, trained, of_training), (DROP_IN, kept, of_drop_in)):
        for name in names:
            counts[f"{what}: {name}"] = partial(count, name)
    return counts


def recorded() -> dict[str, float]:
    """Operations a step of each recipe, as they were last written."""
    found: dict[str, float] = json.loads(RECORDED.read_text(encoding="utf-8"))["operations"]
    return found


def grown(recipe: str, found: float, before: float | None) -> str | None:
    """One line that says by how much a recipe takes too many operations, or None.

    Args:
        recipe: its name.
        found: operations a step.
        before: those that were recorded; None if there are none.
    """
    renewed = f"where that is meant, {RENEWED} records it"
    if before is None:
        return f"{recipe}: {found:g} operations a step, and none are recorded; {renewed}"
    if found <= (1 + ALLOWED) * before:
        return None
    return (
        f"{recipe}: from {before:g} operations a step to {found:g} ({found / before - 1:+.1%}, "
        f"allowed is {ALLOWED:+.0%}); {renewed}"
    )


def table(found: Mapping[str, float], before: Mapping[str, float]) -> str:
    """For people."""
    lines = []
    for recipe, count in found.items():
        old = before.get(recipe)
        kept = ["", ""] if old is None else [f"{old:g}", f"{count / old - 1:+.1%}"]
        lines.append([recipe, f"{count:g}", *kept])
    return markdown_table(["recipe", "operations a step", "recorded", "change"], lines)


def main(world: World) -> None:
    """Count, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"record in {RECORDED.name}")
    add_json(parser)
    arguments = parser.parse_args()
    before = recorded() if RECORDED.exists() else {}
    found = {
        recipe: count() for recipe, count in tqdm(recipes().items(), desc="counting", leave=False)
    }
    print(table(found, before))
    for recipe, count in found.items():
        if not arguments.write and (line := grown(recipe, count, before.get(recipe))) is not None:
            print(line)
    content = {"torch": torch.__version__, "operations": found}
    if arguments.write:
        write_json(RECORDED, content)
    if arguments.json is not None:
        write_json(arguments.json, content)


if __name__ == "__main__":
    cli.run(main)
