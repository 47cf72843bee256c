"""What is run of a contender on a task: a grid, trials, and what trials chose."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.base.loss_statistics import clean, diverged, geomean
from metaopt.base.streams import Stream
from studies.noether.folder import Folder
from studies.rivals import training
from studies.rivals.contenders import COSINE, Contender
from studies.rivals.tasks import Task
from studies.rivals.training import Array

TRIALS = "trials"
BEST = "best of each column"
TUNINGS = (TRIALS, BEST)


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        columns: steps of the tables.
        between: further steps that AdamW's cosine is told, to count how many it needs.
        seeds: of what is shown.
        tuning_seeds: of each trial.
        trials: rates that each rival may try on validation rows.
        points: of each grid, at most.
        timed: steps of which the median time is taken.
    """

    columns: tuple[int, ...] = (20, 100, 300, 1000)
    between: tuple[int, ...] = (5, 10, 50, 200, 600, 2000)
    seeds: int = 3
    tuning_seeds: int = 1
    trials: int = 5
    points: int = 5
    timed: int = 60

    @property
    def last(self) -> int:
        """The last column."""
        return self.columns[-1]

    def marks(self, horizon: int) -> tuple[int, ...]:
        """Where a run is judged: at its start, each column that it reaches, 64 and its end."""
        return tuple(sorted({0, horizon, *(m for m in (*self.columns, 64) if m <= horizon)}))

    def column_of(self, horizon: int) -> int:
        """The column whose rate a horizon between columns takes: the next one, or the last."""
        return next((column for column in self.columns if column >= horizon), self.last)


SMOKE = Size((2, 4), (1, 8), 2, 1, 2, 2, 2)


@dataclass(frozen=True)
class Cell:
    """A contender on a task after so many steps, with the rate that a tuning chose for them."""

    step: int
    rate: float
    losses: list[float]  # on the rows for tests, for each seed
    at_edge: bool  # whether the rate is the smallest or the largest that was tried
    diverged: int  # seeds whose loss was ever not finite, or above ten times the first


@dataclass(frozen=True)
class Outcome:
    """All of a contender on a task.

    Attributes:
        cells: by tuning and step; of AdamW with a cosine also between columns.
        at_64: the losses of each rate of the grid at step 64, where runs were judged there.
        cost: of a step.
        parameters: of the network.
    """

    cells: dict[str, dict[int, Cell]]
    at_64: dict[float, list[float]]
    cost: training.Cost
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """For files."""
        return asdict(self)


