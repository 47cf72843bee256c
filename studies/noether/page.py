"""The page's tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from studies.noether.claims import table

TITLES = {
    "a": "(a) The table of equilibria",
    "b": "(b) Factorisation 30-40-30: sharper or flatter",
    "c": "(c) One weight after another",
    "d": "(d) Scale-invariant weights",
    "e": "(e) One balance instead of a warm-up",
    "f": "(f) Digits and Fashion-MNIST",
}


def text(parts: Mapping[str, Any]) -> str:
    """All parts that were run; what is told without a verdict is among the figures alone."""
    pieces = []
    for letter, part in parts.items():
        said = [one["holds"] for one in part["claims"] if one["holds"] is not None]
        pieces.append(f"### {TITLES[letter]}\n\n{sum(said)} of {len(said)} statements hold.")
        if "own tables" not in part:
            pieces.append(table([one for one in part["claims"] if one["holds"] is not None]))
        pieces += part["tables"]
    # Columns need not stand below each other: the page would be half as long again.
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", "\n\n".join(pieces)))
