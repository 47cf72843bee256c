"""The runs of each setting, in processes of one thread; what a stopped command has, it keeps."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from metaopt.base.files import make_folder
from metaopt.base.streams import Stream
from metaopt.optim.reach import PastHorizonWarning
from studies.carry.settings import Setting, Size, settings
from studies.noether.folder import Folder
from studies.pieces import digest, side_by_side
from studies.rivals import plan
from studies.rivals.contenders import Contender, everyone
from studies.rivals.training import alone


@dataclass(frozen=True)
class Piece:
    """One run."""

    setting: str  # the name of its task
    contender: str  # its name
    version: str  # tells a rule's parameters, or a package
    rate: float
    horizon: int  # its last step, which a cosine is told
    marks: tuple[int, ...]  # where it is judged, until then; 0 is before the first step
    seed: int

    @property
    def name(self) -> str:
        """Of a file, beside those of all other runs on the same data and network."""
        slug = re.sub(r"[^a-z0-9]+", "_", self.contender.lower()).strip("_")
        return f"{slug}_{digest(self)}"


@dataclass(frozen=True)
class Where:
    """What a process needs to make everything again."""

    size: Size
    fashion: Path
    rule: str
    out: Path


def untold(rule: str) -> tuple[list[Contender], list[str]]:
    """The rule, told nothing, and all rivals; and a line for those that are left out."""
    found, left_out = everyone([rule])
    return [one for one in found if not (one.learned and one.told)], left_out


@cache
def everything(where: Where) -> tuple[dict[str, tuple[Setting, Folder]], dict[str, Contender]]:
    """Settings with their folders, and contenders, by name."""
    found, _ = settings(where.size, where.fashion)
    contenders, _ = untold(where.rule)
    return (
        {s.task.name: (s, plan.folder(where.out, s.task)) for s in found},
        {contender.name: contender for contender in contenders},
    )


def pieces(setting: Setting, contenders: Sequence[Contender]) -> Iterator[Piece]:
    """Of the learned rule, and of each rival at all its rates.

    Args:
        setting: what is trained.
        contenders: all that are there.
    """
    last = setting.marks[-1]
    for contender in contenders:
        rates = contender.grid if contender.learned else setting.rates.get(contender.name, ())
        horizons = setting.told if contender.told else (last,)
        for rate in rates:
            for horizon in sorted(horizons, reverse=True):
                marks = (0, *(mark for mark in setting.marks if mark <= horizon))
                for seed in range(setting.seeds):
                    of = (setting.task.name, contender.name, contender.version)
                    yield Piece(*of, rate, horizon, marks, seed)


def run(piece: Piece, where: Where) -> dict[str, Any]:
    """Losses at the marks, and the seconds of the processor that the whole run took."""
    of, contenders = everything(where)
    setting, folder = of[piece.setting]
    # The page says how far it goes.
    warnings.simplefilter("ignore", PastHorizonWarning)

    def compute() -> dict[str, Any]:
        given = (piece.rate, piece.horizon, Stream.TEST, piece.seed, piece.marks)
        setting.task.parts()  # which are kept from then on
        began = time.process_time()
        losses = alone(setting.task, contenders[piece.contender], *given)
        return {"losses": losses, "seconds": time.process_time() - began}

    return folder.kept(piece.name, compute)


def all_of(chosen: Sequence[Piece], where: Where, jobs: int) -> dict[Piece, dict[str, Any]]:
    """All pieces, run or read.

    Args:
        chosen: those that take longest first, so that no core waits at the end.
        where: what processes need to make everything again.
        jobs: processes side by side.
    """
    for _, folder in everything(where)[0].values():
        make_folder(folder.path)
    return side_by_side(partial(run, where=where), chosen, jobs, "runs")
