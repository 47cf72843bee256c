"""What the commands share: their options, and JSON files that are never half written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from metaopt.checkpoint import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--json``."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")


def write_json(path: Path, found: Any) -> None:
    """All figures, indented."""
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"written to {path}")
