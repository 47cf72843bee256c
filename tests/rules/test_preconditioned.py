"""Preconditioning alone: teleport, update, teleport back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import learned_rule, train_config
from cases import tasks as sample
from support import regression, relative_error, signed
from torch import Tensor, nn

import metaopt
from metaopt.base.network import Weights
from metaopt.meta.build import meta_optimizer
from metaopt.meta.looks import first_order, second_order
from metaopt.meta.loss import LogLoss
from metaopt.meta.unroll import start, unroll
from metaopt.optim.learned import LearnedRule
from metaopt.rules.around import PreconditionedOptimizer, as_constant, differentiated
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.composed import MetaOptimizer, Step
from metaopt.rules.hand_made import GradientDescent
from metaopt.symmetry.actions import Action, Linear, ThroughData
from metaopt.symmetry.limits import BoundedNorm
from metaopt.symmetry.maps import Exponential
from metaopt.tasks.base import Observation
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport.base import Report
from metaopt.teleport.engine import TeleportEngine, TeleportReport
from metaopt.teleport.guard import Guard, Refuse, Shrink, Unguarded


class Given(Rule):
    """Proposes what it was given."""

    def __init__(self, updates: Weights | None = None, generators: Weights | None = None) -> None:
        super().__init__()
        self.given = Proposal(updates, generators)

    def initial_state(self, observation: Observation) -> State:
        return {}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        return self.given, state


def around(
    update: Rule, teleport: Rule, action: Action, guard: Guard | None = None
) -> PreconditionedOptimizer:
    engine = TeleportEngine(
        action, Exponential(1.0), BoundedNorm(1.0), guard or Refuse(1e-9), require_exact=True
    )
    return PreconditionedOptimizer({"update": update, "teleport": teleport}, engine, as_constant)


def stepped(optimizer: MetaOptimizer, tasks: TaskBatch) -> Step:
    observation = tasks.observe(tasks.initial)
    state = optimizer.initial_state(tasks, observation)
    return optimizer.step(tasks.initial, observation, state, tasks)


@pytest.mark.parametrize(
    ("sizes", "samples"), [([5, 4, 3], 5), ([5, 4, 3], 2), ([4, 3, 5, 4, 2], 2)]
)
def test_without_an_update_the_weights_come_back(sizes: list[int], samples: int) -> None:
    tasks = regression(sizes, samples=samples, seed=0)
    T = tuple(signed(2, k, k, seed=10 + k) for k in sizes[1:-1])
    zero = tuple(torch.zeros_like(W) for W in tasks.initial)
    optimizer = around(Given(zero), Given(generators=T), ThroughData())
    assert optimizer.engine is not None
    moved, _ = optimizer.engine.teleport(tasks.initial, T, tasks)
    taken = stepped(optimizer, tasks)
    assert isinstance(taken.report, TeleportReport)
    assert not taken.report.refused.any()
    for W, back, away in zip(tasks.initial, taken.weights, moved, strict=True):
        assert relative_error(back, W) < 1e-10
        assert relative_error(away, W) > 0.1


def test_a_linear_network_takes_the_preconditioned_step() -> None:
    tasks = regression([5, 4, 3], samples=4, seed=0, slope=1.0)
    raw, eta = signed(2, 4, 4, seed=7), 0.01
    taken = stepped(around(GradientDescent(eta), Given(generators=(raw,)), Linear()), tasks)
    g = torch.linalg.matrix_exp(BoundedNorm(1.0)(raw))
    metric = g.mT @ g
    W1, W2 = tasks.initial
    G1, G2 = tasks.observe(tasks.initial).grads
    wanted = (W1 - eta * torch.linalg.solve(metric, G1), W2 - eta * G2 @ metric)
    plain = (W1 - eta * G1, W2 - eta * G2)
    for found, by_hand, other in zip(taken.weights, wanted, plain, strict=True):
        assert relative_error(found, by_hand) < 1e-12
        assert relative_error(found, other) > 1e-4


@pytest.mark.parametrize("guard", [Refuse(1e-300), Shrink(1e-300)], ids=["refuse", "shrink"])
def test_a_refused_teleport_leaves_a_plain_step(guard: Guard) -> None:
    tasks = regression([5, 4, 3], samples=4, seed=0)
    T = (signed(2, 4, 4, seed=7),)
    taken = stepped(around(GradientDescent(0.01), Given(generators=T), ThroughData(), guard), tasks)
    assert isinstance(taken.report, TeleportReport)
    # A shrunk element may be the identity to the last bit: which, depends on the processor.
    assert (taken.report.refused | (taken.report.drift == 0)).all()
    observation = tasks.observe(tasks.initial)
    for W, old, G in zip(taken.weights, tasks.initial, observation.grads, strict=True):
        torch.testing.assert_close(W, old - 0.01 * G)


class RefusesTheSecond(Guard):
    """Lets the first teleport of two through, and refuses the second to trajectory 1."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        guarded = Unguarded()(*arguments)
        refused = torch.tensor([False, self.calls == 2])
        return replace(guarded, refused=refused)


