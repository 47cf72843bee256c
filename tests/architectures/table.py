"""All architectures, what is found in each (searched once), and the table of the page.

    PYTHONPATH=.:tests python -m architectures.table

writes the table into ``docs/guide/architectures.md`` anew.
"""

from __future__ import annotations

import functools
import warnings

from places import ROOT

import metaopt
from architectures.adapters import ADAPTERS
from architectures.attention import ATTENTION
from architectures.base import Architecture, Row
from architectures.clip import CLIP
from architectures.decoders import DECODERS
from architectures.encoders import ENCODERS
from architectures.llamas import LLAMAS
from architectures.pairs import PAIRS
from architectures.streams import STREAMS
from architectures.units import UNITS
from architectures.vision import VISION

PAGE = ROOT / "docs" / "guide" / "architectures.md"
NAME = "architectures"
"""Of the markers around the table."""
TRANSFORMERS = (*ENCODERS, *CLIP, *DECODERS, *PAIRS)
"""Of ``transformers``, but for those with rotary embeddings."""
ROTARY_AND_ADAPTERS = (*LLAMAS, *ADAPTERS)
"""Of ``transformers`` with rotary embeddings, and of ``peft``."""
WRITTEN = (*ATTENTION, *STREAMS, *UNITS, *VISION)
"""Those that need torch alone."""
SECTIONS = (
    ("Words, images and sound (`transformers`)", (*TRANSFORMERS, *LLAMAS)),
    ("Adapters (`peft`): all other weights are frozen", ADAPTERS),
    ("Written out: attention, streams, images", (*ATTENTION, *STREAMS, *VISION)),
    ("Written out: hidden units, experts", UNITS),
)


@functools.cache
def _searched(name: str, permutations: bool) -> metaopt.Symmetries:
    architecture = next(
        a for a in (*TRANSFORMERS, *ROTARY_AND_ADAPTERS, *WRITTEN) if a.name == name
    )
    model = architecture.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        example = architecture.example(next(model.parameters()).dtype)
        return metaopt.symmetries(model, example=example, permutations=permutations)


def searched(architecture: Architecture, permutations: bool = True) -> metaopt.Symmetries:
    """What is found in it on its example; searched once in a process."""
    return _searched(architecture.name, permutations)


def _cell(rows: list[Row], with_groups: bool) -> str:
    """Rows by group: "group: what (size), what (size); group: ..."; equal ones are counted."""
    groups: dict[str, dict[str, int]] = {}
    for row in rows:
        size = f"{row.size} x {row.blocks}" if row.blocks > 1 else str(row.size)
        text = row.what if row.group == "translation" else f"{row.what} ({{}}{size})"
        counts = groups.setdefault(row.group, {})
        counts[text] = counts.get(text, 0) + row.count
    texts = {
        group: ", ".join(
            text.format(f"{count} of " if count > 1 else "") for text, count in counts.items()
        )
        for group, counts in groups.items()
    }
    if not with_groups:
        return "; ".join(texts.values())
    return "; ".join(f"**{group}**: {text}" for group, text in texts.items())


def _line(architecture: Architecture) -> str:
    shown = [row for row in architecture.found if row.needed]
    moving = _cell([row for row in shown if row.group != "permutation"], True)
    relabelled = _cell([row for row in shown if row.group == "permutation"], False)
    left = "; ".join(row.what for row in architecture.refused)
    notes = "; ".join(filter(None, [left, architecture.says]))
    cells = (architecture.name, moving or "nothing", relabelled, notes)
    return f"| {' | '.join(cells)} |"


def markdown() -> str:
    """The tables of the page, one row an architecture, from what the tests expect."""
    parts = []
    for title, architectures in SECTIONS:
        parts += [
            f"### {title}",
            "",
            "| model | moves | relabelled | left alone; notes |",
            "| --- | --- | --- | --- |",
            *(_line(a) for a in architectures if not a.same_as),
            "",
        ]
    return "\n".join(parts)


def written() -> str:
    """The tables as the page has them."""
    text = PAGE.read_text(encoding="utf-8")
    return text.split(f"<!-- {NAME} -->\n")[1].split(f"\n<!-- end of {NAME} -->")[0]


if __name__ == "__main__":
    from studies.output import write_between

    write_between(PAGE, NAME, markdown())
