"""What a step of the learned optimizer costs in a user's loop, beside what else one would take.

    python -m benchmarks.drop_in [--smoke] [--device cpu|cuda|cuda:N] [--json FILE] [--write-page]

On two models of about a million parameters: a two-layer perceptron with biases, where hidden units
alone can be scaled (as the layer-wise pair does), and the same without biases, a chain that allows
teleports through the data (as the coordinate-wise pair does); and on a network of three layers and
about 12,000. Each optimizer takes ``step()`` on gradients that are there already:

- seconds, medians and means over rounds in which each optimizer has its turn, after some to warm
  up, and those of the model's own forward and backward pass beside them. On the first and on the
  last of the models the default rule stands beside AdamW, and SOAP, Schedule-Free AdamW and Muon
  where ``pytorch-optimizer`` is installed; SOAP and the default rule do more at every tenth step,
  so that these take whole tens of rounds, and the mean says what training costs;
- bytes of state for a parameter, which stay between steps;
- bytes for a parameter that the largest step takes beyond that while it runs, as in
  ``benchmarks.memory``.

The cost of a teleport is the row of a pair less that of the same update rule alone. It is paid at
every step that teleports.

``--write-page`` puts the table into ``docs/results/speed.md``; ``--smoke`` takes models of a few
hundred parameters, to see that it works.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn

from benchmarks import drop_in_rivals, machine
from benchmarks.memory import in_use, peak_bytes
from benchmarks.timing import Side, in_turns
from metaopt import LearnedOptimizer, LearnedRule
from metaopt.base import cli
from metaopt.base.process import World
from metaopt.base.tables import markdown_table
from metaopt.optim import learned
from metaopt.rules.composed import MetaOptimizer
from studies.drop_in_training import SIDE, perceptron
from studies.output import DOCS, PRETRAINED, Page, add_device
from studies.rivals.training import tensors

PAGE = Page(DOCS / "speed.md", "drop-in table", "drop_in")
ALONE = ", its updates alone"
LR = 1e-4
"""Small, since gradients stay the same."""
FIRST = "two layers with biases"
SMALL = "three layers, 64-100-50-10"
REFRESHED = 10
"""Steps in which every optimizer has done once what it does now and then."""
Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Size:
    """Of the models, and of the measurement."""

    inputs: int  # of the first layer, and outputs of the last
    hidden: int  # units
    samples: int  # in the batch; at most as many as inputs
    repeats: int  # rounds
    warm_up: int  # steps before


FULL = Size(inputs=512, hidden=1024, samples=256, repeats=2 * REFRESHED, warm_up=REFRESHED)
SMOKE = Size(inputs=12, hidden=16, samples=8, repeats=1, warm_up=1)


@dataclass(frozen=True)
class Row:
    """One optimizer on one model."""

    model: str  # its name
    optimizer: str  # its name, or what else was measured
    parameters: int  # of the model
    seconds: float  # for a step, the median
    mean: float  # of the same, in seconds
    state_bytes: int  # between steps
    peak_bytes: int  # beyond that, within a step


class Trained:
    """A model with gradients, and an optimizer made for it.

    Args:
        network: makes the model.
        inputs: of it.
        samples: in the batch.
        make: the optimizer for a model.
        device: where it is.
    """

    def __init__(
        self,
        network: Callable[[], nn.Module],
        inputs: int,
        samples: int,
        make: Make,
        device: torch.device,
    ) -> None:
        torch.manual_seed(0)
        self.model = network().to(device)
        self.x = torch.randn(samples, inputs, device=device)
        self.optimizer = make(self.model)
        self.evaluate()

    def evaluate(self) -> None:
        """One forward and backward pass."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def state_bytes(self) -> int:
        """Of all tensors in the optimizer's state."""
        states = self.optimizer.state.values()
        return sum(tensor.nbytes for state in states for tensor in tensors(state))


