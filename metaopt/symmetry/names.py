"""Names of symmetries, and many paths in few words: ``layers.{0-11}.mlp.down_proj``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

ARROW = " -> "
"""Between what makes a hidden space and what reads it, in the name of a symmetry."""


def sides(name: str) -> tuple[list[str], list[str]]:
    """The modules that make the hidden space, and those that read it, by a symmetry's name."""
    made_by, _, read_by = name.partition(ARROW)
    return made_by.split(", "), read_by.split(", ") if read_by else []


def short(name: str) -> str:
    """The name of a symmetry, paths that differ by one number written as one."""
    return ARROW.join(ranges(side) for side in sides(name) if side)


def ranges(paths: Iterable[str]) -> str:
    """Paths that differ by one number are written as one; separated by commas."""
    return ", ".join(shortened(paths))


def shortened(paths: Iterable[str]) -> list[str]:
    """The paths, each once, those that differ by one number written as one.

    Args:
        paths: paths of modules or tensors, like ``layers.0.mlp``.
    """
    found = [tuple(path.split(".")) for path in dict.fromkeys(paths)]
    for place in range(max(map(len, found), default=0)):
        numbers: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
        for parts in found:
            is_number = place < len(parts) and parts[place].isdecimal()
            before, after = (parts[:place], parts[place + 1 :]) if is_number else (parts, ())
            several = numbers.setdefault((before, ("", *after) if is_number else ()), [])
            several += [int(parts[place])] if is_number else []
        found = [
            (*before, _interval(several), *after[1:]) if after else before
            for (before, after), several in numbers.items()
        ]
    return [".".join(parts) for parts in found]


def _interval(numbers: Sequence[int]) -> str:
    """``7``, ``{0-11}`` or ``{0-3,7}``."""
    if len(numbers) == 1:
        return str(numbers[0])
    numbers = sorted(numbers)
    starts = [numbers[0], *(n for m, n in pairwise(numbers) if n != m + 1)]
    ends = [*(m for m, n in pairwise(numbers) if n != m + 1), numbers[-1]]
    runs = [
        f"{a}-{b}" if b > a + 1 else ",".join(map(str, range(a, b + 1)))
        for a, b in zip(starts, ends, strict=True)
    ]
    return f"{{{','.join(runs)}}}"
