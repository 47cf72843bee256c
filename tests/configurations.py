"""The configurations that ship, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metaopt.base.config import ConfigError, load
from metaopt.base.shipped import CONFIGS
from metaopt.meta.config import TrainConfig

SHIPPED = sorted(CONFIGS.rglob("*.yaml"))
EVALUATION = [path for path in SHIPPED if path.name.startswith("eval")]
STUDIES = [path for path in SHIPPED if path.name.startswith("study")]
BENCHMARKS = [*STUDIES, CONFIGS / "hardening.yaml"]
TRAINING = [path for path in SHIPPED if path not in [*EVALUATION, *BENCHMARKS]]
BASE = "lstm_update_tele.yaml"


def relative_name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def error_of(path: Path, *overrides: str, kind: Any = TrainConfig) -> str:
    """What loading a broken file says: one line."""
    with pytest.raises(ConfigError) as caught:
        load(kind, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message
