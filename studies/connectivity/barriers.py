"""What lies between two trained networks: the chord before and after alignments, the bend, orbits.

    barrier = max over t of  L(t) - (1 - t) L(0) - t L(1)

Of the mean training loss, and of the test error in per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import metaopt
from metaopt import Symmetry
from metaopt.landscape.between.align_report import AlignReport
from metaopt.landscape.between.align_sides import Shift
from metaopt.landscape.between.group_paths import path_to
from metaopt.landscape.between.symmetry_curve import SymmetryCurve
from metaopt.landscape.between.weight_curve import WeightCurve
from metaopt.symmetry.elements import Element
from metaopt.symmetry.groups import Group
from metaopt.tasks.datasets import Labelled
from studies.connectivity.networks import Network
from studies.connectivity.training import MOMENTUM, Recipe, Use, ends
from studies.images import Images

CHORD = "chord"
CONTINUOUS = "continuous symmetries"
WEIGHTS = "permutations, by weights"
ACTIVATIONS = "permutations, by activations"
ORBIT = "all symmetries"
BEND = "bend"
PATHS = (CHORD, CONTINUOUS, WEIGHTS, ACTIVATIONS, ORBIT, BEND)
BEND_RATES = (0.1, 0.3)
"""First rates of a bend that are tried."""
LONGER = 2
"""Steps of a bend, as multiples of those of an end."""


CURVE_POINTS = 9
"""Of a curve of symmetry."""


@dataclass(frozen=True)
class Measuring:
    """Where and on what a path is looked at."""

    points: int = 11
    bend_points: int = 21
    shown: int = 1000
    """Training images of a loss."""
    statistics: int = 500
    """Training images of BatchNorm's statistics."""


def some(data: Labelled, count: int) -> tuple[Tensor, Tensor]:
    """The first images and their labels."""
    return data.X[:count], data.y[:count]


def barrier(values: Tensor) -> float:
    """max over t of f(t) - (1 - t) f(0) - t f(1), of equally spaced t."""
    t = torch.linspace(0, 1, len(values), dtype=values.dtype)
    return float((values - (1 - t) * values[0] - t * values[-1]).max())


@dataclass(frozen=True, eq=False)
class _Straight:
    """The path of a translation."""

    g: Shift

    def at(self, t: float) -> Element:
        return Shift({path: t * v for path, v in self.g.given.items()}, self.g.path)


