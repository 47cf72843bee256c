"""The page's tables."""

from __future__ import annotations

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
    """All parts that were run."""
    pieces = []
    for letter, part in parts.items():
        said = [one["holds"] for one in part["claims"] if one["holds"] is not None]
        pieces.append(f"### {TITLES[letter]}\n\n{sum(said)} of {len(said)} statements hold.")
        if "own tables" not in part:
            pieces.append(table(part["claims"]))
        pieces += part["tables"]
    return "\n\n".join(pieces)
