"""Tables in numbers: the best point of each column, ratios, steps that AdamW needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from metaopt.base.loss_statistics import clean, geomean, ratio_of, resamples
from studies.lora.contenders import ADAMW, UNKNOWN, Contender, off
from studies.lora.kept import Array, Runs
from studies.needed import steps_needed

RESAMPLES = 10_000
SEED = 0
ADAM = "Adam"
RITE = "LoRA-RITE"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        seeds: base networks, each with factors and mini-batches of its own.
        columns: steps of the table; each has its own best rate.
        horizons: further steps to which AdamW's cosine is told, to count how many it needs.
        marks: steps of the figure.
        timed: steps whose median time is taken.
        points: of each grid, at most; None for all.
    """

    seeds: int = 8
    columns: tuple[int, ...] = (20, 100, 400, 1000)
    horizons: tuple[int, ...] = (40, 60, 150, 250, 600, 1500, 2000)
    marks: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 35, 60, 100, 150, 250, 400, 600, 800, 1000)
    timed: int = 100
    points: int | None = None


@dataclass(frozen=True)
class Best:
    """The best point of a contender at a number of steps."""

    step: int
    losses: Array  # [seeds]
    point: dict[str, float]
    at_edge: bool  # whether the best rate is the first or the last of its grid

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "loss_geomean": float(geomean(self.losses)),
            "losses": self.losses.tolist(),
            "point": self.point,
            "at_edge": self.at_edge,
        }


def best(losses: Array, contender: Contender, step: int) -> Best:
    """Of losses [points, seeds] at a step."""
    losses = clean(losses)
    i = int(geomean(losses).argmin())
    point, rates = contender.grid[i], [point["lr"] for point in contender.grid]
    at_edge = len(set(rates)) > 1 and point["lr"] in (min(rates), max(rates))
    return Best(step, losses[i], point, at_edge)


def swept(runs: Runs, contender: Contender, size: Size, bar: tqdm) -> dict[int, Best]:
    """The best points by step: at all marks, or, of those that are told it, at their horizons."""
    if not contender.told:
        losses = runs.losses(contender, max(size.columns), bar)
        marks = zip(runs.marks, losses, strict=True)
        return {mark: best(of, contender, mark) for mark, of in marks}
    horizons = sorted({*size.columns, *(size.horizons if contender.name == ADAMW else ())})
    return {
        steps: best(runs.losses(contender, steps, bar)[-1], contender, steps) for steps in horizons
    }


def pieces(contender: Contender, size: Size) -> int:
    """How often ``swept`` calls for losses."""
    if not contender.told:
        return 1
    return len({*size.columns, *(size.horizons if contender.name == ADAMW else ())})


def of_best(loss: float, adamw: Mapping[int, Best]) -> float | None:
    """The steps after which AdamW, tuned and told them, has at most this loss on average."""
    steps = sorted(adamw)
    return steps_needed(loss, steps, [float(geomean(adamw[step].losses)) for step in steps])


def ratios(
    ours: str, all_best: Mapping[str, Mapping[int, Best]], columns: Sequence[int], seeds: int
) -> list[dict[str, Any]]:
    """Of a learned rule to each other contender, seed by seed, at each column."""
    index = resamples(seeds, RESAMPLES, SEED)
    found = []
    for other in all_best:
        for step in columns if other != ours else ():
            a, b = all_best[ours][step].losses, all_best[other][step].losses
            ratio, low, high, wins = ratio_of(a, b, index)
            found.append(
                {
                    "a": ours,
                    "b": other,
                    "step": step,
                    "ratio": float(ratio),
                    "ci95": [float(low), float(high)],
                    "win_rate": float(wins),
                }
            )
    return found


BARS: tuple[tuple[str, int, float], ...] = (
    *((off("{pair}"), step, 0.9) for step in (20, 100, 400)),
    *((RITE, step, 0.9) for step in (20, 100, 400, 1000)),
    *((f"{RITE}, cosine", step, 0.9) for step in (20, 100, 400, 1000)),
    (ADAMW, 20, 0.9),
    (ADAMW, 100, 0.9),
    (ADAMW, 400, 1.0),
    (ADAMW, 1000, 1.05),
    (ADAM, 20, 0.9),
    (ADAM, 100, 0.9),
)
"""Against whom, at which step, and what the upper end of the ratio's interval is at most."""


def bars(pair: str, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Which bars are met by the ratios of ``pair``."""
    by_name = {(one["b"], one["step"]): one for one in found}
    return [
        {
            "a": pair,
            "b": other.format(pair=pair),
            "step": step,
            "at_most": most,
            "ratio": one["ratio"],
            "upper": one["ci95"][1],
            "met": one["ci95"][1] <= most,
        }
        for other, step, most in BARS
        if (one := by_name.get((other.format(pair=pair), step))) is not None
    ]


def table(runs: Runs, contenders: Sequence[Contender], size: Size) -> dict[str, Any]:
    """Run what is missing, and make all tables."""
    total = sum(pieces(contender, size) for contender in contenders)
    all_best: dict[str, dict[int, Best]] = {}
    with tqdm(total=total, desc="runs") as bar:
        for contender in contenders:
            all_best[contender.name] = swept(runs, contender, size, bar)
    learned = [contender.name for contender in contenders if contender.learned]
    found = {
        name: ratios(name, all_best, size.columns, size.seeds)
        for name in learned
        if not name.endswith((off(""), UNKNOWN))
    }
    return {
        "columns": list(size.columns),
        "seeds": size.seeds,
        "contenders": {
            contender.name: {
                "learned": contender.learned,
                "told": contender.told,
                "seconds_per_step": runs.seconds(contender, size.timed),
                "at": {step: one.told() for step, one in all_best[contender.name].items()},
            }
            for contender in contenders
        },
        "ratios": found,
        "steps_needed": {
            name: {
                step: of_best(float(geomean(all_best[name][step].losses)), all_best[ADAMW])
                for step in size.columns
            }
            for name in learned
            if ADAMW in all_best
        },
        "bars": [bar for name, of in found.items() for bar in bars(name, of)],
    }
