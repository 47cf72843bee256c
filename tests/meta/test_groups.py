"""Windows in groups of trajectories: the meta-gradient of the whole, whatever comes after it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BY_UNITS, FLAT, LAYER, UNITS, run_and_resume
from families import own_config
from replays import rerun
from support import UPDATE, UPDATE_AND_TELEPORT, tiny_config
from torch import Tensor

from metaopt.base.config import ConfigError, check
from metaopt.base.process import World
from metaopt.meta import groups
from metaopt.meta.config import TrainConfig
from metaopt.meta.groups import ALWAYS_WHOLE, Fitting, Grouped, graph_bytes_of_step
from metaopt.meta.trainer import MetaTrainer, Window
from metaopt.meta.windows import Replayed, StepByStep
from metaopt.rules.composed import tensors_of

CPU = torch.device("cpu")
BATCH = 7
"""Which neither 2 nor 3 divide: groups of a meta-batch differ in size."""


def config(rules: Any = None, *sections: Any, **meta: Any) -> TrainConfig:
    """Windows of 3, 3 and 2 steps of seven trajectories, in float64."""
    given = {"batch": BATCH, "steps": 8, "unroll": 3, "outer_steps": 6} | meta
    made = tiny_config(rules or UPDATE_AND_TELEPORT, *(sections or ({},)), **given)
    return made.model_copy(update={"dtype": "float64"})


CONFIGS = {
    **{loss: config(loss=loss) for loss in ("log", "log_last", "normalised", "sum")},
    "second order": config(order=2),
    "update": config({"update": UPDATE}, None),
    "flattened": config({"update": FLAT, "teleport": FLAT}, {"guard": "shrink"}),
    "units": config({"update": LAYER, "teleport": UNITS}, BY_UNITS),
    "random": config(
        {"update": UPDATE, "teleport": {"kind": "random", "norms": [0.3, 0.1]}},
        {"limit": "capped"},
    ),
    "random windows": config(
        truncation="random", horizon={"kind": "random", "low": 3}, rescale=0.5, average=0.9
    ),
}
every_config = pytest.mark.parametrize("whole", CONFIGS.values(), ids=CONFIGS.keys())


def grouped(whole: TrainConfig, group: int) -> TrainConfig:
    meta = whole.meta.model_copy(update={"group": group})
    return whole.model_copy(update={"meta": meta})


def gradients(trainer: MetaTrainer) -> list[Tensor]:
    return [p.grad for p in trainer.optimizer.parameters() if p.grad is not None]


def states(trainer: MetaTrainer) -> list[Tensor]:
    inner = trainer.inner
    assert inner is not None
    rules = [tensor for _, _, tensor in tensors_of(inner.optimizer)]
    return [*inner.weights, inner.loss, *inner.observation.grads, *rules]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def assert_alike(found: Window, wanted: Window) -> None:
    assert found.meta_loss == pytest.approx(wanted.meta_loss, rel=1e-12)
    assert found.grad_norms == pytest.approx(wanted.grad_norms, rel=1e-11)
    assert found.teleports == pytest.approx(wanted.teleports, rel=1e-9, abs=1e-12)
    assert found.skipped == wanted.skipped


@every_config
@pytest.mark.parametrize("size", [1, 3])
def test_a_window_in_groups_has_the_meta_gradient_of_the_whole(
    whole: TrainConfig, size: int
) -> None:
    """Over fresh trajectories and windows of other lengths; phi is set alike before each."""
    plain, other = MetaTrainer(whole, CPU), MetaTrainer(grouped(whole, size), CPU)
    assert isinstance(other.windows, Grouped)
    for _ in range(4):
        assert_alike(other.outer_step(), plain.outer_step())
        assert_equal(gradients(other), gradients(plain))
        assert_equal(states(other), states(plain))
        other.restore(copy.deepcopy(plain.state()))


def test_a_group_that_holds_all_changes_no_bit() -> None:
    whole = CONFIGS["log"]
    plain, other = MetaTrainer(whole, CPU), MetaTrainer(grouped(whole, BATCH), CPU)
    for _ in range(4):
        assert other.outer_step() == plain.outer_step()
    for found, wanted in zip(gradients(other), gradients(plain), strict=True):
        assert torch.equal(found, wanted)


def test_a_users_own_tasks_go_in_groups() -> None:
    """Mini-batches are those of their tasks, wherever a task lies."""
    content = own_config(batch=5, steps=4, unroll=2) | {"dtype": "float64"}
    whole = check(TrainConfig, content, "own")
    plain, other = MetaTrainer(whole, CPU), MetaTrainer(grouped(whole, 2), CPU)
    for _ in range(3):
        assert_alike(other.outer_step(), plain.outer_step())
        for found, wanted in zip(gradients(other), gradients(plain), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        other.restore(copy.deepcopy(plain.state()))


def test_one_that_is_not_finite_skips_the_whole_window() -> None:
    trainer = MetaTrainer(grouped(CONFIGS["log"], 2), CPU)
    trainer.outer_step()
    before = [p.detach().clone() for p in trainer.optimizer.parameters()]
    assert trainer.inner is not None
    trainer.inner.weights[0][3] = torch.nan
    trainer.inner.observation.grads[0][3] = torch.nan
    assert trainer.outer_step().skipped
    for found, wanted in zip(trainer.optimizer.parameters(), before, strict=True):
        assert torch.equal(found, wanted)
    assert not trainer.outer_step().skipped


def test_a_run_in_groups_resumes_to_the_bit() -> None:
    run_and_resume(grouped(CONFIGS["log"], 3), lambda trainer: None, outer=6)


class _Rank(World):
    """One of two processes, as far as shares go."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_groups_of_two_processes_add_up_to_the_whole() -> None:
    """Weighted by their shares, as ``World.mean_`` does: 4 and 3 of 7 trajectories."""
    whole = config(clip=None)
    plain = MetaTrainer(whole, CPU)
    plain.outer_step()
    sums: list[Tensor] = []
    for rank in range(2):
        own = MetaTrainer(grouped(whole, 2), CPU, _Rank(rank))
        own.outer_step()
        weighted = [G * own.local_trajectories / BATCH for G in gradients(own)]
        sums = [a + b for a, b in zip(sums, weighted, strict=True)] if sums else weighted
    assert_equal(sums, gradients(plain))


