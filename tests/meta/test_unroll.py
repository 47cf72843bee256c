"""The unroll: boundaries, carried state, first- and second-order meta-gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import learned_rule, train_config
from cases import tasks as sample
from differences import STEPS, Replay, assert_matches_differences, meta_loss
from torch import Tensor

from metaopt.base import network
from metaopt.base.network import Weights
from metaopt.meta.build import meta_optimizer
from metaopt.meta.looks import Observe, first_order, second_order
from metaopt.meta.loss import LogLoss, LogOfLast, MetaLoss, Normalised, SumOfLosses
from metaopt.meta.unroll import rollout, start, unroll
from metaopt.meta.windows import StepByStep
from metaopt.rules.composed import MetaOptimizer, tensors_of
from metaopt.tasks import regression
from metaopt.tasks.base import observed_loss
from metaopt.tasks.regression import TaskBatch
from metaopt.teleport import engine
from metaopt.teleport.engine import TeleportReport

KINDS = [
    "lstm",
    "lstm_step",
    "coordinate_lstm",
    "coordinate_lstm_step",
    "lstm_update",
    "lstm_directions",
    "lstm_directions_step",
    "coordinate_directions",
    "coordinate_directions_step",
    "layer",
    "layer_units",
    "adam_units",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observe", [first_order, second_order])
def test_two_windows_are_one(kind: str, observe: Observe) -> None:
    rule = learned_rule(kind)
    tasks = sample(rule.config.task, count=3)
    begin = start(tasks, rule.optimizer, observe)
    middle, first = unroll(tasks, rule.optimizer, begin, 2, observe)
    end, second = unroll(tasks, rule.optimizer, middle.detach(), 3, observe)
    whole_end, whole = unroll(tasks, rule.optimizer, begin, 5, observe)
    assert torch.equal(torch.cat([first.losses, second.losses]), whole.losses)
    assert end.step == whole_end.step == 5
    assert all(torch.equal(a, b) for a, b in zip(end.weights, whole_end.weights, strict=True))
    both = zip(tensors_of(end.optimizer), tensors_of(whole_end.optimizer), strict=True)
    assert all(one[:2] == two[:2] and torch.equal(one[2], two[2]) for one, two in both)


def test_a_window_of_k_steps_has_the_k_losses_after_its_steps() -> None:
    rule = learned_rule("coordinate_lstm")
    tasks = sample(rule.config.task, count=3)
    begin = start(tasks, rule.optimizer)
    end, unrolled = unroll(tasks, rule.optimizer, begin, 4)
    assert unrolled.losses.shape == (4, 3)
    torch.testing.assert_close(unrolled.losses[-1], tasks.loss(end.weights))
    assert not torch.equal(unrolled.losses[0], tasks.loss(tasks.initial))
    losses, _ = rollout(tasks, rule.optimizer, 4)
    assert losses.shape == (5, 3)
    torch.testing.assert_close(losses[0], tasks.loss(tasks.initial))
    torch.testing.assert_close(losses[1:], unrolled.losses)


def test_the_graph_is_cut_between_windows() -> None:
    rule = learned_rule("lstm")
    tasks = sample(rule.config.task, count=2)
    state, _ = unroll(tasks, rule.optimizer, start(tasks, rule.optimizer), 2)
    assert state.weights[0].requires_grad
    cut = state.detach()
    states = [tensor for _, _, tensor in tensors_of(cut.optimizer)]
    tensors = [*cut.weights, *states, *cut.observation.grads, cut.loss]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_trajectories_do_not_see_each_other() -> None:
    rule = learned_rule("coordinate_lstm")
    together, _ = rollout(sample(rule.config.task, count=4), rule.optimizer, STEPS)
    alone, _ = rollout(sample(rule.config.task, count=1, start=2), rule.optimizer, STEPS)
    torch.testing.assert_close(together[:, 2], alone[:, 0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_second_order_meta_gradient_is_that_of_the_unrolled_loss(kind: str) -> None:
    rule = learned_rule(kind)
    tasks = sample(rule.config.task, count=2)
    meta_loss(rule.optimizer, tasks, second_order).backward()
    assert_matches_differences(
        rule.optimizer, lambda: meta_loss(rule.optimizer, tasks, second_order)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_meta_gradient_holds_features_constant(kind: str) -> None:
    rule = learned_rule(kind)
    tasks = sample(rule.config.task, count=2)
    replay = Replay()
    meta_loss(rule.optimizer, tasks, replay.record).backward()

    def evaluate() -> Tensor:
        replay.rewind()
        return meta_loss(rule.optimizer, tasks, replay.replay)

    assert_matches_differences(rule.optimizer, evaluate)


DEGENERATE = ("solved", "no last layer", "no weights")


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("observe", [first_order, second_order])
@pytest.mark.parametrize("kind", ["coordinate_directions", "lstm_directions"])
def test_meta_gradients_are_finite_where_something_is_zero(
    kind: str, observe: Observe, dtype: torch.dtype, case: str
) -> None:
    rule = learned_rule(kind)
    optimizer = rule.optimizer.to(dtype)
    tasks = sample(rule.config.task, count=2)
    emptied = {"no last layer": [1], "no weights": [0, 1]}.get(case, [])
    weights = tuple(W * (layer not in emptied) for layer, W in enumerate(tasks.initial))
    weights = tuple(W.to(dtype) for W in weights)
    degenerate = TaskBatch(tasks.X.to(dtype), tasks.Y.to(dtype), weights, tasks.s)
    if case == "solved":
        degenerate = replace(degenerate, Y=degenerate.outputs(weights))
    loss = meta_loss(optimizer, degenerate, observe)
    assert loss.isfinite()
    loss.backward()
    assert gradient_of(optimizer).isfinite().all()


def gradient_of(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_the_orders_differ() -> None:
    gradients = []
    for observe in (first_order, second_order):
        rule = learned_rule("lstm_step")
        tasks = sample(rule.config.task, count=2)
        meta_loss(rule.optimizer, tasks, observe).backward()
        gradients.append(gradient_of(rule.optimizer))
    assert float((gradients[0] - gradients[1]).norm()) > 1e-2 * float(gradients[1].norm())


def test_the_last_exact_teleport_of_a_window_has_no_signal() -> None:
    rule = learned_rule("coordinate_lstm")
    tasks = sample(rule.config.task, count=3)
    _, unrolled = unroll(tasks, rule.optimizer, start(tasks, rule.optimizer), 1)
    unrolled.losses.sum().backward()
    teleport = gradient_of(rule.optimizer.rules["teleport"])
    update = gradient_of(rule.optimizer.rules["update"])
    assert float(teleport.abs().max()) < 1e-10 * float(update.abs().max())


def test_meta_losses() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    before = torch.tensor([2.0, 4.0])
    assert float(SumOfLosses()(before, losses)) == pytest.approx((1 + 3 + 2 + 6) / 2)
    expected = torch.log(losses + 0.5).mean()
    torch.testing.assert_close(LogLoss(0.5)(before, losses), expected)
    torch.testing.assert_close(LogOfLast(0.5)(before, losses), torch.log(losses[-1] + 0.5).mean())
    shares = (1.5 / 2.5 + 3.5 / 2.5 + 2.5 / 4.5 + 6.5 / 4.5) / 4
    assert float(Normalised(0.5)(before, losses)) == pytest.approx(shares)


@pytest.mark.parametrize("meta_loss", [LogLoss(0.0), LogOfLast(0.0), Normalised(0.0)])
def test_a_task_in_other_units_counts_alike(meta_loss: MetaLoss) -> None:
    """Multiplying a task's losses by a constant leaves these meta-gradients as they were."""
    gradients = []
    for unit in (1.0, 1e6):
        before = torch.tensor([2.0, 4.0 * unit])
        growth = torch.tensor([[0.5, 0.7], [0.2, 0.1]], requires_grad=True)
        meta_loss(before, growth * before).backward()
        gradients.append(growth.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("observe", [first_order, second_order])
def test_the_loss_at_the_start_of_a_window_is_a_constant(observe: Observe) -> None:
    """Normalised and summed losses of one trajectory then differ by that factor alone."""
    rule = learned_rule("coordinate_lstm")
    tasks = sample(rule.config.task, count=1)
    found = []
    for objective in (SumOfLosses(), Normalised(1e-30)):
        inner = start(tasks, rule.optimizer, observe)
        StepByStep(rule.optimizer, observe, objective)(tasks, inner, STEPS)
        found.append(gradient_of(rule.optimizer))
    torch.testing.assert_close(found[1] * STEPS * tasks.loss(tasks.initial), found[0])


def test_a_refused_teleport_leaves_the_update_alone() -> None:
    config = train_config("coordinate_lstm", teleporter={"tolerance": 1e-300})
    rule = meta_optimizer(config)
    update_only = MetaOptimizer({"update": rule.rules["update"]}, None)
    tasks = sample(config.task, count=3)
    refused, trace = rollout(tasks, rule, STEPS)
    plain, none = rollout(tasks, update_only, STEPS)
    assert trace is not None
    assert none is None
    assert bool(trace.refused.all())
    assert torch.equal(refused, plain)
    assert float(trace.log_ratio.abs().max()) == 0.0


@pytest.mark.parametrize("kind", ["coordinate_lstm", "lstm_step", "layer_units"])
@pytest.mark.parametrize("together", [1, 2, STEPS])
def test_the_trace_does_not_depend_on_how_many_reports_wait(
    together: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = learned_rule(kind)
    tasks = sample(rule.config.task, count=3)
    _, wanted = rollout(tasks, rule.optimizer, STEPS)
    monkeypatch.setattr(TeleportReport, "together", together)
    _, found = rollout(tasks, rule.optimizer, STEPS)
    assert wanted is not None
    assert found is not None
    for name, value in vars(wanted).items():
        assert value.shape == (STEPS, 3)
        assert torch.equal(getattr(found, name), value)


def test_the_trace_reports_what_teleports_did() -> None:
    config = train_config("coordinate_lstm", teleporter={"element": "first_order", "guard": "none"})
    rule = learned_rule("coordinate_lstm")
    optimizer = meta_optimizer(config)
    optimizer.load_state_dict(rule.optimizer.state_dict())
    tasks = sample(config.task, count=3)
    state = start(tasks, optimizer)
    taken, unrolled = unroll(tasks, optimizer, state, 1)
    proposal, _ = optimizer.propose(state.observation, state.optimizer)
    assert proposal.updates is not None
    before = tuple(W + f for W, f in zip(tasks.initial, proposal.updates, strict=True))
    outputs, moved = tasks.outputs(before), tasks.outputs(taken.weights)
    scale = torch.linalg.matrix_norm(outputs) + torch.linalg.matrix_norm(tasks.Y)
    trace = unrolled.teleports
    assert trace is not None
    assert float(trace.drift.min()) > 0
    torch.testing.assert_close(trace.drift[0], torch.linalg.matrix_norm(moved - outputs) / scale)
    torch.testing.assert_close(
        trace.log_ratio[0], tasks.loss(taken.weights).log() - tasks.loss(before).log()
    )


@pytest.mark.parametrize(("observe", "passes"), [(first_order, 2), (second_order, 3)])
def test_the_pass_that_a_teleport_made_is_not_made_again(
    observe: Observe, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = learned_rule("coordinate_lstm")
    tasks = sample(rule.config.task, count=2)
    state = start(tasks, rule.optimizer, observe)
    made: list[int] = []

    def counted(weights: Weights, X: Tensor, s: network.LeakyReLU) -> network.Forward:
        made.append(1)
        return network.forward(weights, X, s)

    for module in (regression, engine):
        monkeypatch.setattr(module, "forward", counted)
    end, _ = unroll(tasks, rule.optimizer, state, STEPS, observe)
    assert len(made) == passes * STEPS
    again = tasks.observe(end.weights)
    assert torch.equal(observed_loss(again), observed_loss(end.observation))
    for one, other in zip(
        again.grads + again.inputs, end.observation.grads + end.observation.inputs, strict=True
    ):
        assert torch.equal(one, other)
