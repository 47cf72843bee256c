"""Many tasks are evaluated a part at a time: the same numbers, in the same order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import learned_rule
from cases import tasks as sample
from families import Logistic, draw

from metaopt.base.process import World
from metaopt.evaluation.contenders import Contender
from metaopt.evaluation.evaluate import run_contender
from metaopt.meta.unroll import rollout, rollout_in_turn
from metaopt.rules.baselines import hand_made
from metaopt.tasks import base

STEPS = 5


def test_parts_are_equal_up_to_one_and_in_order() -> None:
    tasks = sample(learned_rule("coordinate_lstm").config.task, count=7)
    parts = tasks.in_parts(3)
    assert [part.size for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.initial[0] for part in parts]), tasks.initial[0])
    assert tasks.in_parts(7) == [tasks]
    assert tasks.in_parts() == [tasks]


@pytest.mark.parametrize("kind", ["lstm", "coordinate_lstm", "coordinate_lstm_step", "layer_units"])
def test_a_rollout_in_turn_is_the_rollout(kind: str) -> None:
    rule = learned_rule(kind)
    tasks = sample(rule.config.task, count=7)
    losses, trace = rollout(tasks, rule.optimizer, STEPS)
    found, found_trace = rollout_in_turn(tasks.in_parts(3), rule.optimizer, STEPS)
    torch.testing.assert_close(found, losses, rtol=1e-9, atol=1e-12)
    assert (trace is None) == (found_trace is None)
    if trace is not None and found_trace is not None:
        torch.testing.assert_close(found_trace.norm, trace.norm, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found_trace.log_ratio, trace.log_ratio, rtol=0, atol=1e-9)
        assert torch.equal(found_trace.refused, trace.refused)


def test_a_contender_runs_many_tasks_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own mini-batches."""
    tasks = draw(Logistic(), count=7)
    contender = Contender("GD", "baseline", hand_made("GD", {"lr": 0.1}, STEPS), {})
    wanted = run_contender(contender, tasks, STEPS, World())
    monkeypatch.setattr(base, "SIDE_BY_SIDE", 3)
    assert len(tasks.in_parts()) == 3
    found = run_contender(contender, tasks, STEPS, World())
    assert found.losses.shape == (STEPS + 1, 7)
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-12)
    assert found.seconds_per_step > 0
