"""Controls: random generators, frozen networks, preconditioning alone, equal parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import train_config
from support import UPDATE, regression, signed, tiny_config
from torch import Tensor, nn

import metaopt
from metaopt.base import checkpoint
from metaopt.base.config import ConfigError
from metaopt.base.streams import Stream, normals, philox
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.meta.unroll import rollout
from metaopt.optim.learned import LearnedRule
from metaopt.rules.base import Rule
from metaopt.rules.random_generators import RandomGenerators
from metaopt.symmetry.limits import CappedNorm
from metaopt.tasks.build import task_family
from metaopt.tasks.regression import TaskBatch

CPU = torch.device("cpu")
NORMS = [0.3, 0.1, 0.2]
RANDOM = {"kind": "random", "norms": NORMS}
RANDOM_RULES = {"update": UPDATE, "teleport": RANDOM}
FROZEN_RULES = {"update": UPDATE, "teleport": UPDATE | {"frozen": True}}
AROUND_RULES = {"update": UPDATE, "teleport": UPDATE}
CONTROLS = {
    "random": tiny_config(RANDOM_RULES, {"limit": "capped"}, outer_steps=6),
    "frozen": tiny_config(FROZEN_RULES, {"limit": "fixed", "max_norm": 0.2}, outer_steps=6),
    "around": tiny_config(AROUND_RULES, {"order": "around"}, outer_steps=6),
    "random around": tiny_config(
        RANDOM_RULES, {"limit": "capped", "order": "around"}, outer_steps=6
    ),
}
every_control = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())


def generators_of(rule: Rule, tasks: TaskBatch, steps: int) -> Tensor:
    """[steps, B, k, k] of the only pair of layers."""
    observation = tasks.observe(tasks.initial)
    state, found = rule.initial_state(observation), []
    for _ in range(steps):
        proposal, state = rule.propose(observation, state)
        assert proposal.generators is not None
        found.append(proposal.generators[0])
    return torch.stack(found)


def phi(trainer: MetaTrainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.optimizer.parameters()]


# Random numbers on the device.


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "pi"],
)
def test_philox_gives_the_known_answers(
    counter: list[int], key: list[int], wanted: list[int]
) -> None:
    """Of Random123, the implementation of the paper's authors."""
    words = philox([torch.tensor(word) for word in counter], key)
    assert [int(word) for word in words] == wanted


def test_normals_are_normal_and_independent() -> None:
    keys = (torch.tensor([1, 2]), torch.tensor([3, 3]))
    draws = torch.cat([normals(keys, torch.tensor(step), 20_002) for step in (0, 1)])
    assert draws.shape == (4, 20_002)
    assert float((torch.corrcoef(draws) - torch.eye(4)).abs().max()) < 0.03
    shared = torch.special.ndtr(draws).flatten().sort().values
    even = torch.linspace(0, 1, len(shared), dtype=shared.dtype)
    # Kolmogorov and Smirnov's statistic at a level of 1e-6.
    assert float((shared - even).abs().max()) < 2.7 / len(shared) ** 0.5


# Random generators.


def test_random_generators_have_their_norms_and_are_all_distinct() -> None:
    tasks = regression([5, 4, 3], samples=4, seed=0, batch=3)
    found = generators_of(RandomGenerators(NORMS, seed=0).double(), tasks, steps=5)
    wanted = torch.tensor([*NORMS, NORMS[-1], NORMS[-1]], dtype=torch.float64)
    torch.testing.assert_close(
        found.norm(dim=(2, 3)), wanted[:, None].expand(5, 3), rtol=1e-6, atol=0
    )
    directions = (found / wanted[:, None, None, None]).flatten(0, 1).flatten(1)
    overlap = directions @ directions.T - torch.eye(15)
    assert float(overlap.abs().max()) < 0.95
    assert float(overlap.square().mean()) < 2 / 16
    other_seed = generators_of(RandomGenerators(NORMS, seed=1).double(), tasks, steps=5)
    assert float((other_seed - found).norm(dim=(2, 3)).min()) > 0.05


