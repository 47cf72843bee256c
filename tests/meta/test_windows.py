"""Replayed windows against those run step by step; on a CUDA device, as graphs."""

from __future__ import annotations

import pytest
import torch
from cases import BY_UNITS, FLAT, LAYER, UNITS
from replays import rerun
from support import UPDATE, UPDATE_AND_TELEPORT, tiny_config
from torch import Tensor

from metaopt.meta import build
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.meta.unroll import start
from metaopt.meta.windows import Replayed, StepByStep

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DIRECTIONS = UPDATE | {"basis": "directions"}
CONFIGS = {
    "pair": tiny_config(UPDATE_AND_TELEPORT, {}, steps=5, unroll=2, outer_steps=8),
    "directions": tiny_config({"update": DIRECTIONS, "teleport": DIRECTIONS}, {}, outer_steps=5),
    "update": tiny_config(steps=4, unroll=3, outer_steps=5),
    "adam": tiny_config(
        {"update": {"kind": "adam", "lr": 0.1}, "teleport": UPDATE_AND_TELEPORT["teleport"]},
        {},
        outer_steps=5,
    ),
    "random windows": tiny_config(
        steps=9,
        unroll=3,
        outer_steps=9,
        truncation="random",
        horizon={"kind": "random", "low": 3},
        rescale=0.5,
        loss="normalised",
        average=0.9,
    ),
    # The controls: what is drawn next is in the state, and a step has a second gradient.
    "random": tiny_config(
        {"update": UPDATE, "teleport": {"kind": "random", "norms": [0.3, 0.1]}},
        {"limit": "capped"},
        outer_steps=5,
    ),
    "frozen": tiny_config({"update": UPDATE, "teleport": UPDATE | {"frozen": True}}, {}),
    "around": tiny_config(UPDATE_AND_TELEPORT, {"order": "around"}, outer_steps=5),
    "deep": tiny_config(
        {"update": DIRECTIONS, "teleport": DIRECTIONS}, {}, {"layers": 3}, outer_steps=5, order=2
    ),
    "flattened": tiny_config({"update": FLAT, "teleport": FLAT}, {"guard": "shrink"}),
    "units": tiny_config({"update": LAYER, "teleport": UNITS}, BY_UNITS, outer_steps=5),
    "cayley": tiny_config(UPDATE_AND_TELEPORT, {"element": "cayley"}),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def phi(trainer: MetaTrainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.optimizer.parameters()]


def windows_of(trainer: MetaTrainer) -> StepByStep:
    """Step by step, whatever the trainer itself would do on its device."""
    config = trainer.config
    return StepByStep(trainer.optimizer, trainer.observe, build.meta_loss(config.meta))


@every_config
def test_a_run_of_replays_has_the_bits_of_one_step_by_step(config: TrainConfig) -> None:
    """Over fresh trajectories, and last windows that are shorter."""
    plain = MetaTrainer(config, torch.device("cpu"))
    replayed = MetaTrainer(config, torch.device("cpu"))
    record = rerun(list(replayed.optimizer.parameters()))
    replayed.windows = Replayed(windows_of(replayed), record)
    while not plain.finished:
        assert plain.outer_step() == replayed.outer_step()
    for one, other in zip(phi(plain), phi(replayed), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(phi(plain)[0], phi(MetaTrainer(config, torch.device("cpu")))[0])


def test_the_step_by_step_gradient_is_that_of_this_window_alone() -> None:
    trainer = MetaTrainer(CONFIGS["update"], torch.device("cpu"))
    windows, tasks = windows_of(trainer), trainer.validation_tasks
    inner = start(tasks, trainer.optimizer, trainer.observe)

    def gradients() -> list[Tensor]:
        return [p.grad.clone() for p in trainer.optimizer.parameters() if p.grad is not None]

    windows(tasks, inner, 2)
    once = gradients()
    windows(tasks, inner, 2)
    assert all(torch.equal(a, b) for a, b in zip(once, gradients(), strict=True))


@needs_cuda
@every_config
def test_graphs_compute_what_the_steps_compute(config: TrainConfig) -> None:
    device = torch.device("cuda")
    graphs, plain = MetaTrainer(config, device), MetaTrainer(config, device)
    plain.windows = windows_of(plain)
    assert isinstance(graphs.windows, Replayed)
    while not plain.finished:
        found, wanted = graphs.outer_step(), plain.outer_step()
        assert found.meta_loss == pytest.approx(wanted.meta_loss, rel=1e-4)
        assert found.skipped == wanted.skipped
    for one, other in zip(phi(graphs), phi(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("name", [*CONFIGS, "pes"])
def test_a_run_in_float64_has_the_numbers_of_one_on_the_cpu(name: str) -> None:
    evolution = {"kind": "pes", "pairs": 2, "sigma": 0.1}
    pes = tiny_config(UPDATE_AND_TELEPORT, {}, estimator=evolution)
    config = CONFIGS.get(name, pes).model_copy(update={"dtype": "float64"})
    here, there = (MetaTrainer(config, torch.device(device)) for device in ("cpu", "cuda"))
    while not here.finished:
        found, wanted = there.outer_step(), here.outer_step()
        assert found.meta_loss == pytest.approx(wanted.meta_loss, rel=1e-6)
        assert found.skipped == wanted.skipped
        if here.progress.outer_step == 1:
            # Each goes on from the state of the other.
            states = there.state(), here.state()
            here.restore(states[0])
            there.restore(states[1])
    for one, other in zip(phi(here), phi(there), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-4, atol=1e-6)
    assert here.validate().score == pytest.approx(there.validate().score, rel=1e-5)


@needs_cuda
@every_config
def test_the_host_waits_for_nothing_inside_a_window(config: TrainConfig) -> None:
    trainer = MetaTrainer(config, torch.device("cuda"))
    windows, tasks = windows_of(trainer), trainer.validation_tasks
    inner = start(tasks, trainer.optimizer, trainer.observe)
    windows(tasks, inner, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        windows(tasks, inner, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_tf32_changes_the_products_of_the_rules_alone() -> None:
    config = CONFIGS["pair"].model_copy(update={"precision": "tf32"})
    before = torch.get_float32_matmul_precision()
    trainer = MetaTrainer(config, torch.device("cuda"))
    assert trainer.outer_step().skipped is False
    assert torch.get_float32_matmul_precision() == before
