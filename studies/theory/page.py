"""The page's tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from studies.noether.claims import table

TITLES = {
    "a": "(a) The bound over the whole orbit",
    "b": "(b) Newton's direction on a level set",
    "c": "(c) When one teleport is enough",
    "d": "(d) Strongly convex losses",
    "e": "(e) Test functions",
    "f": "(f) Points beside a curved minimum",
}


def text(parts: Mapping[str, Any]) -> str:
    """All parts that were run."""
    pieces = []
    for letter, part in parts.items():
        claims = part["claims"]
        held = sum(one["holds"] for one in claims)
        pieces.append(f"### {TITLES[letter]}\n\n{held} of {len(claims)} statements hold.")
        pieces += [table(claims), *part["tables"]]
    # Columns need not stand below each other: the page would be half as long again.
    return re.sub("-{4,}", "---", re.sub(" {2,}", " ", "\n\n".join(pieces)))
