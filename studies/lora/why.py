"""Learned rules, followed: where they stand, where their steps go, what their teleports leave.

At each of a few steps: the condition numbers of both factors of all layers, the cosine of the next
step in W = B A with the directions of ScaledGD and Gauss-Newton (on images that the factors are
adapted to), the norms of the generators. And the losses where teleports stop after step m: the same
rule goes on, with its state, on the parameters instead of the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from metaopt.base.files import write_atomically
from metaopt.base.loss_statistics import clean, geomean, ratio_of, resamples
from metaopt.optim.optimizer import LearnedOptimizer
from studies.lora.contenders import UNKNOWN, Contender, hand_made, off, without_teleports
from studies.lora.directions import (
    condition,
    cosine_between,
    gauss_newton,
    gradients,
    products,
    scaled_gd,
)
from studies.lora.result import RESAMPLES, SEED
from studies.lora.runs import Tasks, judged
from studies.lora.task import losses, pairs_of

COMPARED = {"Adam": 0.016, "Adam, balanced frame": 0.016}
"""Hand-made optimizers that are followed as well, and their rates."""


@dataclass(frozen=True)
class WhySize:
    """How far rules are followed.

    Attributes:
        marks: steps before which is looked.
        stops: steps after which teleports stop.
        columns: steps of which losses are told.
        iterations: of conjugate gradients for the Gauss-Newton direction.
    """

    marks: tuple[int, ...] = (1, 5, 20, 50, 100, 200, 400, 700, 999)
    stops: tuple[int, ...] = (0, 20, 100, 400)
    columns: tuple[int, ...] = (20, 100, 400, 1000)
    iterations: int = 100

    @classmethod
    def smoke(cls) -> WhySize:
        """Tiny."""
        return cls((1, 3), (0, 2), (2, 4), 4)


def generator_norms(optimizer: Optimizer) -> list[float] | None:
    """The Frobenius norms of the last step's generators, one for each pair.

    Returns:
        None for an optimizer that exposes none.
    """
    norms = getattr(optimizer, "generator_norms", None)
    return None if norms is None else [float(norm) for norm in norms]


def look(model: nn.Module, optimizer: Optimizer, tasks: Tasks, rows: Any, iterations: int) -> Any:
    """Take the step of the mini-batch ``rows``, and tell where it started and where it went.

    Args:
        model: the network.
        optimizer: of its factors.
        tasks: with the images.
        rows: of the mini-batch.
        iterations: of conjugate gradients.
    """
    shifted = tasks.images
    pairs = [(A.detach().clone(), B.detach().clone()) for A, B in pairs_of(model)]
    grads = gradients(model, shifted.X, shifted.y)
    along = {
        "scaled_gd": scaled_gd(pairs, grads),
        "gauss_newton": gauss_newton(model, grads, shifted.X, iterations),
        "gradient": -products(pairs, grads),
    }
    _step(model, optimizer, tasks, rows)
    after = pairs_of(model)
    moved = torch.cat(
        [(B @ A - b @ a).detach().flatten() for (A, B), (a, b) in zip(after, pairs, strict=True)]
    )
    return {
        "condition_A": [condition(A) for A, _ in pairs],
        "condition_B": [condition(B) for _, B in pairs],
        "cosine": {name: cosine_between(moved, D) for name, D in along.items()},
        "generator_norms": generator_norms(optimizer),
    }


def _step(model: nn.Module, optimizer: Optimizer, tasks: Tasks, rows: Any) -> None:
    optimizer.zero_grad()
    losses(model, tasks.images.X[rows], tasks.images.y[rows]).backward()
    optimizer.step()


def along(tasks: Tasks, contender: Contender, seed: int, size: WhySize) -> dict[str, Any]:
    """What ``look`` tells at the marks, by step."""
    model = tasks.tasks[seed].model()
    optimizer = contender.make(model, dict(contender.grid[0]))
    found = {}
    for step, rows in enumerate(tasks.rows(seed, max(size.marks) + 1)):
        if step in size.marks:
            found[f"{step}"] = look(model, optimizer, tasks, rows, size.iterations)
        else:
            _step(model, optimizer, tasks, rows)
    return found


def stopped(tasks: Tasks, contender: Contender, seed: int, stop: int, size: WhySize) -> list[float]:
    """Losses at the columns where teleports stop after step ``stop``."""
    model, shifted = tasks.tasks[seed].model(), tasks.images
    optimizer = contender.make(model, dict(contender.grid[0]))
    found = []
    for step, rows in enumerate(tasks.rows(seed, max(size.columns))):
        if step == stop and isinstance(optimizer, LearnedOptimizer):
            without_teleports(optimizer)
        _step(model, optimizer, tasks, rows)
        if step + 1 in size.columns:
            found.append(float(judged(model, optimizer, shifted.X_apart, shifted.y_apart)))
    return found


def followed(
    tasks: Tasks, learned: Sequence[Contender], size: WhySize, folder: Path
) -> dict[str, Any]:
    """All rules that teleport, and what they are compared with; what is there is not run again."""
    names = [contender.name for contender in learned]
    pairs = [contender for contender in learned if off(contender.name) in names]
    apart = (off(""), UNKNOWN)
    rest = [contender for contender in learned if not contender.name.endswith(apart)]
    rates = {c.name: c for c in hand_made() if c.name in COMPARED}
    fixed = [_at(contender, COMPARED[name]) for name, contender in rates.items()]
    seeds = range(len(tasks.tasks))
    total = len(seeds) * (len(rest) + len(fixed) + len(pairs) * (len(size.stops) + 1))
    found: dict[str, Any] = {"along": {}, "stops": {}, "columns": list(size.columns)}
    with tqdm(total=total, desc="followed") as bar:
        for one in [*rest, *fixed]:
            found["along"][one.name] = [
                _kept(folder, tasks, size, bar, one, f"along{seed}",
                      lambda one=one, seed=seed: along(tasks, one, seed, size))
                for seed in seeds
            ]  # fmt: skip
        for one in pairs:
            stops = (*size.stops, max(size.columns))
            of = {
                stop: [
                    _kept(folder, tasks, size, bar, one, f"stop{stop}_{seed}",
                          lambda one=one, s=seed, m=stop: stopped(tasks, one, s, m, size))
                    for seed in seeds
                ]
                for stop in stops
            }  # fmt: skip
            found["stops"][one.name] = _summed(of, size)
    return found


def _at(contender: Contender, rate: float) -> Contender:
    return replace(contender, grid=({"lr": rate},))


def _summed(of: Mapping[int, Sequence[Sequence[float]]], size: WhySize) -> dict[str, Any]:
    """Geometric means by stop and column, and ratios to teleports that never stop."""
    arrays = {stop: clean(np.array(rows, float).T) for stop, rows in of.items()}
    whole = arrays[max(of)]
    index = resamples(whole.shape[1], RESAMPLES, SEED)
    found = {}
    for stop, array in arrays.items():
        ratio, low, high, _ = ratio_of(array, whole, index)
        found[f"{stop}"] = {
            "loss_geomean": geomean(array).tolist(),
            "ratio": ratio.tolist(),
            "ci95": [list(ends) for ends in zip(low.tolist(), high.tolist(), strict=True)],
        }
    return found


def _kept(
    folder: Path, tasks: Tasks, size: WhySize, bar: tqdm, one: Contender, what: str, run: Any
) -> Any:
    about = json.dumps([asdict(tasks.setting), asdict(size), one.grid]).encode()
    digest = hashlib.sha256(about).hexdigest()[:10]
    slug = one.name.lower().replace(" ", "_").replace(",", "")
    path = folder / f"why_{digest}_{slug}_{one.mark}_{what}.json"
    if not path.exists():
        bar.set_postfix_str(f"{one.name}, {what}")
        write_atomically(path, json.dumps(run()).encode())
    bar.update()
    return json.loads(path.read_text(encoding="utf-8"))
