"""Runs are kept as they end, so that a stopped study goes on, and a wider one runs what is new."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metaopt.base.files import write_atomically
from studies.lora.contenders import Contender, Point
from studies.lora.runs import Tasks, alone, seconds_per_step, together

Array = NDArray[np.float64]


class Runs:
    """All runs of one setting in a folder: one file for each contender and number of steps.

    Args:
        folder: where they are.
        tasks: of the setting.
        marks: steps of which the losses are kept.
    """

    def __init__(self, folder: Path, tasks: Tasks, marks: Sequence[int]) -> None:
        self.folder, self.tasks, self.marks = folder, tasks, tuple(marks)
        about = json.dumps([asdict(tasks.setting), self.marks]).encode()
        self.stem = hashlib.sha256(about).hexdigest()[:10]

    def losses(self, contender: Contender, steps: int, bar: tqdm) -> Array:
        """Losses at the marks up to ``steps``, [marks, points, seeds]; what is missing is run.

        Args:
            contender: who.
            steps: in all; a rate that is told the step ends there.
            bar: says what runs.
        """
        path, marks = self._path(contender, f"{steps}"), [m for m in self.marks if m <= steps]
        rows: dict[str, list[float]] = _read(path)
        seeds = range(len(self.tasks.tasks))
        missing = [
            point
            for point in contender.grid
            if any(_key(point, seed) not in rows for seed in seeds)
        ]
        if missing:
            bar.set_postfix_str(f"{contender.name}, {steps} steps")
        if missing and contender.together:
            new = [s for s in seeds if any(_key(point, s) not in rows for point in missing)]
            found = together(self.tasks, contender, missing, new, steps, marks)
            for i, point in enumerate(missing):
                rows |= {_key(point, s): found[:, i, j].tolist() for j, s in enumerate(new)}
            _write(path, rows)
        elif missing:
            for point in missing:
                for seed in seeds:
                    if _key(point, seed) not in rows:
                        one = alone(self.tasks, contender, point, seed, steps, marks)
                        rows[_key(point, seed)] = one
                        _write(path, rows)
        bar.update()
        of_points = [[rows[_key(point, seed)] for seed in seeds] for point in contender.grid]
        return np.moveaxis(np.array(of_points, float), -1, 0)

    def seconds(self, contender: Contender, steps: int) -> float:
        """Of a step of one adaptation, measured once."""
        path = self._path(contender, "seconds")
        rows = _read(path)
        if "seconds" not in rows:
            rows["seconds"] = [seconds_per_step(self.tasks, contender, steps)]
            _write(path, rows)
        return rows["seconds"][0]

    def _path(self, contender: Contender, what: str) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "_", contender.name.lower()).strip("_")
        parts = [self.stem, slug, *filter(None, [contender.mark]), what]
        return self.folder / f"{'_'.join(parts)}.json"


def _key(point: Point, seed: int) -> str:
    return " ".join([*(f"{name}={value:g}" for name, value in point.items()), f"seed={seed}"])


def _read(path: Path) -> dict[str, list[float]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, rows: dict[str, list[float]]) -> None:
    write_atomically(path, json.dumps(rows).encode())
