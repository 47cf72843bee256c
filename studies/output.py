"""What the studies and benchmarks share: a page that is written, files that are never half written.

A command that makes figures for the documentation has one ``Page``. ``--write-page`` puts its text
between the markers of that page, and all its figures into STEM.json (and STEM.png) beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaopt.base.errors import UserError
from metaopt.base.files import make_folder, write_atomically

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "checkpoints" / "pretrained"
DOCS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Page:
    """A page of the documentation, and the part of it that a command writes."""

    path: Path  # of the page
    name: str  # of the markers ``<!-- name -->`` and ``<!-- end of name -->`` around the part
    stem: str  # of the files beside the page, STEM.json and STEM.png

    def parse(
        self, parser: argparse.ArgumentParser, given: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """Add ``--write-page`` and ``--json``, and parse.

        Args:
            parser: with everything else, ``--smoke`` if there are tiny sizes.
            given: arguments instead of the command line's.

        Raises:
            UserError: before hours of work, where the page has no place for the text, or the sizes
                are too tiny for it.
        """
        parser.add_argument(
            "--write-page",
            type=Path,
            nargs="?",
            const=self.path,
            metavar="FILE",
            help=f"into {self.path.relative_to(ROOT)}, or another page",
        )
        add_json(parser)
        arguments = parser.parse_args(given)
        if arguments.write_page is not None:
            if arguments.write_page == self.path and getattr(arguments, "smoke", False):
                raise UserError("--write-page: what --smoke finds means nothing; leave one out")
            _parts(arguments.write_page, self.name)
        return arguments

    def save(self, arguments: argparse.Namespace, found: Any, figure: bytes | None = None) -> None:
        """Write the files beside the page, and ``--json``, as far as they are asked for."""
        page: Path | None = arguments.write_page
        if arguments.json is not None:
            write_json(arguments.json, found)
        if page is None:
            return
        # Another page beside its own has files of its own.
        is_neighbour = page != self.path and page.resolve().parent == self.path.parent
        stem = page.stem if is_neighbour else self.stem
        if found is not None:
            write_json(page.with_name(f"{stem}.json"), found)
        if figure is not None:
            path = page.with_name(f"{stem}.png")
            write_atomically(path, figure)
            print(f"written to {path}")

    def tell(
        self,
        arguments: argparse.Namespace,
        text: str,
        found: Any = None,
        figure: bytes | None = None,
    ) -> None:
        """Print, and write what is asked for.

        Args:
            arguments: from ``parse``.
            text: for people.
            found: all figures, for JSON.
            figure: a PNG.
        """
        print(text)
        self.save(arguments, found, figure)
        if arguments.write_page is not None:
            write_between(arguments.write_page, self.name, text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")


def in_repository(origin: dict[str, Any]) -> dict[str, Any]:
    """Where a contender comes from, a checkpoint of the repository by its path in it."""
    if "checkpoint" not in origin:
        return origin
    path = Path(origin["checkpoint"]).resolve()
    return origin | {"checkpoint": str(path.relative_to(ROOT) if ROOT in path.parents else path)}


def git(*arguments: str) -> str | None:
    """What git says of the repository; None where it says nothing, or is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def commit() -> str | None:
    """Of the code, where it is a git repository."""
    return git("rev-parse", "HEAD")


def png(figure: Any, dpi: int, top: float = 1.0) -> bytes:
    """A figure of matplotlib as a PNG, panels below ``top``; it is closed."""
    from matplotlib import pyplot

    figure.tight_layout(rect=(0, 0, 1, top))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    pyplot.close(figure)
    return buffer.getvalue()


def write_json(path: Path, found: Any) -> None:
    """All figures, indented."""
    make_folder(path.parent)
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"written to {path}")


def write_between(path: Path, name: str, content: str) -> None:
    """Put text between the markers ``<!-- name -->`` and ``<!-- end of name -->`` of a page.

    A page that is not there is made, with nothing but the markers and the text.

    Raises:
        UserError: where the page has not got each marker once, in order.
    """
    head, tail = _parts(path, name)
    make_folder(path.parent)
    write_atomically(path, f"{head}\n{content}\n{tail}".encode())
    print(f"written to {path}")


def _parts(path: Path, name: str) -> tuple[str, str]:
    """A page up to its first marker, and from its second one on."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end or text.count(begin) + text.count(end) != 2:
        raise UserError(f"{path}: expected one line {begin!r} and one line {end!r} after it")
    return head + begin, end + tail
