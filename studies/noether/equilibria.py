"""Part a: every row of the table of noise equilibria, by long SGD from several starts.

Starts lie beside the teacher's orbit, g . (teacher + a little), g random. SGD runs at three
learning rates, at the smaller ones from where the larger ended; what its mean charges tend to as
lr -> 0 is compared with the closed form, and for linear groups in general position, where noise
turns the units as well, with where the whole slow flow rests. Gradient descent from the same starts
keeps the charge that it starts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from studies.noether.claims import HALVINGS, VERDICTS, Claim, as_json, claim, interval
from studies.noether.folder import Folder
from studies.noether.orbits import Problem, displaced, invariants, repeated
from studies.noether.rows import SEED, normal, problems
from studies.noether.sgd import Length, descent, limits
from studies.noether.slow_flow import rest


@dataclass(frozen=True)
class Size:
    """Of the part."""

    starts: int
    runs: int  # from each start
    length: float  # a factor on the lengths of ``Length``
    descent: int  # steps of gradient descent


FULL = Size(starts=4, runs=16, length=1.0, descent=5000)
SMOKE = Size(starts=2, runs=2, length=0.002, descent=50)
FAR = {False: 0.35, True: 0.2}
"""Standard deviation of the generator's entries that make starts, for scalings and matrices."""
BESIDE = 0.05
SLOW = 300
"""Steps of the slow flow, 9 relaxation times."""


def row(problem: Problem, size: Size, index: int) -> dict[str, Any]:
    """One row of the table."""
    target = problem.equilibrium()
    predicted = {name: float(value) for name, value in invariants(problem, target).items()}
    far = FAR[problem.pairs[0].linear]
    start = displaced(problem, size.starts, far, BESIDE, normal(1000 + index))
    began = {name: np.asarray(value) for name, value in invariants(problem, start).items()}
    length = Length().times(size.length)
    draws = item_generator(Stream.NOISE_STUDY, SEED, 2000 + index)
    found = limits(problem, repeated(start, size.runs), problem.rate(target), length, draws)
    still = invariants(problem, descent(problem, start, problem.lr, size.descent))
    charges = {}
    for name, value in predicted.items():
        by_lr = {key: values[name] for key, values in found.items()}
        groups = by_lr["0"].reshape(size.starts, size.runs)
        charges[name] = {
            "predicted": value,
            "starts": began[name].tolist(),
            "descent": still[name].tolist(),
            "of starts": [interval(group) for group in groups],
            "runs": {key: values.tolist() for key, values in by_lr.items()},
        }
    return {"name": problem.name, "residual": problem.residual(target), "charges": charges}


def told(found: dict[str, Any], slow: dict[str, float]) -> list[Claim]:
    """The claims of a row: where SGD ends, and how far gradient descent goes."""
    claims = []
    for name, one in found["charges"].items():
        where, predicted = f"{found['name']}, {name}", one["predicted"]
        ends = np.array(one["runs"]["0"])
        claims.append(claim(f"{where}, lr -> 0, closed form", ends, "=", predicted))
        starts, still = np.array(one["starts"]), np.array(one["descent"])
        way = np.abs(still - starts) / np.abs(predicted - starts)
        claims.append(claim(f"{where}: share of the way that GD goes", way, "<", 0.5))
        if slow:
            claims.append(claim(f"{where}, lr -> 0, slow flow", ends, "=", slow[name]))
    return claims


def turned(problem: Problem, size: Size) -> dict[str, float]:
    """Where the slow flow rests."""
    return rest(problem, problem.equilibrium(), max(1, round(SLOW * min(1.0, size.length))))


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All rows, each kept when it is done."""
    rows, slow = {}, {}
    for index, (key, problem) in enumerate(problems().items()):
        rows[key] = folder.kept(key, partial(row, problem, size, index))
        general = problem.pairs[0].linear and not key.endswith("_one")
        slow[key] = folder.kept(f"{key}_slow", partial(turned, problem, size)) if general else {}
    return {
        "claims": as_json([one for key in rows for one in told(rows[key], slow[key])]),
        "tables": [_table(rows, slow)],
        "own tables": True,
        "rows": {key: _short(found) | {"slow": slow[key]} for key, found in rows.items()},
    }


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the single runs."""
    charges = {}
    for name, one in found["charges"].items():
        means = {key: interval(np.array(values)) for key, values in one["runs"].items()}
        charges[name] = {key: value for key, value in one.items() if key != "runs"}
        charges[name]["lr"] = means
    return {"name": found["name"], "residual": found["residual"], "charges": charges}


def _table(rows: dict[str, Any], slow: dict[str, dict[str, float]]) -> str:
    """Each charge: predicted, of SGD at each learning rate and its limit, of gradient descent."""
    lines = []
    for key, found in rows.items():
        claims = {one.what: one for one in told(found, slow[key])}
        for name, one in found["charges"].items():
            where, starts = f"{found['name']}, {name}", one["starts"]
            ends = claims[f"{where}, lr -> 0, closed form"]
            flow = claims.get(f"{where}, lr -> 0, slow flow")
            rest = [f"{flow.predicted:.4f}", VERDICTS[flow.holds]] if flow else ["the same", ""]
            lines.append(
                [
                    where,
                    f"{min(starts):.2f} to {max(starts):.2f}",
                    *(f"{np.mean(one['runs'][f'{share:g}']):.4f}" for share in HALVINGS),
                    f"{ends.mean:.4f} ({ends.low:.4f} to {ends.high:.4f})",
                    f"{ends.predicted:.4f}",
                    VERDICTS[ends.holds],
                    *rest,
                    f"{claims[f'{where}: share of the way that GD goes'].mean:.4f}",
                ]
            )
    header = ["charge", "starts", *(f"SGD, {share:g} lr" for share in HALVINGS), "SGD, lr -> 0"]
    header += ["closed form", "", "slow flow", "", "share of the way that GD goes"]
    return markdown_table(header, lines)
