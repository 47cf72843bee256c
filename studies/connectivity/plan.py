"""What is run, on which images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metaopt.tasks.datasets import Labelled
from studies.connectivity import networks
from studies.connectivity.barriers import Measuring, measured
from studies.connectivity.networks import Network
from studies.connectivity.result import of_pairs, of_rivals
from studies.connectivity.rivals import Chosen, Contest
from studies.connectivity.training import Recipe
from studies.images import Images
from studies.pieces import folder, until_stopped

MEASURING = Measuring()
SGD_RATES = (0.01, 0.03, 0.1, 0.3)
ADAM_RATES = (0.001, 0.003, 0.01)


@dataclass(frozen=True)
class Size:
    """How much of it."""

    seeds: int = 5
    """Pairs of ends, and seeds of the comparison of ensembles."""
    images: int = 1500
    """Training images at most."""
    digits_epochs: int = 20
    epochs: int = 10
    widths: tuple[int, ...] = (64, 128, 256, 512)
    vgg: int = 16
    resnet: int = 16
    transformer: int = 32
    rival_mlp: int = 128
    rival_vgg: int = 8
    measuring: Measuring = MEASURING
    plain: tuple[str, ...] = ("MNIST",)
    """Data sets that have MLPs alone."""

    def joined(self, name: str) -> list[Network]:
        """The networks of which pairs are joined on a data set."""
        mlps = [Network(f"MLP {width}", networks.mlp, width) for width in self.widths]
        if name in self.plain:
            return mlps
        return [
            *mlps,
            Network("VGG, BatchNorm", networks.vgg, self.vgg),
            Network("ResNet, BatchNorm", networks.resnet_batch, self.resnet),
            Network("ResNet, LayerNorm", networks.resnet_layer, self.resnet),
            Network("transformer", networks.transformer, self.transformer, adam=True),
        ]

    def averaged(self, name: str) -> list[Network]:
        """The networks of which ensembles are made."""
        mlp = Network(f"MLP {self.rival_mlp}", networks.mlp, self.rival_mlp)
        if name in self.plain:
            return [mlp]
        return [
            mlp,
            Network(f"VGG {self.rival_vgg}, BatchNorm", networks.vgg, self.rival_vgg),
        ]

    def recipe(self, name: str) -> Recipe:
        """Of the ends on one data set; its rate is chosen later."""
        return Recipe(self.digits_epochs if name == "digits" else self.epochs, 0.0)


SMOKE = Size(2, 100, 3, 3, (8, 16), 4, 4, 8, 8, 4, Measuring(5, 5, 100, 100))


def fitted(images: Images, count: int) -> Images:
    """No more training images than ``count``, and none of more than 14 by 14 pixels."""
    if images.train.X.shape[1] == 28 * 28:
        images = images.pooled()
    return replace(images, train=Labelled(images.train.X[:count], images.train.y[:count]))


def rivals(network: Network, images: Images, epochs: int, seeds: int) -> dict[str, Any]:
    """Rates and counts chosen, then all methods."""
    contest = Contest(network, images, epochs, seeds)
    tuned = contest.tuned([0, 1])
    return {"tuned": tuned, "methods": contest.run(Chosen(**tuned["chosen"]))}


def study(sets: Mapping[str, Images], missing: list[str], size: Size, out: Path) -> dict[str, Any]:
    """All data sets, each piece kept as it is done."""
    torch.set_num_threads(1)
    pieces = folder(out, "connectivity", size)
    said = list(missing)
    # Digits first, and last what a page can best do without.
    order = sorted(sets, key=("digits", "Fashion-MNIST", "MNIST").index)
    found: dict[str, Any] = {"missing": said, "size": asdict(size), "sets": {}}
    work = [
        (kind, name, network)
        for name in order
        for kind, of in (("ensembles", size.averaged(name)), ("pairs", size.joined(name)))
        for network in of
    ]
    left = [f"{kind} of {network.name} on {name}" for kind, name, network in work]
    bar = tqdm(work, desc="connectivity")
    with bar, until_stopped(found["sets"], said, left):
        for kind, name, network in bar:
            bar.set_postfix_str(f"{name}, {kind} of {network.name}")
            images, recipe = fitted(sets[name], size.images), size.recipe(name)
            stem = f"{name}_{kind}_{network.name}".replace(", ", "_").replace(" ", "_")
            if kind == "pairs":
                rates = ADAM_RATES if network.adam else SGD_RATES
                compute = partial(
                    measured, network, images, recipe, rates, size.seeds, size.measuring
                )
                one = of_pairs(pieces.kept(stem, compute))
            else:
                compute = partial(rivals, network, images, recipe.epochs, size.seeds)
                one = of_rivals(pieces.kept(stem, compute))
            here = found["sets"].setdefault(name, {"pairs": {}, "ensembles": {}})
            here[kind][network.name] = one
            left.pop(0)
    return found
