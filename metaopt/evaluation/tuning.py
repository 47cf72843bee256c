"""Hand-made optimizers, tuned on validation tasks of the family, shape and horizon at hand.

For each optimizer the whole grid is tried, and the setting with the lowest geometric-mean loss at
the horizon is kept. Choices are cached in a file, keyed by everything that they depend on. With N
processes each runs its own slice of the tasks; the cache is the first one's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metaopt._version import __version__
from metaopt.base.errors import MisfitError
from metaopt.base.fields import DTYPES
from metaopt.base.files import write_atomically
from metaopt.base.loss_statistics import geomean
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.evaluation.config import EvalConfig, parse_baseline
from metaopt.meta.unroll import last_loss
from metaopt.rules.baselines import BASELINES, hand_made
from metaopt.tasks.base import TaskFamily, Tasks
from metaopt.tasks.build import task_family
from metaopt.tasks.identity import Identity, difference, identity


@dataclass(frozen=True)
class Choice:
    """A tuned hand-made optimizer.

    Attributes:
        name: as given, e.g. ``Adam@20``.
        base: the optimizer itself, e.g. ``Adam``.
        values: the chosen hyper-parameters.
        step: the horizon that it was tuned for.
        validation_loss: geometric mean at that step.
    """

    name: str
    base: str
    values: dict[str, float]
    step: int
    validation_loss: float


def candidates(grid: dict[str, list[float]], names: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """All settings of a grid."""
    for values in itertools.product(*(grid[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def tune(config: EvalConfig, device: torch.device, cache: Path, world: World) -> list[Choice]:
    """The baselines of ``config``, tuned or taken from the cache; a line for those left out.

    Args:
        config: tasks, horizon, grids and names.
        device: the device to compute on.
        cache: a JSON file, read and added to.
        world: the processes that share the tasks.
    """
    known = world.on_first(lambda: _read(cache))
    chosen = []
    family = task_family(config.task)
    drawn = _Drawn(config, family)
    for name in config.baselines:
        base, step = parse_baseline(name)
        step = config.steps if step is None else step
        if step > config.steps:
            world.say(f"left out: {name}: it is tuned for a step beyond the last, {config.steps}")
            continue
        key = _key(config, base, step)
        settings = list(
            candidates(config.tuning.grid(base), tuple(BASELINES[base].hyperparameters))
        )
        if key in known and known[key]["values"] not in settings:
            del known[key]
        if key in known:
            changed = world.on_first(partial(drawn.changed, known[key]))
            if changed is not None:
                world.say(f"tuned again: {name}: {config.task.family}: {changed}")
                del known[key]
        if key not in known:
            try:
                known[key] = _search(config, base, step, drawn.share(device, world), world)
            except MisfitError as error:
                world.say(f"left out: {name}: {error}")
                continue
            known[key] |= world.on_first(lambda: drawn.identity)
            world.on_first(lambda: _remember(cache, known))
        found = known[key]
        chosen.append(Choice(name, base, found["values"], step, found["validation_loss"]))
    return chosen


class _Drawn:
    """The tasks to tune on, drawn where they are needed, and what their family is.

    Args:
        config: the configuration of the evaluation.
        family: its task family; one of this package is identified by its version.
    """

    def __init__(self, config: EvalConfig, family: TaskFamily[Any]) -> None:
        self._config = config
        self._family = family

    @cached_property
    def _tasks(self) -> Tasks:
        tuning = self._config.tuning
        return self._family.drawn(Stream.VALIDATION, tuning.seed, 0, tuning.tasks)

    @cached_property
    def identity(self) -> dict[str, Identity]:
        """The identity of the family, as it is kept beside the chosen values."""
        is_own = self._config.task.is_own
        return {"family": identity(self._family, self._tasks)} if is_own else {}

    def changed(self, kept: dict[str, Any]) -> str | None:
        """What has changed since ``kept`` was chosen, or None."""
        if not self.identity:
            return None
        if kept.get("family", {}).keys() != self.identity["family"].keys():
            return "not known what it was"
        return difference(kept["family"], self.identity["family"])

    def share(self, device: torch.device, world: World) -> Tasks:
        """This process's share of the tasks."""
        whole = self._tasks.to(device, DTYPES[self._config.dtype])
        return whole.select(world.share(self._config.tuning.tasks, "tuning.tasks"))


def _search(config: EvalConfig, base: str, step: int, tasks: Tasks, world: World) -> dict[str, Any]:
    settings = list(candidates(config.tuning.grid(base), tuple(BASELINES[base].hyperparameters)))
    final = []
    bar = tqdm(
        settings, desc=f"tuning {base} for step {step}", leave=False, disable=not world.first
    )
    misfit: MisfitError | None = None
    try:
        for values in bar:
            found = last_loss(tasks, hand_made(base, values, step), step)
            final.append(found.double().cpu())
    except MisfitError as error:
        misfit = error
    # It may fit one process's tasks and not another's.
    for one in world.gather(misfit):
        if one is not None:
            raise one
    whole = torch.cat(world.gather(torch.stack(final)), dim=1)
    losses = [float(geomean(of_setting.numpy())) for of_setting in whole]
    best = min(range(len(settings)), key=losses.__getitem__)
    return {"values": settings[best], "validation_loss": losses[best]}


def _key(config: EvalConfig, base: str, step: int) -> str:
    """Everything that a choice depends on."""
    return json.dumps(
        {
            "version": __version__,
            "optimizer": base,
            "step": step,
            "grid": config.tuning.grid(base),
            "tasks": config.tuning.tasks,
            "seed": config.tuning.seed,
            "dtype": config.dtype,
            "task": config.task.model_dump(),
        },
        sort_keys=True,
    )


def edges(choice: Choice, config: EvalConfig) -> list[str]:
    """Hyper-parameters chosen at an end of their grid, where more of it might have been better."""
    grid = config.tuning.grid(choice.base)
    return [
        name
        for name, value in choice.values.items()
        if len(grid[name]) > 1 and value in (min(grid[name]), max(grid[name]))
    ]


def _remember(cache: Path, known: dict[str, Any]) -> None:
    try:
        write_atomically(cache, json.dumps(known, indent=1).encode())
    except OSError as error:
        tqdm.write(f"{cache}: not kept ({error.strerror}); tuning will be repeated next time")


def _read(cache: Path) -> dict[str, Any]:
    """The cache; one that is missing or damaged is empty."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: kept for key, kept in content.items() if _is_choice(kept)}


def _is_choice(kept: Any) -> bool:
    return (
        isinstance(kept, dict)
        and isinstance(kept.get("values"), dict)
        and isinstance(kept.get("validation_loss"), float)
        and isinstance(kept.get("family", {}), dict)
    )