def test_norms_are_of_all_pairs_together() -> None:
    tasks = regression([4, 3, 5, 2], samples=3, seed=0)
    observation = tasks.observe(tasks.initial)
    rule = RandomGenerators([0.7], seed=0).double()
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.generators is not None
    assert [tuple(T.shape) for T in proposal.generators] == [(2, 3, 3), (2, 5, 5)]
    squares = sum(T.square().sum((1, 2)) for T in proposal.generators)
    torch.testing.assert_close(
        squares, torch.full((2,), 0.49, dtype=torch.float64), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trajectory_has_its_draws_in_any_batch(dtype: torch.dtype) -> None:
    family = task_family(train_config("coordinate_lstm").task)
    together = family.sample(Stream.TEST, 0, 0, 4, dtype)
    rule = RandomGenerators(NORMS, seed=0).to(dtype)
    alone = generators_of(rule, together.select(slice(2, 3)), steps=3)
    found = generators_of(rule, together, steps=3)[:, 2:3]
    assert torch.equal(alone, found)
    in_float64 = family.sample(Stream.TEST, 0, 2, 1, torch.float64)
    wanted = generators_of(RandomGenerators(NORMS, seed=0).double(), in_float64, steps=3)
    torch.testing.assert_close(alone.double(), wanted, rtol=1e-5, atol=1e-7)


def test_the_trace_has_the_norms_that_were_asked_for() -> None:
    control = CONTROLS["random"]
    trainer = MetaTrainer(control, CPU)
    _, trace = rollout(trainer.validation_tasks, trainer.optimizer, 4)
    assert trace is not None
    assert not trace.refused.any()
    wanted = torch.tensor([*NORMS, NORMS[-1]])
    torch.testing.assert_close(trace.norm, wanted[:, None].expand(4, 3))


def test_capped_norm_leaves_short_generators_alone() -> None:
    T = signed(3, 4, 4, seed=0) * torch.tensor([1e-3, 1.0, 100.0])[:, None, None]
    T[1] /= T[1].norm()
    limited = CappedNorm(1.5)(T)
    assert torch.equal(limited[:2], T[:2])
    torch.testing.assert_close(limited[2], 1.5 * T[2] / T[2].norm())
    assert torch.equal(CappedNorm(1.5)(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))
    assert torch.autograd.gradcheck(CappedNorm(1.5), (T.requires_grad_(),))


# Runs of the controls.


@every_control
def test_a_run_resumes_where_it_was(control: TrainConfig) -> None:
    whole, first = MetaTrainer(control, CPU), MetaTrainer(control, CPU)
    windows = [whole.outer_step() for _ in range(6)]
    for _ in range(3):
        first.outer_step()
    second = MetaTrainer(control, CPU)
    second.restore(first.state())
    assert [second.outer_step() for _ in range(3)] == windows[3:]
    for one, other in zip(phi(whole), phi(second), strict=True):
        assert torch.equal(one, other)
    assert not any(window.skipped for window in windows)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(phi(whole), phi(MetaTrainer(control, CPU)), strict=True)
    )


@every_control
def test_a_checkpoint_has_the_losses_of_what_was_saved(
    control: TrainConfig, tmp_path: Path
) -> None:
    trainer = MetaTrainer(control, CPU)
    for _ in range(3):
        trainer.outer_step()
    checkpoint.write(tmp_path / "control.safetensors", trainer.checkpoint({}))
    found = metaopt.load(tmp_path / "control.safetensors").optimizer
    tasks = trainer.validation_tasks
    assert torch.equal(rollout(tasks, found, 4)[0], rollout(tasks, trainer.optimizer, 4)[0])
    flags = [[p.requires_grad for p in of.parameters()] for of in (found, trainer.optimizer)]
    assert flags[0] == flags[1]
    assert found.gradients_per_step == trainer.optimizer.gradients_per_step


def test_a_frozen_network_does_not_change() -> None:
    trainer = MetaTrainer(CONTROLS["frozen"], CPU)
    before = {name: p.clone() for name, p in trainer.optimizer.named_parameters()}
    assert list(trainer.networks) == ["update"]
    while not trainer.finished:
        assert trainer.outer_step().teleports["norm_mean"] == pytest.approx(0.2, rel=1e-5)
    for name, parameter in trainer.optimizer.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("networks.teleport")


def steps_in_torch(steps: int, resumed_at: int | None) -> list[Tensor]:
    """Weights of a model after steps with random teleports; resumed from a state dict, or not."""
    given = tiny_config(RANDOM_RULES, {"limit": "capped"})
    rule = LearnedRule(meta_optimizer(given), given)
    X, Y = (signed(3, n, seed=n, dtype=torch.float32) for n in (4, 2))
    layers = nn.Linear(4, 5, bias=False), nn.LeakyReLU(0.1), nn.Linear(5, 2, bias=False)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(signed(*parameter.shape, seed=seed))
    optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
    for step in range(steps):
        if step == resumed_at:
            saved = optimizer.state_dict()
            optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        (model(X) - Y).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_torch_optimizers_go_on_with_the_draws_of_a_saved_state() -> None:
    whole, resumed, shorter = (
        steps_in_torch(steps, at) for steps, at in ((3, None), (3, 2), (2, None))
    )
    for one, other, before in zip(whole, resumed, shorter, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, before)


# Mistakes, and equal parameters.


@pytest.mark.parametrize(
    ("rules", "teleporter", "message"),
    [
        (RANDOM_RULES, {}, "teleporter.limit: capped keeps the norms .* found bounded"),
        (RANDOM_RULES, {"limit": "capped", "max_norm": 0.25}, "norms: at most .* 0.25, found 0.3"),
        (
            {"step_teleport": UPDATE},
            {"order": "around"},
            "teleporter.order: around needs rules.update and rules.teleport",
        ),
        (
            {"update": {"kind": "gd", "lr": 0.1}, "teleport": UPDATE | {"frozen": True}},
            {},
            "nothing to learn",
        ),
        ({"update": {"kind": "gd", "lr": 0.1}, "teleport": RANDOM}, {}, "nothing to learn"),
    ],
)
def test_controls_that_cannot_be(
    rules: dict[str, Any], teleporter: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        meta_optimizer(tiny_config(rules, teleporter))
