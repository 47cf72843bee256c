"""What the outcomes say: loss ratios, speed-ups, divergences, cost, and which bars are met.

Everything here reads the content of the study's JSON file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from metaopt.base.loss_statistics import geomean, ratio_of
from metaopt.base.streams import Stream, generator
from studies.needed import steps_needed
from studies.rivals.contenders import ADAMW, COSINE, FREE, SOAP
from studies.rivals.plan import BEST, TUNINGS
from studies.rivals.tasks import BERT
from studies.rivals.training import Array

RESAMPLES = 2000
SEED = 0
STRONG = (COSINE, FREE, SOAP)
"""The rivals whose best one is the bar."""
STRONGEST = "the best of AdamW with cosine, Schedule-Free AdamW and SOAP"
"""It is chosen task by task."""
SPEED_UP = 1.5
BERT_STEP = 64
BERT_RATE = 1e-3

Found = Mapping[str, Any]


def losses(found: Found, tuning: str, name: str, step: int) -> Array:
    """Of a contender at a step, [tasks, seeds]."""
    return np.array(
        [
            task["contenders"][name]["cells"][tuning][str(step)]["losses"]
            for task in found["tasks"].values()
        ]
    )


def strongest(found: Found, tuning: str, step: int) -> Array | None:
    """Of the strong rival that is best on each task, [tasks, seeds]; None where one is left out."""
    if any(name not in found["contenders"] for name in STRONG):
        return None
    of = np.stack([losses(found, tuning, name, step) for name in STRONG])
    return of[geomean(of).argmin(0), np.arange(of.shape[1])]


def both_levels(tasks: int, seeds: int) -> NDArray[np.int64]:
    """Bootstrap resamples of tasks, and within each of seeds: [resamples, tasks * seeds].

    An entry t * seeds + s is the seed s of the task t.
    """
    draws = generator(Stream.BOOTSTRAP, SEED)
    of_tasks = draws.integers(tasks, size=(RESAMPLES, tasks, 1))
    of_seeds = draws.integers(seeds, size=(RESAMPLES, tasks, seeds))
    return (of_tasks * seeds + of_seeds).reshape(RESAMPLES, -1)


def interquartile_mean(values: Array) -> Array:
    """The mean of the middle half of the values, over the last axis.

    References:
        Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice (2021);
        over speed-ups as in Celo (Moudgil et al., 2025).
    """
    return trim_mean(values, 0.25, axis=-1)


def ratios(found: Found, ours: str) -> list[dict[str, Any]]:
    """Losses of a learned rule to those of each other contender, task by task and seed by seed."""
    rows = []
    seeds = found["size"]["seeds"]
    index = both_levels(len(found["tasks"]), seeds)
    for tuning in TUNINGS:
        for step in found["size"]["columns"]:
            mine = losses(found, tuning, ours, step).ravel()
            others = {
                name: losses(found, tuning, name, step)
                for name in found["contenders"]
                if name != ours
            }
            best = strongest(found, tuning, step)
            if best is not None:
                others[STRONGEST] = best
            for name, theirs in others.items():
                ratio, low, high, wins = ratio_of(mine, theirs.ravel(), index)
                rows.append(
                    {
                        "a": ours,
                        "b": name,
                        "tuning": tuning,
                        "step": step,
                        "ratio": float(ratio),
                        "ci95": [float(low), float(high)],
                        "win_rate": float(wins),
                    }
                )
    return rows


def speed_ups(found: Found, name: str, tuning: str, step: int) -> dict[str, Any]:
    """How much longer AdamW with a cosine takes to the losses of a contender at a step.

    For each task and seed: the steps that AdamW, tuned for and told their number, needs to the
    loss that the contender has at ``step``, over ``step``; and the same in seconds. Where AdamW
    never reaches it, its most steps are counted; where it is there by its fewest, those are.
    """
    size = found["size"]
    told = sorted({*size["columns"], *size["between"]})
    adamw = np.stack([losses(found, tuning, COSINE, s) for s in told], -1)
    mine = losses(found, tuning, name, step)
    needed = np.empty(mine.shape)
    never = 0
    for place, loss in np.ndenumerate(mine):
        steps = steps_needed(float(loss), told, adamw[place].tolist())
        never += steps is None
        needed[place] = told[-1] if steps is None else steps
    in_steps = needed / step
    seconds = [
        task["contenders"][COSINE]["cost"]["seconds"] / task["contenders"][name]["cost"]["seconds"]
        for task in found["tasks"].values()
    ]
    in_seconds = in_steps * np.array(seconds)[:, None]
    index = both_levels(*mine.shape)
    low, high = np.quantile(interquartile_mean(in_steps.ravel()[index]), [0.025, 0.975])
    return {
        "name": name,
        "tuning": tuning,
        "step": step,
        "steps": float(interquartile_mean(in_steps.ravel())),
        "ci95": [float(low), float(high)],
        "seconds": float(interquartile_mean(in_seconds.ravel())),
        "never": never,
        "at_fewest": int((needed == told[0]).sum()),
        "of": needed.size,
        "by_task": in_steps.tolist(),
    }


def costs(found: Found, name: str) -> dict[str, Any]:
    """Of a step, beside AdamW's: geometric means over tasks; and divergences of what is shown."""

    def over(what: str, beside: str) -> float | None:
        if beside not in found["contenders"]:
            return None
        pairs = [
            (task["contenders"][name]["cost"][what], task["contenders"][beside]["cost"][what])
            for task in found["tasks"].values()
        ]
        if not all(b for _, b in pairs):
            return None
        return float(geomean(np.array([a / b for a, b in pairs])))

    of = [task["contenders"][name] for task in found["tasks"].values()]
    return {
        "milliseconds": 1e3 * float(geomean(np.array([one["cost"]["step_seconds"] for one in of]))),
        "step_to_adamw": over("step_seconds", ADAMW),
        "whole_to_adamw": over("seconds", ADAMW),
        "state_to_adamw": over("state_bytes", ADAMW),
        "step_to_soap": over("step_seconds", SOAP),
        "state_to_soap": over("state_bytes", SOAP),
        "diverged": {
            tuning: sum(
                max(cell["diverged"] for cell in one["cells"][tuning].values()) for one in of
            )
            for tuning in TUNINGS
        },
        "runs": len(of) * found["size"]["seeds"],
    }


