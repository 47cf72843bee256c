"""Persistent evolution strategies: known gradients, plain evolution strategies, whole runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import TASK, learned_rule, train_config
from cases import tasks as sample
from support import UPDATE_AND_TELEPORT, regression, tiny_config
from torch import Tensor, nn

from metaopt.base.process import World
from metaopt.base.streams import Stream, uniforms
from metaopt.meta import build
from metaopt.meta.looks import first_order
from metaopt.meta.loss import LogLoss, SumOfLosses
from metaopt.meta.pes import PersistentES
from metaopt.meta.trainer import MetaTrainer
from metaopt.meta.unroll import start, unroll
from metaopt.meta.windows import StepByStep
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.composed import MetaOptimizer, tensors_of
from metaopt.tasks.base import Observation
from metaopt.tasks.regression import TaskBatch

CPU = torch.device("cpu")
SIGMA = 0.1


class Constant(Rule):
    """f = (0, phi a): with a fixed first layer, all later losses are quadratic in phi."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def initial_state(self, observation: Observation) -> State:
        """Nothing to remember."""
        return {}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """Updates f."""
        W1, W2 = observation.weights
        return Proposal(updates=(torch.zeros_like(W1), self.phi[:, None].expand_as(W2))), state


def flat_gradient(optimizer: MetaOptimizer) -> Tensor:
    return torch.cat([p.grad.flatten() for p in optimizer.parameters() if p.grad is not None])


def test_it_is_unbiased_where_truncated_gradients_are_not() -> None:
    """On a quadratic meta-loss smoothing changes no gradient: the estimate's mean is known."""
    tasks = regression([3, 3, 2], samples=3, seed=4, batch=2)
    optimizer = MetaOptimizer({"update": Constant()}, None)
    truncated = StepByStep(optimizer, first_order, SumOfLosses())
    begin = start(tasks, optimizer)
    truncated(tasks, begin, 4)
    wanted = flat_gradient(optimizer).clone()
    first = truncated(tasks, begin, 2)
    biased = flat_gradient(optimizer).clone()
    truncated(tasks, first.inner, 2)
    biased += flat_gradient(optimizer)

    pairs, estimates = 10, []
    pes = PersistentES(optimizer, first_order, SumOfLosses(), SIGMA, pairs, seed=0)
    tasks = tasks.repeated(pes.copies)
    begin = start(tasks, optimizer)
    for _ in range(60):
        inner, total = begin, torch.zeros_like(wanted)
        for _ in range(2):
            found = pes(tasks, inner, 2)
            inner, total = found.inner, total + flat_gradient(optimizer)
        estimates.append(total)
    mean = torch.stack(estimates).mean(0)
    error = torch.stack(estimates).std(0) / math.sqrt(len(estimates))
    assert bool(((mean - wanted).abs() < 4 * error).all())
    assert bool(((mean - biased).abs() > 6 * error).any())


def test_a_window_of_a_whole_trajectory_is_plain_evolution_strategies() -> None:
    rule = learned_rule("coordinate_lstm")
    optimizer, tasks, pairs = rule.optimizer, sample(rule.config.task, count=3), 2
    size = sum(p.numel() for p in optimizer.parameters())
    draws = torch.from_numpy(uniforms(Stream.PERTURBATION, 5, 0, pairs, size))
    phi = nn.utils.parameters_to_vector(optimizer.parameters()).detach().clone()
    wanted = torch.zeros_like(phi)
    losses = []
    for e in SIGMA * torch.special.ndtri(draws):
        for sign in (1, -1):
            moved = copy.deepcopy(optimizer)
            nn.utils.vector_to_parameters(phi + sign * e, moved.parameters())
            _, unrolled = unroll(tasks, moved, start(tasks, moved), 4)
            losses.append(LogLoss(1e-9)(tasks.loss(tasks.initial), unrolled.losses).detach())
            wanted += sign * losses[-1] * e / (2 * pairs * SIGMA**2)
    pes = PersistentES(optimizer, first_order, LogLoss(1e-9), SIGMA, pairs, seed=5)
    repeated = tasks.repeated(pes.copies)
    found = pes(repeated, start(repeated, optimizer), 4)
    torch.testing.assert_close(flat_gradient(optimizer), wanted, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.meta_loss, torch.stack(losses).mean())
    assert torch.equal(nn.utils.parameters_to_vector(optimizer.parameters()), phi)


