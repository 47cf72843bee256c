"""Study b: do sharpness and curvature say how well a network generalises (table 1, figure 4)?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm, trange

from metaopt.base.streams import Stream, item_generator
from studies.images import BATCH, Images
from studies.pieces import folder, until_stopped
from studies.teleport import branches, intervals
from studies.teleport.data import AROUND, drawn
from studies.teleport.effects import logs
from studies.teleport.measures import COUNT, increase, phi, psi, trace
from studies.teleport.stack import Layers, gradients, initial, mean_losses
from studies.teleport.steps import SGD

DISTANCES = {
    "MNIST": tuple(np.arange(0.001, 0.2, 0.01).tolist()),
    "Fashion-MNIST": tuple(np.arange(0.0001, 0.02, 0.001).tolist()),
    "digits": tuple(np.arange(0.001, 0.2, 0.01).tolist()),
}
"""Of phi, as published; digits as MNIST."""
MEASURES = {
    "phi": "phi, as published: mean of L(w + t d), d of uniform [0, 1) numbers",
    "increase": "honest sharpness: mean of L(w + d) - L(w), d isotropic, |d| = 1",
    "trace": "trace of the Hessian",
    "psi": "curvature psi of the minimum, as published",
    "train": "training loss",
}
PARTS = ("correlations", "teleports")
TRACED = 1000
"""Training images of the trace."""


@dataclass(frozen=True)
class Size:
    """How much of it is run."""

    runs: int = 100
    epochs: int = 40
    rate: float = 0.1
    """Ten times the published one, for fourteen times fewer updates."""
    hidden: tuple[int, ...] = (16, 10)
    batches: int = COUNT
    seeds: int = 10
    branch_hidden: tuple[int, ...] = (32, 10)
    directions: int = 4
    samples: int = 500


SMOKE = Size(6, 3, 0.05, (6, 5), 4, 2, (6, 5), 1, 100)


def trained(images: Images, size: Size) -> Layers:
    """All runs at the end, mini-batches in one fixed order."""
    layers = initial((images.train.X.shape[1], *size.hidden, 10), range(size.runs))
    optimizer = SGD(layers, torch.full((size.runs,), size.rate))
    X, y = images.train.X, images.train.y
    for _ in trange(size.epochs, desc="runs", leave=False, mininterval=1):
        for i in range(0, images.batches * BATCH, BATCH):
            batch = X[i : i + BATCH].mT[None], y[None, i : i + BATCH]
            optimizer.step(layers, gradients(layers, *batch))
    return layers


def measured(images: Images, name: str, size: Size) -> dict[str, Any]:
    """Of each run the losses and all measures, [runs]."""
    layers = trained(images, size)
    train, test = images.train, images.test
    found: dict[str, Tensor] = {
        "train": mean_losses(layers, train.X.mT[None], train.y[None]),
        "test": mean_losses(layers, test.X.mT[None], test.y[None]),
        "trace": trace(layers, train.X[:TRACED].mT[None], train.y[None, :TRACED]),
    }
    total = {key: torch.zeros(size.runs) for key in ("phi", "increase", "psi")}
    for i in trange(size.batches, desc="measures", leave=False, mininterval=1):
        # Seed 0 has indices of its own here: other images than those of teleports.
        x, y = drawn(train, [0], 10_000 + i, AROUND)
        streams: list[Any] = [item_generator(Stream.SHARPNESS, kind, i) for kind in (5, 6, 7)]
        total["phi"] += phi(layers, x, y, DISTANCES[name], streams[0])
        total["increase"] += increase(layers, x, y, streams[1])
        total["psi"] += psi(layers, x, streams[2])
    found |= {key: value / size.batches for key, value in total.items()}
    # The published phi is divided by the number of batches once more.
    found["phi"] = found["phi"] / size.batches
    return {key: [float(f"{v:.6g}") for v in value] for key, value in found.items()}


def branched(images: Images, size: Size) -> dict[str, Any]:
    """The second part."""
    plan = branches.Branching(
        size.seeds, max(size.epochs, branches.MOVED + 2), size.rate, size.directions, size.samples
    )
    return branches.Branches(images, size.branch_hidden, plan).run()


def correlations(runs: dict[str, Any]) -> dict[str, Any]:
    """Of each measure with the test loss."""
    of = {key: np.array(values) for key, values in runs.items()}
    test, train = of["test"], of["train"]
    found: dict[str, Any] = {}
    statistic: dict[str, Callable[..., intervals.Array]] = {
        "pearson": intervals.pearson,
        "spearman": intervals.spearman,
    }
    for key in MEASURES:
        said: dict[str, Any] = {
            name: intervals.correlation_interval(one, of[key], test)
            for name, one in statistic.items()
        }
        if key != "train":
            said["partial"] = intervals.correlation_interval(
                intervals.partial, of[key], test, train
            )
            said["with training loss"] = float(intervals.pearson(of[key], train))
        said["range"] = [float(of[key].min()), float(of[key].max())]
        found[key] = said
    return found


def differences(run: dict[str, Any]) -> dict[str, Any]:
    """Of each search: losses to those without teleports, and to its control, seed by seed."""
    names = run["names"]
    ends = logs(run["losses"]["train"])
    diverged = dict(zip(names, (ends[-1] > ends[0]).T, strict=True))
    first = branches.MOVED - branches.BRANCHED + 1
    found: dict[str, Any] = {}
    for which in ("train", "test"):
        losses = logs(run["losses"][which])
        at_end = {"end": losses[-1], "mean": losses[first:].mean(0)}
        for key, values in at_end.items():
            of = dict(zip(names, values.T, strict=True))
            for move in branches.MOVES:
                random = of[f"{move.name}, random"]
                said = found.setdefault(move.name, {})
                said[f"{which} {key}"] = intervals.mean_interval(of[move.name] - of["none"])
                said[f"{which} {key}, random"] = intervals.mean_interval(random - of["none"])
                said[f"{which} {key}, beyond"] = intervals.mean_interval(of[move.name] - random)
                kept = ~(diverged[move.name] | diverged[f"{move.name}, random"] | diverged["none"])
                if 1 < kept.sum() < len(kept):
                    left = (of[move.name] - random)[kept]
                    said[f"{which} {key}, beyond, kept"] = intervals.mean_interval(left)
    for name, moments in run["told"].items():
        # Means over the runs that have not diverged.
        good = ~diverged[name]
        of = {key: np.array([m[key] for m in moments])[:, good] for key in moments[0]}
        told = {key: float(of[key].mean()) for key in ("drift", "fresh drift")}
        told["log loss"] = float(of["log loss"].sum(0).mean())
        for measure in ("phi", "psi"):
            before, after = (np.log(of[f"{measure} {when}"]) for when in ("before", "after"))
            told[measure] = float(np.exp(before[0].mean()))
            # Of teleports alone, without the steps between them.
            told[f"log {measure}"] = float((after - before).sum(0).mean())
        found.setdefault(name, {})["told"] = told | {"diverged": int((~good).sum())}
    curves = np.exp(logs(run["losses"]["test"]).mean(1)).T
    found["curves"] = dict(zip(names, curves.round(5).tolist(), strict=True))
    return found


def study(sets: dict[str, Images], missing: Sequence[str], size: Size, out: Path) -> dict[str, Any]:
    """All data sets, each piece kept as it is done."""
    torch.set_num_threads(1)
    pieces = folder(out, "generalisation", size)
    said, left = list(missing), [f"{part} of {name}" for name in sets for part in PARTS]
    found: dict[str, Any] = {"missing": said, "size": vars(size), "sets": {}}
    bar = tqdm(total=len(left), desc="generalisation")
    with bar, until_stopped(found["sets"], said, left):
        for name, images in sets.items():
            runs = pieces.kept(f"{name}_runs", bound(measured, images, name, size))
            found["sets"][name] = {"runs": runs, "correlations": correlations(runs)}
            left.remove(f"{PARTS[0]} of {name}")
            bar.update()
            run = pieces.kept(f"{name}_branches", bound(branched, images, size))
            found["sets"][name]["moves"] = differences(run)
            left.remove(f"{PARTS[1]} of {name}")
            bar.update()
    return found
