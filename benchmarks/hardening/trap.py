"""What damaged files ask to be imported or called, so that it is found out where one is obeyed."""

from __future__ import annotations

SPRUNG: list[str] = []
"""What was called."""


class Trap:
    """Anything."""

    def __init__(self, *given: object) -> None:
        SPRUNG.append("Trap")


def spring() -> None:
    """Something that must not be called."""
    SPRUNG.append("spring")