def two_layers(size: Size, bias: bool) -> nn.Module:
    """Of a size, with biases or without."""
    return nn.Sequential(
        nn.Linear(size.inputs, size.hidden, bias=bias),
        nn.LeakyReLU(0.1),
        nn.Linear(size.hidden, size.inputs, bias=bias),
    )


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The yardstick."""
    return torch.optim.Adam(model.parameters(), lr=LR)


def learned_by(rule: LearnedRule) -> Make:
    """The learned optimizer of a rule."""
    return lambda model: LearnedOptimizer(model, rule, lr=LR, full_batch=True)


def updates_of(rule: LearnedRule) -> LearnedRule:
    """The update rule of a pair alone."""
    alone = MetaOptimizer({"update": rule.optimizer.rules["update"]}, None)
    return LearnedRule(alone, rule.config)


def _both(name: str) -> dict[str, Make]:
    """A shipped pair, after its update rule alone."""
    pair = learned.load(PRETRAINED / f"{name}.safetensors")
    return {
        f"{pair.name}{ALONE}": learned_by(updates_of(pair)),
        pair.name: learned_by(pair),
    }


def rows(size: Size, device: torch.device) -> list[Row]:
    """All measurements, a model after the other."""
    update = learned.load(PRETRAINED / "coordinate_update.safetensors")
    rivals = drop_in_rivals.makers(LR)
    with_biases, chain = partial(two_layers, size, True), partial(two_layers, size, False)
    of_first = {
        "Adam": adam,
        update.name: learned_by(update),
        **_both("digits_update_tele"),
        **rivals,
    }
    of_chain = {"Adam": adam, **_both("coordinate_update_tele")}
    of_models: list[tuple[str, Callable[[], nn.Module], int, dict[str, Make]]] = [
        (FIRST, with_biases, size.inputs, of_first),
        ("chain", chain, size.inputs, of_chain),
        (SMALL, perceptron, SIDE**2, {"Adam": adam, **rivals}),
    ]
    found = []
    for model, network, inputs, makers in of_models:
        trained = {
            name: Trained(network, inputs, size.samples, make, device)
            for name, make in makers.items()
        }
        found += _of_model(model, trained, device, size)
    return found


def _of_model(
    model: str, trained: dict[str, Trained], device: torch.device, size: Size
) -> list[Row]:
    passes = "forward and backward"
    sides = {name: Side(one.optimizer.step, 1.0) for name, one in trained.items()}
    first = next(iter(trained.values()))
    each = {passes: Side(first.evaluate, 1.0), **sides}
    rounds = in_turns(each, device, size.repeats, size.warm_up)
    times = {name: (statistics.median(own), statistics.fmean(own)) for name, own in rounds.items()}
    found = [Row(model, passes, first.parameters, *times[passes], 0, 0)]
    for name, one in trained.items():
        # As many steps as were warmed up: the largest of them counts.
        steps = partial(take, one.optimizer, size.warm_up)
        peak, _ = peak_bytes(steps, device, in_use(device))
        found.append(Row(model, name, one.parameters, *times[name], one.state_bytes, max(peak, 0)))
    return found


def take(optimizer: torch.optim.Optimizer, count: int) -> None:
    """So many steps."""
    for _ in range(count):
        optimizer.step()


def table(found: Sequence[Row]) -> str:
    """For people."""
    adams = {row.model: row.seconds for row in found if row.optimizer == "Adam"}
    header = ["model", "parameters", "", "ms a step", "mean", "times Adam", "state B", "peak B"]
    lines = [
        [
            row.model,
            f"{row.parameters:,}",
            row.optimizer,
            f"{1e3 * row.seconds:.3g}",
            f"{1e3 * row.mean:.3g}",
            f"{row.seconds / adams[row.model]:.3g}",
            f"{row.state_bytes / row.parameters:.0f}",
            f"{row.peak_bytes / row.parameters:.0f}",
        ]
        for row in found
    ]
    by_name = {row.optimizer: row for row in found}
    teleports = [
        _of_teleport(alone, by_name[name.removesuffix(ALONE)])
        for name, alone in by_name.items()
        if name.endswith(ALONE)
    ]
    return "\n\n".join([markdown_table(header, lines), *teleports])


def _of_teleport(alone: Row, pair: Row) -> str:
    """What a pair costs beyond its updates."""
    state = (pair.state_bytes - alone.state_bytes) / pair.parameters
    return (
        f"A teleport of {pair.optimizer}: {1e3 * (pair.seconds - alone.seconds):.3g} ms and "
        f"{state:.2g} bytes of state for a parameter of the model, beyond the updates."
    )


def main(world: World) -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description="The cost of a step beside Adam's.")
    parser.add_argument("--smoke", action="store_true", help="tiny models")
    add_device(parser)
    arguments = PAGE.parse(parser)
    device = cli.device(arguments.device, world)
    found = rows(SMOKE if arguments.smoke else FULL, device)
    text = f"{machine.measure(device).lines()}; bytes are for a parameter\n\n{table(found)}"
    PAGE.tell(arguments, text, [asdict(row) for row in found])


if __name__ == "__main__":
    cli.run(main)