class Between:
    """Paths of one network on one data set."""

    def __init__(self, network: Network, images: Images, measuring: Measuring) -> None:
        self.network, self.images, self.measuring = network, images, measuring
        self.around = some(images.train, measuring.shown)
        example = images.train.X[:8]
        model = network.build(example.shape[1], network.width).eval()
        self.symmetries = list(metaopt.symmetries(model, example, permutations=True))

    def told(self, curve: WeightCurve, points: int) -> dict[str, Any]:
        """Training loss and test error in per cent along a curve, with their barriers."""
        statistics = some(self.images.train, self.measuring.statistics)
        train = curve.evaluate(self.around, points, statistics=statistics)
        test = self.images.test
        error = 100 * curve.evaluate((test.X, test.y), points, statistics=statistics).error
        return {
            "loss": rounded(train.loss),
            "error": rounded(error),
            "barrier": barrier(train.loss),
            "error barrier": barrier(error),
            "length": train.length,
        }

    def chord(self, a: nn.Module, b: nn.Module) -> dict[str, Any]:
        """The straight line."""
        curve = metaopt.connect([a, b], bends=0, loss=functional.cross_entropy, data=self.around)
        return self.told(curve, self.measuring.points)

    def bend(
        self, a: nn.Module, b: nn.Module, recipe: Recipe, rate: float, seed: int
    ) -> metaopt.Curve:
        """The Bezier curve with one bend, with the penalty of the ends."""
        train = self.images.train
        return metaopt.connect(
            [a, b],
            loss=functional.cross_entropy,
            data=(train.X, train.y),
            batch_size=recipe.batch,
            steps=LONGER * recipe.steps(train),
            lr=rate,
            momentum=MOMENTUM,
            weight_decay=recipe.decay,
            seed=seed,
        )

    def only(self, permutations: bool) -> list[Symmetry]:
        """The permutations among the symmetries, or all others."""
        return [s for s in self.symmetries if (s.group is Group.PERMUTATION) == permutations]

    def bend_rate(self, a: nn.Module, b: nn.Module, recipe: Recipe) -> dict[str, Any]:
        """The rate whose bend has the smallest mean loss on the validation images."""
        validation = self.images.validation
        statistics = some(self.images.train, self.measuring.statistics)
        tried = {}
        for rate in BEND_RATES:
            curve = self.bend(a, b, recipe, rate, 0)
            report = curve.evaluate(
                (validation.X, validation.y), self.measuring.points, statistics=statistics
            )
            tried[f"{rate:g}"] = report.summary().mean
        return best_of(tried)

    def pair(
        self, a: nn.Module, b: nn.Module, recipe: Recipe, rate: float, seed: int
    ) -> dict[str, Any]:
        """All paths from a to b, the bend trained at a rate."""
        for one in (a, b):
            metaopt.refresh_batchnorm(one.eval(), some(self.images.train, len(self.images.train.y)))
        found = {CHORD: self.chord(a, b)}
        ways: dict[str, tuple[Any, list[Symmetry]]] = {
            CONTINUOUS: ("orbit", self.only(permutations=False)),
            WEIGHTS: ("weights", self.only(permutations=True)),
            ACTIVATIONS: ("activations", self.only(permutations=True)),
            ORBIT: ("orbit", self.symmetries),
        }
        for name, (by, symmetries) in ways.items():
            moved, report = metaopt.align(a, b, by, data=self.around, symmetries=symmetries)
            found[name] = self.chord(a, moved) | {"drift": report.drift}
            if name == CONTINUOUS:
                found[name] |= self.orbit(b, moved, report)
        bend = self.bend(a, b, recipe, rate, seed)
        found[BEND] = self.told(bend, self.measuring.bend_points)
        return found

    def orbit(self, b: nn.Module, moved: nn.Module, report: AlignReport) -> dict[str, Any]:
        """The curve of symmetry from b to where the continuous groups have moved it.

        Its loss is constant, so that it is one path to a with the chord behind it. Nothing if no
        such curve exists: an element of a negative determinant.
        """
        try:
            paths = [
                (s, _Straight(g) if isinstance(g, Shift) else path_to(s, g))
                for s, g in report.steps
            ]
        except ValueError:
            return {}
        curve = SymmetryCurve(b, paths, functional.cross_entropy)
        along = curve.evaluate(self.around, CURVE_POINTS, statistics=self.around)
        end, wanted = curve.weights(1.0), dict(moved.named_parameters())
        off = sum(float((end[path] - wanted[path]).detach().square().sum()) for path in end)
        start = dict(b.named_parameters())
        far = sum(float((end[path] - start[path]).detach().square().sum()) for path in end)
        said = {
            "rise": float((along.loss - along.loss[0]).abs().max()),
            "length": along.length,
            "distance": far**0.5,
            "off": off**0.5,
        }
        return {"orbit": said}


def rounded(values: Tensor) -> list[float]:
    """For JSON."""
    return [float(f"{v:.5g}") for v in values]


def best_of(tried: dict[str, float]) -> dict[str, Any]:
    """The rate with the smallest loss, and all of them."""
    return {"rate": float(min(tried, key=lambda name: tried[name])), "tried": tried}


def measured(
    network: Network,
    images: Images,
    recipe: Recipe,
    rates: Sequence[float],
    pairs: int,
    measuring: Measuring,
) -> dict[str, Any]:
    """Pairs of ends that share no run, after the choice of rates by a pair of its own.

    Returns:
        ``ends`` and ``bends``, what was tried and chosen; ``pairs``, a dictionary of paths each.
    """
    validation, between = images.validation, Between(network, images, measuring)
    candidates, tried = {}, {}
    for rate in rates:
        two = ends(network, images, replace(recipe, rate=rate), Use.ENDS_TUNING, [0, 1])
        with torch.no_grad():
            losses = [
                functional.cross_entropy(one.eval()(validation.X), validation.y) for one in two
            ]
        candidates[rate], tried[f"{rate:g}"] = two, float(sum(losses)) / 2
    of_ends = best_of(tried)
    recipe = replace(recipe, rate=of_ends["rate"])
    a, b = candidates[recipe.rate]
    of_bends = between.bend_rate(a, b, recipe)
    trained = ends(network, images, recipe, Use.ENDS, range(2 * pairs))
    found = [
        between.pair(trained[2 * i], trained[2 * i + 1], recipe, of_bends["rate"], i)
        for i in tqdm(range(pairs), desc=f"{network.name}, pairs", leave=False)
    ]
    return {"ends": of_ends, "bends": of_bends, "pairs": found}
