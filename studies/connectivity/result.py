"""What pairs and seeds say: means, 95 % intervals, and the shares of a chord's barrier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from studies.connectivity.barriers import BEND, CHORD, CONTINUOUS, ORBIT, PATHS, WEIGHTS
from studies.connectivity.rivals import BUDGETS, INDEPENDENT, METHODS
from studies.teleport.intervals import Array, mean_interval, share_interval

PARTS = (
    "continuous symmetries",
    "permutations beyond them",
    "a bend alone",
    "nothing tried",
    "permutations, taken first",
)
"""What takes away the chord's barrier: the first four add up to all of it."""


def of_pairs(piece: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of one network on one data set."""
    pairs = piece["pairs"]

    def values(path: str, key: str) -> Array:
        return np.array([pair[path][key] for pair in pairs], dtype=np.float64)

    paths: dict[str, Any] = {}
    for path in PATHS:
        curves = {
            key: np.array([pair[path][key] for pair in pairs]).mean(0).round(6).tolist()
            for key in ("loss", "error")
        }
        paths[path] = {
            "barrier": mean_interval(values(path, "barrier")),
            "error barrier": mean_interval(values(path, "error barrier")),
            "length": float(values(path, "length").mean()),
            "curves": curves,
            "barriers": values(path, "barrier").tolist(),
        }
        drifts = [pair[path].get("drift") for pair in pairs]
        if None not in drifts:
            paths[path]["drift"] = max(drifts)
    chord, continuous, orbit, bend = (
        values(path, "barrier") for path in (CHORD, CONTINUOUS, ORBIT, BEND)
    )
    removed = (
        chord - continuous,
        continuous - orbit,
        orbit - bend,
        bend,
        chord - values(WEIGHTS, "barrier"),
    )
    found = {
        "rates": {key: piece[key] for key in ("ends", "bends")},
        "ends": {
            key: mean_interval(
                np.array([(pair[CHORD][key][0] + pair[CHORD][key][-1]) / 2 for pair in pairs])
            )
            for key in ("loss", "error")
        },
        "paths": paths,
        "shares": {
            part: share_interval(one, chord) for part, one in zip(PARTS, removed, strict=True)
        },
    }
    if "orbit" in pairs[0][CONTINUOUS]:
        found["orbit"] = {
            key: [pair[CONTINUOUS]["orbit"][key] for pair in pairs]
            for key in pairs[0][CONTINUOUS]["orbit"]
        }
    return found


def of_rivals(piece: Mapping[str, Any]) -> dict[str, Any]:
    """All methods: means, and differences to independent networks of as many budgets, paired."""
    methods = piece["methods"]
    found: dict[str, Any] = {"tuned": piece["tuned"], "methods": {}}
    for name in METHODS:
        one = methods[name]
        said: dict[str, Any] = {"members": one["members"], "alone": one["alone"]}
        for key in ("error", "nll"):
            mine, independent = (np.array(of[key]) for of in (one, methods[INDEPENDENT]))
            said[key] = [mean_interval(mine[k]) for k in range(BUDGETS)]
            said[f"{key} to independent"] = [
                mean_interval(mine[k] - independent[k]) for k in range(BUDGETS)
            ]
            said[f"{key} to one network"] = [
                mean_interval(mine[k] - independent[0]) for k in range(BUDGETS)
            ]
        found["methods"][name] = said
    return found
