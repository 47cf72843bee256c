"""What the runs say: the best rate of each column, and the rule beside AdamW with a cosine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metaopt.base.loss_statistics import Array, clean, diverged, geomean
from studies.carry.runs import Piece, pieces
from studies.carry.settings import Setting, numbers
from studies.rivals.contenders import COSINE, Contender

Found = Mapping[str, Any]


def outcome(
    setting: Setting, contenders: Sequence[Contender], runs: Mapping[Piece, Mapping[str, Any]]
) -> dict[str, Any]:
    """All of a setting, for files.

    Args:
        setting: what was trained.
        contenders: who may take part.
        runs: losses and seconds of all its pieces.
    """
    found = {}
    for contender in contenders:
        own = list(pieces(setting, [contender]))
        if own:
            found[contender.name] = _of_one(setting, contender, own, runs)
    return {
        "about": setting.task.about,
        "parameters": numbers(setting.task),
        "marks": list(setting.marks),
        "told": list(setting.told),
        "seeds": setting.seeds,
        "contenders": found,
    }


def _of_one(
    setting: Setting,
    contender: Contender,
    own: Sequence[Piece],
    runs: Mapping[Piece, Mapping[str, Any]],
) -> dict[str, Any]:
    last = setting.marks[-1]
    rates = list(dict.fromkeys(piece.rate for piece in own))

    def of_rate(rate: float, horizon: int) -> list[Piece]:
        return [piece for piece in own if (piece.rate, piece.horizon) == (rate, horizon)]

    def losses(rate: float, horizon: int) -> Array:
        """[marks, seeds], the first row before the first step."""
        return np.array([runs[piece]["losses"] for piece in of_rate(rate, horizon)]).T

    cells = {}
    for i, mark in enumerate(setting.marks):
        horizon = setting.horizon(mark) if contender.told else last
        at = {rate: losses(rate, horizon)[i + 1] for rate in rates}
        rate = min(rates, key=lambda rate: float(geomean(at[rate])))
        cells[mark] = {
            "rate": rate,
            "losses": clean(at[rate]).tolist(),
            "at_edge": len(rates) > 1 and rate in (min(rates), max(rates)),
        }
    shown = cells[last]["rate"]
    return {
        "learned": contender.learned,
        "rates": rates,
        "cells": cells,
        "seconds": float(np.median([runs[p]["seconds"] / last for p in of_rate(shown, last)])),
        "diverged": diverged(losses(shown, last)),
    }


def ratios(found: Found, setting: str, name: str) -> Iterator[tuple[int, Array]]:
    """Losses of a contender over those of AdamW with a cosine, of each seed; mark by mark."""
    of = found["settings"][setting]["contenders"]
    for mark in found["settings"][setting]["marks"]:
        own, beside = (np.array(of[one]["cells"][str(mark)]["losses"]) for one in (name, COSINE))
        yield mark, own / beside


def behind(found: Found) -> list[str]:
    """Where the rule ends up worse than AdamW with a cosine, or diverges: a line each."""
    rule, lines = found["rule"], []
    for setting, of in found["settings"].items():
        means = {mark: f"{geomean(each):.3g}" for mark, each in ratios(found, setting, rule)}
        worse = [f"{mark:,} ({times} times)" for mark, times in means.items() if float(times) > 1]
        if worse:
            lines.append(f"{setting}: behind {COSINE}, at {', '.join(worse)}")
        if of["contenders"][rule]["diverged"]:
            lines.append(
                f"{setting}: {of['contenders'][rule]['diverged']} of {of['seeds']} diverged"
            )
    return lines
