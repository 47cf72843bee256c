"""The page's tables and its figure."""

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
        pieces.append(f"### {TITLES[letter]}\n\n{table(part['claims'])}")
        pieces += part.get("tables", [])
    return "\n\n".join(pieces)


def figure(parts: Mapping[str, Any]) -> bytes | None:
    """What parts drew."""
    return None