def test_replayed_windows_go_in_groups() -> None:
    """A replay overwrites what the last one returned, and groups differ in size."""
    whole = CONFIGS["log"]
    plain, other = MetaTrainer(whole, CPU), MetaTrainer(grouped(whole, 3), CPU)
    assert isinstance(other.windows, Grouped)
    step_by_step = other.windows._windows
    assert isinstance(step_by_step, StepByStep)
    record = rerun(list(other.optimizer.parameters()))
    other.windows = Grouped(Replayed(step_by_step, record), other.optimizer, 3)
    for _ in range(4):
        assert_alike(other.outer_step(), plain.outer_step())
        assert_equal(gradients(other), gradients(plain))
        other.restore(copy.deepcopy(plain.state()))


def test_pes_has_no_groups() -> None:
    with pytest.raises(ConfigError, match=r"meta.*group: estimator pes .* found 2"):
        tiny_config(UPDATE_AND_TELEPORT, {}, group=2, estimator={"kind": "pes"})


# By estimate -------------------------------------------------------------------------------------


def test_small_batches_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = MetaTrainer(CONFIGS["log"], CPU)
    assert isinstance(trainer.windows, Fitting)
    monkeypatch.setattr(groups, "GRAPH_BYTES", 1)
    monkeypatch.setattr(groups, "graph_bytes_of_step", lambda *_: pytest.fail("was estimated"))
    trainer.outer_step()


def test_large_batches_are_cut_where_the_estimate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = config(batch=ALWAYS_WHOLE + 6)
    plain, other = MetaTrainer(whole, CPU), MetaTrainer(whole, CPU)
    wanted = plain.outer_step()
    assert plain.tasks is not None
    windows = other.windows
    assert isinstance(windows, Fitting)
    assert windows.fitting(plain.tasks, 3) >= whole.meta.batch
    each = graph_bytes_of_step(plain.tasks.select(slice(0, 1)), plain.optimizer, plain.observe)
    monkeypatch.setattr(groups, "GRAPH_BYTES", 20 * 3 * each)
    # The estimate is of other tasks, which have the same shapes.
    assert windows.fitting(plain.tasks.select(slice(0, 66)), 3) == 20
    assert windows.fitting(plain.tasks.select(slice(0, 66)), 6) == 10
    assert_alike(other.outer_step(), wanted)
    assert_equal(gradients(other), gradients(plain))


def test_the_estimate_counts_what_the_graph_keeps() -> None:
    """Of an LSTM at least its gates; twice the numbers in half as many bytes each are as many."""
    sizes = {}
    for dtype in ("float32", "float64"):
        trainer = MetaTrainer(CONFIGS["update"].model_copy(update={"dtype": dtype}), CPU)
        one = trainer.validation_tasks.select(slice(0, 1))
        sizes[dtype] = graph_bytes_of_step(one, trainer.optimizer, trainer.observe)
    weights = sum(W[0].numel() for W in trainer.validation_tasks.initial)
    gates = 2 * 4 * UPDATE["hidden"] * weights
    assert gates * 4 <= sizes["float32"] <= 5 * gates * 4
    assert sizes["float64"] == pytest.approx(2 * sizes["float32"], rel=0.1)
