"""FGE, with teleported starts too, beside SWA, snapshots and independent networks at equal budgets.

A budget is one training. At K budgets a method has K runs of one budget each, and the mean of all
probabilities. Seed s of S has the runs K s to K s + K - 1 of its own; methods share initial weights
and, as long as they train alike, mini-batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import metaopt
from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled
from studies.connectivity.networks import Network
from studies.connectivity.training import Recipe, Stack, Use
from studies.images import Images

BUDGETS = 3
BEFORE = 0.8
"""The share of a budget after which FGE begins."""
LOW = 0.05
"""FGE's low rate, as a share of the high one."""
RATES = (0.01, 0.03, 0.1, 0.3)
HIGHS = (0.1, 0.3, 1.0)
"""FGE's high rate, as a share of the rate of training."""
CYCLES = (3, 6)
"""Members of a run of FGE."""
SNAPSHOTS = (2, 4)
"""Of a run."""
STEEPER = (1.0, 3.0)
"""Rates of snapshots, as shares of the rate of training."""
NORMS = (0.5, 2.0)
"""Of the teleports before FGE's cycles."""
INDEPENDENT = "independent"
METHODS = (INDEPENDENT, "snapshots", "SWA", "FGE", "FGE, teleported")


@dataclass(frozen=True)
class Chosen:
    """What the validation images have decided."""

    rate: float
    snapshot_rate: float = 0.0
    snapshots: int = 0
    high: float = 0.0
    cycles: int = 0
    norm: float = 0.0


