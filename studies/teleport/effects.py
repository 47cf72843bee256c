"""What teleports change, seed by seed, and which part of it is whose."""

from __future__ import annotations

from typing import Any

import numpy as np

from studies.teleport.intervals import Array, mean_interval, share_interval
from studies.teleport.training import (
    KEPT,
    NONE,
    OWN,
    RANDOM,
    RECIPE,
    RESET,
    SCALING,
    TELEPORTS,
)

PARTS = ("reset", "drift", "teleport")
WORST = 1e3
"""What a loss that is not finite, or greater, counts as."""


def logs(losses: Any) -> Array:
    """Of losses [epochs, variants, seeds]."""
    values = np.nan_to_num(np.array(losses, dtype=np.float64), nan=WORST, posinf=WORST)
    return np.log(values.clip(1e-12, WORST))


def by_second(curve: Array, plain: Array, epochs: Array, late: Array) -> Array:
    """A curve [epochs, seeds] at the times at which the plain run ends its epochs.

    Args:
        curve: log losses of runs that ``late`` seconds are added to.
        plain: log losses of the runs without teleports, for times before the first one.
        epochs: seconds at which a run without teleports ends each epoch.
        late: seconds added at each of these moments.
    """
    shifted = epochs + late
    columns = [
        np.interp(epochs, shifted, curve[:, seed], left=plain[0, seed])
        for seed in range(curve.shape[1])
    ]
    return np.stack(columns, axis=1)


def effects(run: dict[str, Any], seconds: dict[str, float], batches: int) -> dict[str, Any]:
    """Differences of log losses with intervals, seed by seed.

    ``speed`` is the training loss, a geometric mean over the epochs from the teleports on, at equal
    epochs; ``clock`` the same at equal seconds; ``test`` the test loss over these epochs, ``end``
    and ``test end`` the two losses at the end.

    The effect of the recipe is cut into three that sum to it: *reset*, reset alone to nothing;
    *drift*, a random element of the same norm (with the same reset) to reset alone; *teleport*, the
    searched element to the random one.
    """
    names, first = run["variants"], run["epoch"]
    train, test = (logs(run["losses"][which]) for which in ("train", "test"))
    times: Array = np.arange(len(train), dtype=np.float64) * batches * seconds["step"]
    late: Array = np.where(times > times[first], TELEPORTS * seconds["teleport"], 0.0).astype(
        np.float64
    )
    clocked = train.copy()
    for v, name in enumerate(names):
        if name in (RANDOM.name, RECIPE.name, KEPT.name, OWN.name):
            clocked[:, v] = by_second(train[:, v], train[:, names.index(NONE.name)], times, late)
    after = slice(first + 1, None)
    measures = {
        "speed": train[after].mean(0),
        "clock": clocked[after].mean(0),
        "test": test[after].mean(0),
        "end": train[-1],
        "test end": test[-1],
    }
    found: dict[str, Any] = {
        "rates": dict(zip(names, run["rates"], strict=True)),
        "late_updates": TELEPORTS * seconds["teleport"] / seconds["step"],
        "seconds": seconds,
        "teleports": run["teleports"],
        "diverged": dict(zip(names, (train[-1] > train[0]).sum(1).tolist(), strict=True)),
        "curves": {
            which: np.exp(values.mean(2)).round(5).T.tolist()
            for which, values in (("train", train), ("test", test))
        },
        "names": names,
        "plain": {},
        "to plain": {},
        "parts": {},
    }
    for key, values in measures.items():
        at = dict(zip(names, values, strict=True))
        plain = at[NONE.name]
        found["plain"][key] = float(np.exp(plain.mean()))
        found["to plain"][key] = {
            name: mean_interval(of - plain) for name, of in at.items() if name != NONE.name
        }
        found["parts"][key] = _parts(at)
    return found


def _parts(at: dict[str, Array]) -> dict[str, Any]:
    """The recipe's effect and its three parts, each (mean, low, high) of log ratios."""
    plain, recipe, random = at[NONE.name], at[RECIPE.name], at[RANDOM.name]
    reset = at.get(RESET.name, plain)
    whole = recipe - plain
    parts = dict(zip(PARTS, (reset - plain, random - reset, recipe - random), strict=True))
    said: dict[str, Any] = {"whole": mean_interval(whole)}
    said |= {name: mean_interval(values) for name, values in parts.items()}
    said["scaling"] = mean_interval(at[SCALING.name] - plain)
    _, low, high = said["whole"]
    # Shares of an effect that may be nothing are not defined.
    if low > 0 or high < 0:
        said["shares"] = {name: share_interval(values, whole) for name, values in parts.items()}
    return said
