"""Symmetries of a model as people read them: by blocks of the model, equal blocks once.

    37 symmetries, orbit of dimension 1,179,648
      group                  units  made by -> read by
      layer.{0-11} (each of dimension 98,304)
        general linear     12 x 64  attention.query -> attention.key
        ...

A block is the longest part of a path that all modules of a symmetry share and that ends with a
number. Blocks that stand alone with one symmetry are not told apart from the rest of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from metaopt.symmetry.names import ARROW, ranges, short, shortened, sides

HEAD = f"{'group':<18}  {'units':>8}  made by{ARROW}read by"


@dataclass(frozen=True)
class Row:
    """One symmetry, as it is printed.

    Attributes:
        group: the name of its group.
        size: the width of an element.
        blocks: the number of elements side by side.
        dimension: the dimension of its orbit.
        name: the modules that make the hidden space -> those that read it.
        tensors: the paths of the tensors that it moves.
        assumes: what was not checked; "" if nothing.
    """

    group: str
    size: int
    blocks: int
    dimension: int
    name: str
    tensors: tuple[str, ...]
    assumes: str

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """What makes the hidden space, and what reads it."""
        return sides(self.name)

    @property
    def block(self) -> str:
        """The block of the model in which it lies."""
        made_by, read_by = self.sides
        return block_of([*made_by, *read_by])

    def within(self, block: str) -> Row:
        """The row with names within a block, and without those of tensors."""
        own = [[path.removeprefix(f"{block}.") for path in side] for side in self.sides if side]
        return replace(self, name=ARROW.join(", ".join(side) for side in own), tensors=())

    def line(self, with_assumption: bool) -> str:
        """The row as it is printed."""
        width = f"{self.blocks} x {self.size}" if self.blocks > 1 else str(self.size)
        assumed = f"   [if {self.assumes}]" if self.assumes and with_assumption else ""
        return f"{self.group:<18}  {width:>8}  {short(self.name)}{assumed}"

    def plain(self) -> dict[str, Any]:
        """The row as a dictionary, of which a table can be made."""
        made_by, read_by = self.sides
        return {
            "group": self.group,
            "size": self.size,
            "blocks": self.blocks,
            "dimension": self.dimension,
            "made_by": ranges(made_by),
            "read_by": ranges(read_by),
            "tensors": list(self.tensors),
            "assumes": self.assumes,
        }


def printed(rows: Sequence[Row], skipped: Sequence[tuple[str, str]], moved: Set[str]) -> str:
    """The table that ``print(symmetries)`` shows.

    Args:
        rows: the symmetries.
        skipped: the paths of the modules that are left alone, and why.
        moved: the paths of all modules that a symmetry moves. One may move as a reader of one
            hidden space and be skipped as a maker of another.
    """
    lines = [f"{len(rows)} {'symmetry' if len(rows) == 1 else 'symmetries'}"]
    if rows:
        lines[0] += f", orbit of dimension {sum(row.dimension for row in rows):,}"
        assumptions = {row.assumes for row in rows}
        shared = len(rows) > 1 and len(assumptions) == 1 and "" not in assumptions
        lines += [f"  {HEAD}", *(f"  {line}" for line in _by_blocks(rows, not shared))]
        if shared:
            lines.append(f"all of them if {assumptions.pop()}")
    if skipped:
        refusals = _refusals(skipped, moved)
        width = max(len(name) for name, _ in [("left alone", ""), *refusals])
        lines.append(f"{'left alone':<{width}}    why")
        lines += [f"  {name:<{width}}  {why}" for name, why in refusals]
    return "\n".join(lines)


def _by_blocks(rows: Sequence[Row], with_assumptions: bool) -> list[str]:
    """The lines of all rows: first those of no block or alone in theirs, then block by block."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(row.block, []).append(row)
    equal: dict[tuple[Row, ...], list[str]] = {}
    for block, found in blocks.items():
        equal.setdefault(tuple(row.within(block) for row in found), []).append(block)
    alone = {""} | {p[0] for members, p in equal.items() if len(members) == len(p) == 1}
    lines = [row.line(with_assumptions) for row in rows if row.block in alone]
    for members, paths in equal.items():
        if paths[0] in alone:
            continue
        dimension = sum(row.dimension for row in members)
        each = "each " if len(paths) > 1 else ""
        lines.append(f"{ranges(paths)} ({each}of dimension {dimension:,})")
        lines += [f"  {row.line(with_assumptions)}" for row in members]
    return lines


def block_of(paths: Sequence[str]) -> str:
    """The longest part that all paths share, and go beyond, up to a number; "" if there is none.

    Args:
        paths: at least one path.
    """
    shared: list[str] = []
    # The last part of each path is its own name.
    for parts in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    while shared and not shared[-1].isdecimal():
        shared.pop()
    return ".".join(shared)


def _refusals(skipped: Sequence[tuple[str, str]], moved: Set[str]) -> list[tuple[str, str]]:
    """Names and reasons; those of several blocks with equal reasons are written once."""
    numbered = [(module, reason, *_relative(module, reason)) for module, reason in skipped]
    # How many blocks share a reason as it stands, and once it counts from their own number.
    shared: dict[str, set[str]] = {}
    for _, reason, block, relative in numbered:
        for text in {reason, relative}:
            shared.setdefault(text, set()).add(block)
    several: dict[tuple[bool, str], list[tuple[str, str]]] = {}
    for module, reason, block, relative in numbered:
        best = max((relative, reason), key=lambda text: len(shared[text]))
        several.setdefault((module in moved, best), []).append((module, block))
    found = []
    for (is_moved, relative), members in several.items():
        why = _absolute(relative, [block for _, block in members])
        for name in shortened(module for module, _ in members):
            if is_moved:
                found.append((f"output of {name}", why.removeprefix("its output ")))
            else:
                found.append((name or "(the model)", why))
    return found


def _relative(module: str, reason: str) -> tuple[str, str]:
    """The block of a module, and the reason with numbers of such blocks counted from its own."""
    block = block_of([f"{module}."])
    parent, _, number = block.rpartition(".")
    if not block:
        return block, reason
    before = re.escape(f"{parent}.") if parent else ""
    # A path of the same kind of block: where \0 and \1 stand, its number is own + offset.
    return block, re.sub(
        rf"(?<![\w.]){before}(\d+)\.", lambda m: f"\0{int(m[1]) - int(number)}\1", reason
    )


def _absolute(relative: str, blocks: Sequence[str]) -> str:
    """The reason of all these blocks, with their numbers."""

    def paths(match: re.Match[str]) -> str:
        parts = [block.rpartition(".") for block in blocks]
        return ranges(f"{p}{dot}{int(n) + int(match[1])}" for p, dot, n in parts) + "."

    return re.sub("\0(-?\\d+)\1", paths, relative)