class Shuffled:
    """Mini-batches in a new order in each round."""

    def __init__(self, train: Labelled, batch: int, use: Use, run: int) -> None:
        self.train, self.batch = train, batch
        # Runs of FGE have orders of their own, beside those of the training before.
        self._draws = item_generator(Stream.SHARPNESS, use, run)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(self._draws.permutation(len(self.train.y)))
        for rows in order.split(self.batch)[: len(order) // self.batch]:
            yield self.train.X[rows], self.train.y[rows]


@torch.no_grad()
def probabilities(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The mean over networks, in evaluation mode: [N, 10]."""
    return torch.stack([one.eval()(x).softmax(1) for one in networks]).mean(0)


def judged(p: Tensor, y: Tensor) -> dict[str, float]:
    """Error in per cent and mean negative log-likelihood of probabilities [N, 10]."""
    wrong = (p.argmax(1) != y).double().mean()
    return {"error": 100 * float(wrong), "nll": float(functional.nll_loss(p.log(), y))}


class Contest:
    """One network on one data set."""

    def __init__(self, network: Network, images: Images, epochs: int, seeds: int) -> None:
        self.network, self.images, self.seeds = network, images, seeds
        self.recipe = Recipe(epochs, RATES[0])
        self.steps = self.recipe.steps(images.train)
        self.middle = round(BEFORE * self.steps)

    def independent(
        self, use: Use, runs: Sequence[int], rate: float
    ) -> tuple[list[nn.Module], list[tuple[nn.Module, torch.optim.Optimizer]]]:
        """Networks of one budget each, and as they were at ``BEFORE`` with their optimizers."""
        stack = Stack(self.network, self.images.train, use, runs)
        recipe = replace(self.recipe, rate=rate)
        (early,) = stack.run(recipe, [self.middle])
        started = [(one, stack.optimizer_of(i, one)) for i, one in enumerate(early)]
        (late,) = stack.run(recipe, [self.steps])
        return late, started

    def snapshots(
        self, use: Use, runs: Sequence[int], rate: float, count: int
    ) -> list[list[nn.Module]]:
        """Networks at the ends of the cosines of each run, [runs, count]."""
        stack = Stack(self.network, self.images.train, use, runs)
        marks = [round((i + 1) / count * self.steps) for i in range(count)]
        by_mark = stack.run(replace(self.recipe, rate=rate, restarts=count), marks)
        return [list(one) for one in zip(*by_mark, strict=True)]

    def fge(
        self,
        use: Use,
        runs: Sequence[int],
        started: Sequence[tuple[nn.Module, torch.optim.Optimizer]],
        chosen: Chosen,
    ) -> list[metaopt.Ensemble]:
        """The ensemble of each run, from where ``independent`` was at ``BEFORE``."""
        # No more steps than are left of the budget; the last half cycle is not run.
        cycle = 2 * int((self.steps - self.middle) / (chosen.cycles - 0.5) / 2)
        found = []
        for run, (early, optimizer) in zip(runs, started, strict=True):
            network, own = copied(early, optimizer)
            found.append(
                metaopt.fge(
                    network,
                    own,
                    Shuffled(self.images.train, self.recipe.batch, use, run),
                    max(cycle, 2),
                    (chosen.high, LOW * chosen.high),
                    loss=functional.cross_entropy,
                    cycles=chosen.cycles,
                    teleport=chosen.norm or None,
                    seed=run,
                )
            )
        return found

    def tuned(self, runs: Sequence[int]) -> dict[str, Any]:
        """Rates and counts by the mean loss of single runs on the validation images."""
        use, images = Use.RIVALS_TUNING, self.images.validation

        def loss(ensembles: Sequence[Sequence[nn.Module]]) -> float:
            of = [judged(probabilities(one, images.X), images.y)["nll"] for one in ensembles]
            return sum(of) / len(of)

        tried: dict[str, dict[str, float]] = {name: {} for name in METHODS if name != "SWA"}
        starts = {}
        for rate in RATES:
            late, starts[rate] = self.independent(use, runs, rate)
            tried[INDEPENDENT][f"{rate:g}"] = loss([[one] for one in late])
        rate = float(best(tried[INDEPENDENT]))
        for share in STEEPER:
            for count in SNAPSHOTS:
                found = self.snapshots(use, runs, share * rate, count)
                tried["snapshots"][f"{share * rate:g} {count}"] = loss(found)
        steep, snapshots = best(tried["snapshots"]).split()
        for share in HIGHS:
            for cycles in CYCLES:
                option = Chosen(rate, high=share * rate, cycles=cycles)
                tried["FGE"][f"{option.high:g} {cycles}"] = loss(
                    [members(one) for one in self.fge(use, runs, starts[rate], option)]
                )
        high, parts = best(tried["FGE"]).split()
        chosen = Chosen(rate, float(steep), int(snapshots), float(high), int(parts))
        for norm in NORMS:
            moved = self.fge(use, runs, starts[rate], replace(chosen, norm=norm))
            tried["FGE, teleported"][f"{norm:g}"] = loss([members(one) for one in moved])
        norm = float(best(tried["FGE, teleported"]))
        return {"chosen": vars(replace(chosen, norm=norm)), "tried": tried}

    def run(self, chosen: Chosen) -> dict[str, Any]:
        """Error and loss on the test images at 1, 2, .. budgets, [budgets, seeds], by method."""
        runs = range(self.seeds * BUDGETS)
        networks: dict[str, list[list[nn.Module]]] = {}
        with tqdm(total=4, desc=f"{self.network.name}, methods", leave=False) as bar:
            late, started = self.independent(Use.RIVALS, runs, chosen.rate)
            networks[INDEPENDENT] = [[one] for one in late]
            bar.update()
            networks["snapshots"] = self.snapshots(
                Use.RIVALS, runs, chosen.snapshot_rate, chosen.snapshots
            )
            bar.update()
            plain = self.fge(Use.RIVALS, runs, started, replace(chosen, norm=0.0))
            networks["SWA"] = [[one.averaged] for one in plain]
            networks["FGE"] = [members(one) for one in plain]
            bar.update()
            moved = self.fge(Use.RIVALS, runs, started, chosen)
            networks["FGE, teleported"] = [members(one) for one in moved]
            bar.update()
        return {name: self._judged(networks[name]) for name in METHODS}

    def _judged(self, networks: list[list[nn.Module]]) -> dict[str, Any]:
        test = self.images.test
        single = [judged(probabilities([m], test.X), test.y)["error"] for r in networks for m in r]
        each = torch.stack([probabilities(one, test.X) for one in networks])
        each = each.view(self.seeds, BUDGETS, *each.shape[1:])
        found: dict[str, Any] = {"members": len(networks[0]), "error": [], "nll": []}
        found["alone"] = sum(single) / len(single)
        for budgets in range(1, BUDGETS + 1):
            said = [judged(one[:budgets].mean(0), test.y) for one in each]
            for key in ("error", "nll"):
                found[key].append([one[key] for one in said])
        return found


def best(tried: dict[str, float]) -> str:
    """What has the smallest loss."""
    return min(tried, key=lambda name: tried[name])


def members(ensemble: metaopt.Ensemble) -> list[nn.Module]:
    """Each by itself."""
    return [ensemble.model(i) for i in range(len(ensemble))]


def copied(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and its SGD, of which the originals are left as they are."""
    other = copy.deepcopy(network)
    group = optimizer.param_groups[0]
    own = torch.optim.SGD(other.parameters(), group["lr"])
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, own
