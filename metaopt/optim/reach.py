"""How far a learned rule goes: the inner steps that it was meta-trained for, and tested to.

    reach = max(trained, tested)

Within its reach a rule has been seen at work. Past it nobody has: what it does there is up to its
networks, and up to whether its steps fade by themselves (docs/guide/horizons.md). A training that
goes further is told so once, and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaopt.base import checkpoint
from metaopt.base.checkpoint import CheckpointError
from metaopt.base.config import check
from metaopt.meta.config import CurriculumConfig, RandomHorizonConfig, TrainConfig
from metaopt.meta.horizon import Curriculum

PAGE = "docs/guide/horizons.md"
TESTED = "tested_steps"
"""The field of a checkpoint's ``training`` that says how far the rule was tested."""
TESTED_BY = "tested_by"
"""And the command that ran the test."""
MOST = 10**12
"""No test is longer: a file that claims more is not believed."""


class PastHorizonWarning(UserWarning):
    """A rule steps further than it was meta-trained for or tested to."""


@dataclass(frozen=True)
class Reach:
    """How far a rule goes.

    Attributes:
        trained: inner steps of the longest trajectories that it was meta-trained on.
        lengths: what those lengths were, in words; empty where all were alike.
        tested: inner steps to which somebody ran it and saw it hold, or None.
    """

    trained: int
    lengths: str = ""
    tested: int | None = None

    @property
    def steps(self) -> int:
        """The larger of the steps trained for and tested to."""
        return max(self.trained, self.tested or 0)

    def __str__(self) -> str:
        """E.g. ``meta-trained for 100 steps (lengths from 10, log-uniform), tested to 1,000``."""
        more = f" ({self.lengths})" if self.lengths else ""
        tested = "" if self.tested is None else f", tested to {self.tested:,}"
        return f"meta-trained for {self.trained:,} steps{more}{tested}"


def reach_of(config: TrainConfig, training: Mapping[str, Any], source: str) -> Reach:
    """How far the rule of a checkpoint goes.

    Args:
        config: the configuration that it was meta-trained with.
        training: its field of that name.
        source: names it in errors.

    Raises:
        CheckpointError: where the file says what cannot be of how far it was tested.
    """
    tested = training.get(TESTED)
    if tested is not None and (type(tested) is not int or not 0 < tested <= MOST):
        raise CheckpointError(
            f"{source}: metadata field training: {TESTED}: found {tested!r:.40}, expected a whole "
            f"number of inner steps, from 1 to {MOST:,}"
        )
    return Reach(_longest(config, training), _lengths(config), tested)


def record_test(path: Path, steps: int, command: str) -> Reach:
    """Write into a checkpoint that the rule was run to ``steps`` and held; all else stays.

    Called by the command that ran the test and judged it. A test of fewer steps than the file
    already speaks of is not written.

    Args:
        path: the checkpoint.
        steps: inner steps of the test.
        command: the command that ran the test, for the model card.

    Returns:
        The reach as the file has it now.

    Raises:
        CheckpointError: where the file is no checkpoint, or the number none.
    """
    content = checkpoint.read(path)
    config = check(TrainConfig, content.config, f"{path}: metadata field config")
    before = reach_of(config, content.training, str(path))
    training = content.training | {TESTED: steps, TESTED_BY: command}
    after = reach_of(config, training, str(path))
    if steps <= (before.tested or 0):
        return before
    checkpoint.write(path, replace(content, training=training))
    return after


def _lengths(config: TrainConfig) -> str:
    match config.meta.horizon:
        case RandomHorizonConfig(low=low):
            return f"lengths from {min(low, config.meta.steps):,}, log-uniform"
        case CurriculumConfig(first=first):
            return f"lengths that grew from {min(first, config.meta.steps):,}"
        case _:
            return ""


def _longest(config: TrainConfig, training: Mapping[str, Any]) -> int:
    """Steps of the longest trajectories so far: a curriculum may not yet have reached the end."""
    meta, outer_step = config.meta, training.get("outer_step")
    if isinstance(meta.horizon, CurriculumConfig) and type(outer_step) is int:
        done = min(1.0, max(0, outer_step) / meta.outer_steps)
        grown = Curriculum(meta.steps, meta.unroll, meta.horizon.first, meta.horizon.share)
        return grown.steps(done, 0.0)
    return meta.steps
