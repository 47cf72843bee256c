"""Lengths of trajectories and windows: their sums, their laws, budgets and resumption."""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, seeds, tiny_config

from metaopt.base.config import ConfigError, load
from metaopt.meta import build
from metaopt.meta.config import TrainConfig
from metaopt.meta.horizon import Curriculum, Even, Fixed, Horizon, Lengths, LogUniform, RandomPairs
from metaopt.meta.trainer import MetaTrainer

CPU = torch.device("cpu")
CURRICULUM = {"kind": "curriculum", "first": 2, "share": 0.5}
RANDOM = {"kind": "random", "low": 2}

steps = st.integers(1, 60)
windows = st.integers(1, 12)
parts = st.floats(0, 1, exclude_max=True)


@FEW
@given(steps, windows, seeds)
def test_windows_make_up_the_trajectory_and_cost_k_steps_each(n: int, K: int, seed: int) -> None:
    even = Even(K).windows(n, ())
    assert sum(even) == n
    assert even[:-1] == [K] * (len(even) - 1)
    drawn = Lengths(Fixed(n), RandomPairs(K), n, seed).windows(3, 0.0)
    assert sum(drawn) == n
    assert len(drawn) == len(even)
    assert min(drawn) >= 1
    assert max(drawn) <= K + K // 2
    assert drawn == Lengths(Fixed(n), RandomPairs(K), n, seed).windows(3, 0.9)


def test_random_windows_are_uniform_around_k() -> None:
    lengths = Lengths(Fixed(100), RandomPairs(10), 100, seed=1)
    firsts = Counter(lengths.windows(number, 0.0)[2] for number in range(1100))
    assert sorted(firsts) == list(range(5, 16))
    # Each of the 11 values 100 times, with a standard deviation below 10.
    assert all(abs(count - 100) < 40 for count in firsts.values())


@FEW
@given(steps, windows, parts, parts)
def test_lengths_are_whole_windows_within_the_longest(
    n: int, K: int, done: float, draw: float
) -> None:
    for horizon in (Curriculum(n, K, 1, 0.5), LogUniform(n, K, 1)):
        found = horizon.steps(done, draw)
        assert 1 <= found <= n
        assert found == n or found % K == 0


def test_a_curriculum_grows_and_ends_at_the_longest() -> None:
    horizon = Curriculum(longest=100, window=10, first=10, share=0.5)
    lengths = [horizon.steps(done / 100, 0.7) for done in range(101)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 10
    assert lengths[25] == 30  # 10 sqrt(10), in whole windows
    assert lengths[50:] == [100] * 51


def test_random_lengths_are_log_uniform() -> None:
    lengths = Lengths(LogUniform(1000, 1, 10), Even(1), 1000, seed=0)
    drawn = [sum(lengths.windows(number, 0.0)) for number in range(400)]
    assert statistics.median(drawn) == pytest.approx(100, rel=0.25)
    below = sum(n < 10 * 10**0.5 for n in drawn)
    assert below == pytest.approx(100, abs=35)


def trainer(**meta: Any) -> MetaTrainer:
    given = {"steps": 8, "unroll": 2, "outer_steps": 30} | meta
    return MetaTrainer(tiny_config(dtype="float64", **given), CPU)


LEVERS = [
    {"horizon": CURRICULUM},
    {"horizon": RANDOM},
    {"truncation": "random"},
    {"horizon": RANDOM, "truncation": "random", "unroll": 3, "steps": 9},
]


@pytest.mark.parametrize("levers", LEVERS)
def test_inner_steps_are_those_that_were_taken(levers: dict[str, Any]) -> None:
    run = trainer(**levers)
    taken, begun = 0, 0
    for _ in range(12):
        before = 0 if run.inner is None or not run.windows_left else run.inner.step
        begun += before == 0
        run.outer_step()
        assert run.inner is not None
        taken += run.inner.step - before
    batch = run.config.meta.batch
    assert run.progress.inner_steps == taken * batch
    training = run.checkpoint({}).training
    assert training["inner_steps"] == taken * batch
    assert training["trajectories_begun"] == begun * batch
    assert training["trajectories"] == taken * batch / run.config.meta.steps


@pytest.mark.parametrize("horizon", [CURRICULUM, RANDOM])
def test_budgets_do_not_depend_on_the_horizon(horizon: dict[str, Any]) -> None:
    plain, other = trainer(), trainer(horizon=horizon)
    for _ in range(12):
        plain.outer_step()
        other.outer_step()
        assert other.progress.inner_steps == plain.progress.inner_steps
    assert other.progress.drawn > plain.progress.drawn


@pytest.mark.parametrize("levers", LEVERS)
def test_a_run_resumes_anywhere(levers: dict[str, Any]) -> None:
    run = trainer(**levers)
    for _ in range(6):
        run.outer_step()
        resumed = trainer(**levers)
        resumed.restore(copy.deepcopy(run.state()))
        ahead = copy.deepcopy(run)
        for _ in range(3):
            assert resumed.outer_step() == ahead.outer_step()
        assert resumed.progress == ahead.progress


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"unknown field meta\.horizon\.first"):
        trainer(horizon={"kind": "random", "first": 2})


@pytest.mark.parametrize("horizon", [Curriculum(8, 3, 10, 0.5), LogUniform(8, 3, 10)])
@FEW
@given(done=st.floats(0, 1), draw=st.floats(0, 1, exclude_max=True))
def test_runs_shorter_than_the_least_have_one_length(
    horizon: Horizon, done: float, draw: float
) -> None:
    assert horizon.steps(done, draw) == 8


@pytest.mark.parametrize("name", ["coordinate_update_tele.yaml", "lstm_update_tele.yaml"])
@pytest.mark.parametrize("steps", [1, 4, 9, 30])
def test_shipped_configurations_take_any_number_of_steps(name: str, steps: int) -> None:
    meta = load(TrainConfig, name, [f"meta.steps={steps}"]).meta
    lengths = [sum(build.lengths(meta, 0).windows(number, 0.0)) for number in range(20)]
    assert min(lengths) >= min(steps, 10)
    assert max(lengths) <= steps


def test_the_default_is_the_plain_recipe() -> None:
    meta = tiny_config(steps=5, unroll=2).meta
    assert build.lengths(meta, 0).windows(7, 0.3) == [2, 2, 1]
