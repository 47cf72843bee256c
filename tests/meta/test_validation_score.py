"""The score of a validation: in the units of the meta-loss."""

from __future__ import annotations

import math

import pytest

from metaopt.meta.validation import validation_score


def test_the_score_is_the_mean_log_after_the_first_step() -> None:
    assert validation_score([50.0, 1.0, 4.0], 1e-12) == pytest.approx(math.log(2))


def test_losses_that_rounding_alone_tells_apart_do_not_decide() -> None:
    rounded = [1e-9] * 90
    early = [5e5, *[1.0] * 9, 1e-2, *[2 * loss for loss in rounded]]
    late = [5e5, *[1.0] * 9, 1e-1, *rounded]
    assert validation_score(early, 1e-7) < validation_score(late, 1e-7)
    assert validation_score(early, 1e-30) > validation_score(late, 1e-30)
