"""Where the repository is, and what it ships."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "checkpoints" / "pretrained"
