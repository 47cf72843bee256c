"""What MkDocs calls while it builds the site: the table of configuration fields, from the code."""

from __future__ import annotations

from typing import Any

from metaopt.__main__ import tables

MARKER = "<!-- config table -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the table where its page has the marker."""
    return markdown.replace(MARKER, tables()) if MARKER in markdown else markdown
