"""Study a: five optimizers with teleports and their controls (figures 5 and 13 of the paper)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from studies.images import Images
from studies.pieces import folder, until_stopped
from studies.teleport.action import gradient_norm, search
from studies.teleport.data import AROUND, drawn
from studies.teleport.effects import effects
from studies.teleport.stack import gradients
from studies.teleport.training import (
    ALL,
    EPOCH,
    GROUP_RATE,
    NONE,
    RECIPE,
    STATELESS,
    TELEPORTS,
    Training,
    Variant,
)

PUBLISHED = {"SGD": 1e-2, "momentum": 1e-3, "AdaGrad": 1e-2, "RMSProp": 1e-4, "Adam": 1e-4}
"""The paper's rates, for fourteen times as many updates."""
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""The grid of rates, in units of ``PUBLISHED``."""
TUNING_SEEDS = 10_000
"""The first of the seeds that rates are chosen with."""


@dataclass(frozen=True)
class Setting:
    """A network on a data set."""

    name: str
    data: str
    hidden: tuple[int, ...]
    epochs: int
    tuned: bool  # or the published rates
    pooled: bool = False  # images of 14 by 14 instead of 28 by 28 pixels


SETTINGS = (
    Setting("MNIST, 784-16-10-10, published rates", "MNIST", (16, 10), 40, False),
    Setting("digits, 64-16-10-10, tuned rates", "digits", (16, 10), 40, True),
    Setting("MNIST, 784-16-10-10, tuned rates", "MNIST", (16, 10), 40, True),
    Setting("MNIST, 196-128-32-10, tuned rates", "MNIST", (128, 32), 10, True, pooled=True),
    Setting("Fashion-MNIST, 784-16-10-10, tuned rates", "Fashion-MNIST", (16, 10), 40, True),
)


@dataclass(frozen=True)
class Size:
    """How much of it is run."""

    seeds: int = 20
    tuning_seeds: int = 4
    factors: tuple[float, ...] = FACTORS
    epochs: int = 40  # at most
    settings: tuple[Setting, ...] = SETTINGS
    timed: int = 200  # steps


SMOKE = Size(2, 1, (1.0, 10.0), 4, (SETTINGS[1],), 5)


def variants(kind: str, tuned: bool) -> list[Variant]:
    """Those that differ for an optimizer: SGD has no state to lose."""
    chosen = STATELESS if kind == "SGD" else ALL
    return [variant for variant in chosen if tuned or not variant.own]


def _epochs(setting: Setting, size: Size) -> int:
    return min(setting.epochs, size.epochs)


def tuning(images: Images, setting: Setting, size: Size, kind: str) -> dict[str, Any]:
    """The rate of least validation loss, of the optimizer without and with the recipe.

    The loss is a geometric mean over all epochs and over seeds that are not reported.
    """
    rates = [PUBLISHED[kind] * factor for factor in size.factors]
    seeds = range(TUNING_SEEDS, TUNING_SEEDS + size.tuning_seeds)
    found: dict[str, Any] = {"rates": rates}
    sizes = (images.train.X.shape[1], *setting.hidden, 10)
    both = [(variant, rate) for variant in (NONE, RECIPE) for rate in rates]
    run = Training(images, sizes, kind, [v for v, _ in both], [rate for _, rate in both], seeds)
    losses = np.array(run.run(_epochs(setting, size), ["validation"])["validation"])
    means = np.log(losses)[1:].mean((0, 2)).reshape(2, -1)
    for variant, values in zip((NONE, RECIPE), means, strict=True):
        values = np.where(np.isfinite(values), values, np.inf)
        found[variant.name] = {
            "validation": [float(v) if math.isfinite(v) else None for v in np.exp(values)],
            "rate": rates[int(values.argmin())],
            "at_edge": bool(values.argmin() in (0, len(rates) - 1)),
        }
    return found


def reported(
    images: Images, setting: Setting, size: Size, kind: str, chosen: dict[str, Any] | None
) -> dict[str, Any]:
    """All variants on all seeds."""
    of = variants(kind, setting.tuned)
    if chosen is None:
        rates = [PUBLISHED[kind]] * len(of)
    else:
        rates = [chosen[(RECIPE if one.own else NONE).name]["rate"] for one in of]
    sizes = (images.train.X.shape[1], *setting.hidden, 10)
    run = Training(images, sizes, kind, of, rates, range(size.seeds))
    losses = run.run(_epochs(setting, size), ["train", "test"])
    return {
        "variants": [one.name for one in of],
        "rates": rates,
        "epoch": EPOCH[kind],
        "losses": {
            which: [[[float(f"{x:.5g}") for x in row] for row in epoch] for epoch in values]
            for which, values in losses.items()
        },
        "teleports": {
            name: {
                key: [float(f"{np.nanmean(moment):.4g}") for moment in moments]
                for key, moments in one.items()
            }
            for name, one in run.told.items()
        },
    }


def seconds(images: Images, setting: Setting, size: Size) -> dict[str, Any]:
    """Processor seconds of one run alone: of a step, and of a teleport of the recipe."""
    found: dict[str, Any] = {}
    sizes = (images.train.X.shape[1], *setting.hidden, 10)
    x, y = images.train.X[:20].mT[None], images.train.y[None, :20]
    for kind in EPOCH:
        run = Training(images, sizes, kind, [RECIPE], [PUBLISHED[kind]], [TUNING_SEEDS])
        steps, teleports = [], []
        for _ in range(size.timed):
            began = time.thread_time()
            run.optimizer.step(run.layers, gradients(run.layers, x, y))
            steps.append(time.thread_time() - began)
        rate = torch.tensor([GROUP_RATE[kind]])
        for i in range(TELEPORTS):
            began = time.thread_time()
            around = drawn(images.train, run.seeds, i, AROUND)
            # At the first weights, where no search stops early.
            search(run.layers, around[0], gradient_norm(*around), rate, stop=math.inf)
            teleports.append(time.thread_time() - began)
        found[kind] = {"step": median(steps), "teleport": median(teleports)}
    return found


def study(sets: dict[str, Images], missing: Sequence[str], size: Size, out: Path) -> dict[str, Any]:
    """All settings, each piece kept as it is done."""
    torch.set_num_threads(1)
    chosen = [setting for setting in size.settings if setting.data in sets]
    said, left = list(missing), [setting.name for setting in chosen]
    found: dict[str, Any] = {"missing": said, "seeds": size.seeds, "settings": {}}
    bar = tqdm(total=len(chosen) * len(EPOCH), desc="optimizers")
    with bar, until_stopped(found["settings"], said, left):
        for setting in chosen:
            images = sets[setting.data]
            if setting.pooled:
                images = images.pooled()
            pieces = folder(out, "optimizers", replace(size, settings=(setting,)))
            timed = pieces.kept("seconds", partial(seconds, images, setting, size))
            told: dict[str, Any] = {}
            for kind in EPOCH:
                rates = None
                if setting.tuned:
                    rates = pieces.kept(
                        f"{kind}_rates", partial(tuning, images, setting, size, kind)
                    )
                run = pieces.kept(kind, partial(reported, images, setting, size, kind, rates))
                told[kind] = effects(run, timed[kind], images.batches) | {"tuning": rates}
                bar.update()
            found["settings"][setting.name] = told
            left.remove(setting.name)
    return found
