"""docs/guide/teleporting.md: its code runs, and prints what stands there, up to rounding."""

from __future__ import annotations

from printed_pages import require_printed


def test_the_code_prints_what_the_page_shows() -> None:
    require_printed("teleporting.md", rounding=1e-9)
