"""What the commands share: their options, and files that are never half written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metaopt.base.errors import UserError
from metaopt.base.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "checkpoints" / "pretrained"


def in_repository(origin: dict[str, Any]) -> dict[str, Any]:
    """Where a contender comes from, a checkpoint of the repository by its path in it."""
    if "checkpoint" not in origin:
        return origin
    path = Path(origin["checkpoint"]).resolve()
    return origin | {"checkpoint": str(path.relative_to(ROOT) if ROOT in path.parents else path)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--json``."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")


def add_page(parser: argparse.ArgumentParser, page: Path) -> None:
    """``--smoke`` and ``--page``, which is ``page`` unless it is said, or the sizes are tiny."""
    name = page.relative_to(ROOT)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, and no page")
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"default {name}")
    parser.set_defaults(own_page=page)


def tell(arguments: argparse.Namespace, name: str, text: str, rows: Sequence[Any]) -> None:
    """Print, and write to the page between the markers of ``name`` and to ``--json``.

    Args:
        arguments: of a parser with ``--json`` and ``add_page``.
        name: of the markers.
        text: for people.
        rows: dataclasses, all figures.
    """
    print(text)
    page = arguments.page or (None if arguments.smoke else arguments.own_page)
    if page is not None:
        write_between(page, name, text)
    if arguments.json is not None:
        write_json(arguments.json, [asdict(row) for row in rows])


def write_json(path: Path, found: Any) -> None:
    """All figures, indented."""
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"written to {path}")


def write_between(path: Path, name: str, content: str) -> None:
    """Put text between the markers ``<!-- name -->`` and ``<!-- end of name -->`` of a page.

    A page that is not there is made, with nothing but the markers and the text.

    Raises:
        UserError: where the page has not got each marker once, in order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end or text.count(begin) + text.count(end) != 2:
        raise UserError(f"{path}: expected one line {begin!r} and one line {end!r} after it")
    write_atomically(path, f"{head}{begin}\n{content}\n{end}{tail}".encode())
    print(f"written to {path}")
