"""What is run: rivals over their rates on validation words, then everything on test words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import torch
from tqdm import tqdm

from metaopt.base.loss_statistics import geomean
from metaopt.base.streams import Stream
from studies.minilm import network, training, words
from studies.minilm.contenders import COSINE, RIVALS
from studies.minilm.training import Curve, Judging, Run
from studies.noether.folder import Folder


@dataclass(frozen=True)
class Size:
    """Of the study."""

    steps: int  # of a run
    seeds: int  # of what is shown
    tuning_seeds: int  # of what rates are chosen by: draws that are never shown
    rates: int  # of each rival, at most
    words: int  # that a run is judged on, at most

    @property
    def marks(self) -> tuple[int, ...]:
        """A quarter of the steps, a half, all."""
        return self.steps // 4, self.steps // 2, self.steps


FULL = Size(320, 5, 2, 4, 10_000)
SMOKE = Size(4, 2, 1, 2, 32)


@dataclass(frozen=True)
class Cell:
    """A contender at one mark, with the rate that is best there on the validation words."""

    name: str  # of the contender
    mark: int  # steps
    horizon: int  # of its runs
    rate: float
    losses: list[float]  # on the test words, for each seed
    seconds_per_step: float

    @property
    def mean(self) -> float:
        """The geometric mean over seeds."""
        return float(geomean(np.array(self.losses)))


Row = tuple[str, list[Cell]]
"""What a row is called, and its cells, one for each mark."""

Of = Callable[[Run, Judging], Curve]
"""Runs something, and judges it."""


@cache
def minilm_words() -> words.Words:
    """The words, as MiniLM's tokens.

    Raises:
        UserError: if a package that carries them is not installed.
    """
    return words.split(words.lexicon(), network.tokenizer())


def on_minilm(run: Run, judging: Judging) -> Curve:
    """One run, in a process of one thread."""
    torch.set_num_threads(1)
    return training.train(run, network.adapted, minilm_words(), judging)


def kept(run: Run, folder: Folder, judging: Judging, of: Of) -> Curve:
    """A curve: read if an earlier command has found it, else run and written."""
    found = folder.kept(run.key, lambda: asdict(of(run, judging)))
    # JSON has no whole numbers as keys.
    losses = {int(mark): float(loss) for mark, loss in found["losses"].items()}
    return Curve(losses, found["seconds_per_step"])


@dataclass(frozen=True)
class Plan:
    """All runs of a study; those that the folder has are not run again."""

    size: Size
    rules: Mapping[str, str]  # names of shipped rules, or files -> what tells their parameters
    folder: Folder
    jobs: int  # processes side by side; 1 for this one alone
    of: Of = on_minilm

    def rows(self) -> list[Row]:
        """Tune, run, and lay out the table."""
        last = self.size.steps
        rivals = [(COSINE, mark) for mark in self.size.marks]
        rivals += [(one, last) for one in RIVALS if one is not COSINE]
        tried = [
            Run(one.name, rate, horizon, Stream.VALIDATION, seed)
            for one, horizon in rivals
            for rate in one.rates[: self.size.rates]
            for seed in range(self.size.tuning_seeds)
        ]
        tuned = self._curves(tried, "tuning")
        table = [("AdamW, cosine told the column", [(COSINE.name, m, m) for m in self.size.marks])]
        for name in (*(one.name for one in RIVALS), *self.rules):
            label = f"AdamW, cosine over {last}" if name == COSINE.name else name
            table.append((label, [(name, mark, last) for mark in self.size.marks]))
        chosen = {key: _best(tuned, *key) for _, row in table for key in row}
        wanted = dict.fromkeys((key[0], chosen[key], key[2]) for key in chosen)
        runs = [
            Run(*key, Stream.TEST, seed, self.rules.get(key[0], ""))
            for key in wanted
            for seed in range(self.size.seeds)
        ]
        shown = self._curves(runs, "test")

        def cell(name: str, mark: int, horizon: int) -> Cell:
            rate = chosen[name, mark, horizon]
            curves = [
                shown[run]
                for run in runs
                if (run.contender, run.rate) == (name, rate) and run.horizon == horizon
            ]
            seconds = float(np.mean([curve.seconds_per_step for curve in curves]))
            return Cell(name, mark, horizon, rate, [c.losses[mark] for c in curves], seconds)

        return [(label, [cell(*key) for key in row]) for label, row in table]

    def _curves(self, runs: Sequence[Run], what: str) -> dict[Run, Curve]:
        judging = Judging(self.size.marks, self.size.words)
        of = partial(kept, folder=self.folder, judging=judging, of=self.of)
        with _mapping(self.jobs) as mapped:
            curves = list(tqdm(mapped(of, runs), total=len(runs), desc=what))
        return dict(zip(runs, curves, strict=True))


def _best(tuned: dict[Run, Curve], name: str, mark: int, horizon: int) -> float:
    """The rate whose validation losses at a mark have the least geometric mean; 1 if untuned."""
    losses: dict[float, list[float]] = {}
    for run, curve in tuned.items():
        if (run.contender, run.horizon) == (name, horizon):
            losses.setdefault(run.rate, []).append(curve.losses[mark])
    return min(losses, key=lambda rate: float(geomean(np.array(losses[rate]))), default=1.0)


@contextmanager
def _mapping(jobs: int) -> Iterator[Callable]:
    """``map``, in order, over processes."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool.map