def _bar(what: str, value: float, bound: str, met: bool) -> dict[str, Any]:
    return {"bar": what, "found": f"{value:.3g}", "wanted": bound, "met": met}


def bars(found: Found, ours: str, compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bars of a rule that this study can judge, rivals at their best of each column."""
    rows = []
    for one in compared["speed_ups"]:
        if (one["name"], one["tuning"]) == (ours, BEST):
            what = f"speed-up over {COSINE}, in steps, at {one['step']}"
            rows.append(_bar(what, one["steps"], f"at least {SPEED_UP}", one["steps"] >= SPEED_UP))
    for one in compared["ratios"].get(ours, ()):
        at = (100, found["size"]["columns"][-1])
        if (one["b"], one["tuning"]) == (STRONGEST, BEST) and one["step"] in at:
            what = f"loss to {STRONGEST}, at {one['step']}"
            rows.append(_bar(what, one["ratio"], "at most 1", one["ratio"] <= 1))
    bert = found["tasks"].get(BERT, {}).get("contenders", {})
    theirs = bert.get(ADAMW, {}).get("at_64", {}).get(str(BERT_RATE))
    if theirs:
        mine = geomean(np.array(bert[ours]["at_64"]["1.0"]))
        value = float(mine / geomean(np.array(theirs)))
        what = f"loss to AdamW at {BERT_RATE:g} on {BERT}, at {BERT_STEP}"
        rows.append(_bar(what, value, "at most 1", value <= 1))
    cost = compared["costs"][ours]
    diverged = cost["diverged"][BEST]
    rows.append(_bar(f"runs of {cost['runs']} that diverge", diverged, "none", diverged == 0))
    for key, what in (
        ("step_to_soap", "a step's time to SOAP's"),
        ("state_to_soap", "memory of the state to SOAP's"),
    ):
        if cost[key] is not None:
            rows.append(_bar(what, cost[key], "at most 1", cost[key] <= 1))
    return rows


def comparison(found: Found) -> dict[str, Any]:
    """All that is told of the outcomes."""
    learned: Sequence[str] = [name for name, one in found["contenders"].items() if one["learned"]]
    compared: dict[str, Any] = {
        "ratios": {name: ratios(found, name) for name in learned},
        "costs": {name: costs(found, name) for name in found["contenders"]},
        "speed_ups": [
            speed_ups(found, name, tuning, step)
            for name in (found["contenders"] if COSINE in found["contenders"] else ())
            for tuning in TUNINGS
            for step in found["size"]["columns"]
        ],
    }
    return compared | {"bars": {name: bars(found, name, compared) for name in learned}}