@pytest.mark.parametrize("kind", ["lstm", "coordinate_lstm", "coordinate_lstm_step", "adam"])
def test_copies_go_on_as_they_would_alone(kind: str) -> None:
    """With perturbations too small to matter, all copies follow the trajectory of phi."""
    rule = learned_rule(kind)
    optimizer, tasks = rule.optimizer, sample(rule.config.task, count=3)
    pes = PersistentES(optimizer, first_order, SumOfLosses(), 1e-14, 2, seed=0)
    repeated = tasks.repeated(pes.copies)
    inner = start(repeated, optimizer)
    for _ in range(2):
        inner = pes(repeated, inner, 2).inner
    alone, _ = unroll(tasks, optimizer, start(tasks, optimizer), 4)
    whole, _ = unroll(repeated, optimizer, start(repeated, optimizer), 4)
    assert inner.step == 4
    for found, wanted in zip(inner.weights, alone.weights, strict=True):
        torch.testing.assert_close(found, wanted.repeat_interleave(4, dim=0), rtol=1e-6, atol=1e-8)
    for found, wanted in zip(inner.observation.grads, whole.observation.grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert inner.optimizer.keys() == whole.optimizer.keys()
    for of_rule, name, value in tensors_of(inner.optimizer):
        torch.testing.assert_close(value, whole.optimizer[of_rule][name], rtol=1e-6, atol=1e-7)


PES = {"kind": "pes", "sigma": 0.05, "pairs": 2}


def trainer(kind: str) -> MetaTrainer:
    meta = {"batch": 2, "steps": 6, "unroll": 2, "outer_steps": 9, "estimator": PES}
    return MetaTrainer(train_config(kind, task=TASK, meta=meta), CPU)


def test_inner_gradient_evaluations_are_counted() -> None:
    run = trainer("coordinate_lstm_update")
    run.outer_step()
    assert run.progress.inner_steps == 2 * 2 * 4
    assert run.inner is not None
    assert run.inner.weights[0].shape[0] == 2 * 4


@pytest.mark.parametrize("kind", ["lstm", "coordinate_lstm"])
def test_a_run_resumes_within_a_trajectory(kind: str) -> None:
    run, resumed = trainer(kind), trainer(kind)
    for _ in range(2):
        assert not run.outer_step().skipped
    resumed.restore(copy.deepcopy(run.state()))
    for _ in range(2):
        assert resumed.outer_step() == run.outer_step()


class Second(World):
    """The second of two processes, as far as shares go."""

    rank = 1
    size = 2


def test_a_process_takes_all_copies_of_its_trajectories() -> None:
    run = trainer("coordinate_lstm_update")
    second = MetaTrainer(run.config, CPU, Second())
    run.outer_step()
    second.restore(copy.deepcopy(run.state()))
    assert run.inner is not None
    assert second.inner is not None
    assert isinstance(second.tasks, TaskBatch)
    assert isinstance(run.tasks, TaskBatch)
    assert torch.equal(second.tasks.X, run.tasks.X[4:])
    for mine, theirs in zip(second.inner.weights, run.inner.weights, strict=True):
        assert torch.equal(mine, theirs[4:])
    assert torch.equal(second.windows.state()["xi"], run.windows.state()["xi"])


def test_sums_of_perturbations_begin_anew_with_the_trajectories() -> None:
    run = trainer("coordinate_lstm_update")
    norms = []
    for _ in range(6):
        run.outer_step()
        norms.append(float(run.windows.state()["xi"].norm()))
    one = norms[0]
    assert norms[3] == pytest.approx(one, rel=0.2)
    assert norms[2] == pytest.approx(math.sqrt(3) * one, rel=0.2)
    assert norms[5] == pytest.approx(math.sqrt(3) * one, rel=0.2)


def test_no_graph_is_kept_and_teleports_are_summed_up() -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {}, estimator=PES)
    run = MetaTrainer(config, CPU)
    window = run.outer_step()
    assert window.teleports.keys() >= {"norm_mean", "drift_max"}
    assert run.inner is not None
    assert not any(W.requires_grad for W in run.inner.weights)
    plain = build.windows(tiny_config(), run.optimizer, CPU)
    assert plain.copies == 1