@dataclass(frozen=True)
class Runs:
    """The runs of a contender on a task, those that the folder has not being run.

    Args:
        task: the task.
        contender: the contender.
        size: how much is run.
        folder: where pieces are kept.
        said: is told what runs.
    """

    task: Task
    contender: Contender
    size: Size
    folder: Folder
    said: Callable[[str], None] = print

    def losses(
        self, rates: Sequence[float], horizon: int, stream: Stream, seeds: Sequence[int]
    ) -> Array:
        """Losses [marks, rates, seeds], as a stack where that is faster, else rate by rate."""
        together = self.task.together and self.contender.together
        parts = [tuple(rates)] if together else [(rate,) for rate in rates]
        found = []
        for part in parts:
            name = self._name([part, horizon, stream.name, list(seeds), self.size.marks(horizon)])

            def compute(part: tuple[float, ...] = part) -> dict[str, Any]:
                self.said(
                    f"{self.contender.name}, {horizon} steps, {stream.name.lower()}, "
                    f"{', '.join(f'{rate:.2g}' for rate in part)}"
                )
                return {"losses": self._run(part, horizon, stream, seeds).tolist()}

            found.append(np.array(self.folder.kept(name, compute)["losses"], float))
        return np.concatenate(found, 1)

    def _run(
        self, rates: tuple[float, ...], horizon: int, stream: Stream, seeds: Sequence[int]
    ) -> Array:
        task, contender, marks = self.task, self.contender, self.size.marks(horizon)
        if task.together and contender.together:
            return training.together(task, contender, rates, horizon, stream, seeds, marks)
        runs = [
            [training.alone(task, contender, rate, horizon, stream, seed, marks) for seed in seeds]
            for rate in rates
        ]
        return np.moveaxis(np.array(runs), -1, 0)

    def cost(self) -> training.Cost:
        """Of a step."""

        def compute() -> dict[str, Any]:
            self.said(f"{self.contender.name}, its cost")
            return asdict(training.cost(self.task, self.contender, self.size.timed))

        return training.Cost(**self.folder.kept(self._name(["cost", self.size.timed]), compute))

    def _name(self, what: list[Any]) -> str:
        digest = hashlib.sha256(json.dumps([self.contender.version, what]).encode()).hexdigest()
        slug = re.sub(r"[^a-z0-9]+", "_", self.contender.name.lower()).strip("_")
        return f"{slug}_{digest[:12]}"

    def outcome(self) -> Outcome:
        """Run or read everything."""
        size, contender = self.size, self.contender
        grid = contender.grid[: size.points]
        shown, hidden = range(size.seeds), range(size.tuning_seeds)
        horizons = size.columns if contender.told else (size.last,)
        swept = {h: self.losses(grid, h, Stream.TEST, shown) for h in horizons}
        rates, edges = {BEST: self._chosen(grid, swept)}, dict.fromkeys(TUNINGS, grid)
        at_64: dict[float, list[float]] = {}
        if contender.learned:
            # Nothing is tuned, so that both tunings are the same.
            rates[TRIALS] = rates[BEST]
        else:
            edges[TRIALS] = contender.draws(size.trials)
            tried = {h: self.losses(edges[TRIALS], h, Stream.VALIDATION, hidden) for h in horizons}
            rates[TRIALS] = self._chosen(edges[TRIALS], tried)
        marks = size.marks(max(horizons))
        if 64 in marks:
            of = swept[max(horizons)][marks.index(64)]
            at_64 = {rate: losses.tolist() for rate, losses in zip(grid, clean(of), strict=True)}
        cells = {}
        for tuning, of_column in rates.items():
            steps = [*size.columns, *(size.between if contender.name == COSINE else ())]
            cells[tuning] = {
                step: self._cell(step, of_column[size.column_of(step)], edges[tuning])
                for step in sorted(steps)
            }
        cells[BEST] = {
            step: min(cell, cells[TRIALS][step], key=lambda one: geomean(np.array(one.losses)))
            for step, cell in cells[BEST].items()
        }
        parameters = sum(p.numel() for p in self.task.make().parameters())
        return Outcome(cells, at_64, self.cost(), parameters)

    def _chosen(self, rates: Sequence[float], losses: dict[int, Array]) -> dict[int, float]:
        """The rate of each column whose losses have the least geometric mean over seeds."""
        found = {}
        for column in self.size.columns:
            horizon = column if self.contender.told else self.size.last
            at = losses[horizon][self.size.marks(horizon).index(column)]
            found[column] = rates[int(geomean(at).argmin())]
        return found

    def _cell(self, step: int, rate: float, tried: Sequence[float]) -> Cell:
        horizon = step if self.contender.told else self.size.last
        losses = self._of_rate(rate, horizon)
        marks = self.size.marks(horizon)
        until = losses[: marks.index(step) + 1]
        return Cell(
            step,
            rate,
            clean(until[-1]).tolist(),
            len(tried) > 1 and rate in (tried[0], tried[-1]),
            diverged(until),
        )

    def _of_rate(self, rate: float, horizon: int) -> Array:
        """Losses [marks, seeds] of what is shown; a rate of the grid has been run already."""
        grid, seeds = self.contender.grid[: self.size.points], range(self.size.seeds)
        swept = horizon in self.size.columns if self.contender.told else True
        if rate in grid and swept:
            return self.losses(grid, horizon, Stream.TEST, seeds)[:, grid.index(rate)]
        return self.losses([rate], horizon, Stream.TEST, seeds)[:, 0]


def folder(out: Path, task: Task) -> Folder:
    """Where the pieces of a task are kept, apart from those of other data and networks.

    What they depend on besides is in their names.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", task.name.lower()).strip("_")
    digest, parts = hashlib.sha256(f"{task.batch} {task.make()}".encode()), task.parts()
    for rows in (parts.train, parts.validation, parts.test):
        for tensor in (rows.x, rows.y):
            digest.update(tensor.contiguous().numpy().tobytes())
    return Folder(out / slug, digest.hexdigest()[:12])


class NotRunError(Exception):
    """A piece has not been run."""


@dataclass(frozen=True)
class Kept(Folder):
    """A folder that is read alone."""

    def kept(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A piece.

        Raises:
            NotRunError: if it is not there.
        """

        def never() -> dict[str, Any]:
            raise NotRunError(name)

        return super().kept(name, never)