def test_a_refused_way_back_leaves_the_weights_where_they_were() -> None:
    tasks = regression([5, 4, 3], samples=4, seed=0)
    T = (signed(2, 4, 4, seed=7),)
    update = GradientDescent(0.01)
    free = stepped(around(update, Given(generators=T), ThroughData(), Unguarded()), tasks)
    taken = stepped(around(update, Given(generators=T), ThroughData(), RefusesTheSecond()), tasks)
    assert isinstance(taken.report, TeleportReport)
    assert taken.report.refused.tolist() == [False, True]
    for W, old, other in zip(taken.weights, tasks.initial, free.weights, strict=True):
        assert torch.equal(W[0], other[0])
        assert torch.equal(W[1], old[1])
        assert not torch.equal(other[1], old[1])


def test_drift_and_change_of_loss_are_those_of_both_teleports() -> None:
    kind = "coordinate_lstm"
    teleporter = {"order": "around", "element": "first_order", "guard": "none"}
    given = train_config(kind, teleporter=teleporter)
    optimizer = meta_optimizer(given)
    optimizer.load_state_dict(learned_rule(kind).optimizer.state_dict())
    assert isinstance(optimizer, PreconditionedOptimizer)
    tasks = sample(given.task, count=3)
    state = start(tasks, optimizer)
    end, unrolled = unroll(tasks, optimizer, state, 1)
    proposal, _ = optimizer.propose(state.observation, state.optimizer)
    assert proposal.generators is not None
    engine = optimizer.engine
    assert engine is not None
    moved, there = engine.teleport(tasks.initial, proposal.generators, tasks)
    update, _ = optimizer.rules["update"].propose(tasks.observe(moved), state.optimizer["update"])
    assert update.updates is not None
    updated = tuple(W + f for W, f in zip(moved, update.updates, strict=True))
    back = torch.linalg.matrix_norm(tasks.outputs(end.weights) - tasks.outputs(updated))
    scale = torch.linalg.matrix_norm(tasks.outputs(updated)) + tasks.target_norm
    trace = unrolled.teleports
    assert trace is not None
    assert isinstance(there, TeleportReport)
    assert float(there.drift.min()) > 0
    torch.testing.assert_close(trace.drift[0], there.drift + back / scale)
    changes = (
        tasks.loss(moved) / tasks.loss(tasks.initial),
        tasks.loss(end.weights) / tasks.loss(updated),
    )
    torch.testing.assert_close(trace.log_ratio[0], sum(change.log() for change in changes))


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradients_of_both_orders_match_differences(order: int) -> None:
    """Under first order, both observations of a step are replayed as constants."""
    given = train_config(
        "coordinate_lstm", teleporter={"order": "around"}, meta={"order": order, "steps": 100}
    )
    optimizer = meta_optimizer(given)
    assert isinstance(optimizer, PreconditionedOptimizer)
    optimizer.load_state_dict(learned_rule("coordinate_lstm").optimizer.state_dict())
    tasks = sample(given.task, count=2)
    observe = {1: first_order, 2: second_order}[order]
    seen: list[Observation] = []

    def remember(observation: Observation) -> Observation:
        seen.append(observation)
        return observation

    def meta_loss(look: Any, see: Any) -> Tensor:
        optimizer.look = look
        _, unrolled = unroll(tasks, optimizer, start(tasks, optimizer, see), 3, see)
        return LogLoss(1e-9)(tasks.loss(tasks.initial), unrolled.losses)

    def recorded(
        tasks: TaskBatch, weights: Weights, report: Report | None = None, evaluated: Any = None
    ) -> tuple[Tensor, Observation]:
        loss, observation = observe(tasks, weights, report)
        return loss, remember(observation)

    look = {1: as_constant, 2: differentiated}[order]
    meta_loss(lambda t, w: remember(look(t, w)), recorded).backward()

    def evaluate() -> float:
        if order == 2:
            return float(meta_loss(look, observe))
        again = iter(seen)

        def see(tasks: TaskBatch, weights: Weights, *_: Any) -> tuple[Tensor, Observation]:
            return tasks.loss(weights), next(again)

        return float(meta_loss(lambda t, w: next(again), see))

    checked = 0
    with torch.no_grad():
        for name, parameter in optimizer.named_parameters():
            assert parameter.grad is not None, name
            direction = signed(*parameter.shape, seed=3)
            analytic = float((parameter.grad * direction).sum())
            parameter.add_(1e-5 * direction)
            above = evaluate()
            parameter.sub_(2e-5 * direction)
            below = evaluate()
            parameter.add_(1e-5 * direction)
            assert analytic == pytest.approx((above - below) / 2e-5, rel=2e-5, abs=2e-8), name
            checked += abs(analytic) > 1e-6
    assert checked > 5


def test_torch_optimizers_refuse_a_second_gradient() -> None:
    given = train_config("coordinate_lstm", teleporter={"order": "around"})
    layers = (nn.Linear(3, 4, bias=False), nn.LeakyReLU(0.1), nn.Linear(4, 2, bias=False))
    with pytest.raises(ValueError, match=r"2 gradients a step.*teleporter\.order: after"):
        metaopt.LearnedOptimizer(nn.Sequential(*layers), LearnedRule(meta_optimizer(given), given))
