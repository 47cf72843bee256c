"""``higher`` on an ordinary nn.Module is a second way to unroll the same meta-optimizer."""

import higher
import pytest
import torch
from cases import learned_rule
from cases import tasks as sample
from torch import nn

import metaopt
from metaopt.meta import build
from metaopt.meta.unroll import start, unroll

STEPS = 6


def two_layers(initial: tuple[torch.Tensor, ...], slope: float) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(initial[0].shape[-1], initial[0].shape[-2], bias=False),
        nn.LeakyReLU(slope),
        nn.Linear(initial[1].shape[-1], initial[1].shape[-2], bias=False),
    ).double()
    with torch.no_grad():
        for weight, W in zip(model.parameters(), initial, strict=True):
            weight.copy_(W[0])
    return model


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "kind",
    [
        "lstm",
        "lstm_update",
        "lstm_directions",
        "lstm_directions_update",
        "coordinate_lstm",
        "coordinate_directions",
        "coordinate_directions_update",
        "lstm_step",
        "coordinate_lstm_step",
        "adam",
        "layer",
        "layer_units",
        "adam_units",
    ],
)
def test_higher_and_the_batched_unroll_agree(kind: str, order: int) -> None:
    rule = learned_rule(kind, order=order)
    tasks = sample(rule.config.task, count=1)
    parameters = [p for p in rule.optimizer.parameters() if p.requires_grad]

    state = start(tasks, rule.optimizer, build.observe(rule.config.meta))
    _, unrolled = unroll(tasks, rule.optimizer, state, STEPS, build.observe(rule.config.meta))
    ours = unrolled.losses[:, 0]
    our_gradient = torch.autograd.grad((ours + 1e-9).log().mean(), parameters)

    model = two_layers(tasks.initial, rule.config.task.slope)
    X, Y = tasks.X[0].T, tasks.Y[0].T
    optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
    with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
        losses = []
        for _ in range(STEPS + 1):
            losses.append(0.5 * (functional(X) - Y).square().sum())
            differentiable.step(losses[-1])
    theirs = torch.stack(losses[1:])
    their_gradient = torch.autograd.grad((theirs + 1e-9).log().mean(), parameters)

    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)
    for a, b in zip(their_gradient, our_gradient, strict=True):
        # Neither agrees for want of a gradient: every network has one.
        assert float(b.norm()) > 1e-7
        assert float((a - b).norm()) <= 1e-9 * float(b.norm())


@pytest.mark.parametrize(
    "kind",
    [
        "coordinate_lstm",
        "coordinate_lstm_update",
        "coordinate_directions",
        "lstm_directions_update",
        "layer",
        "layer_units",
        "adam_units",
    ],
)
def test_plain_steps_with_a_closure_follow_the_unroll(kind: str) -> None:
    rule = learned_rule(kind)
    tasks = sample(rule.config.task, count=1)
    with torch.no_grad():
        state = start(tasks, rule.optimizer)
        state, unrolled = unroll(tasks, rule.optimizer, state, STEPS)

    model = two_layers(tasks.initial, rule.config.task.slope)
    optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
    X, Y = tasks.X[0].T, tasks.Y[0].T

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (model(X) - Y).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(STEPS)]
    expected = unrolled.losses[:-1, 0].tolist()
    assert losses[1:] == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(
        next(model.parameters()).detach(), state.weights[0][0], rtol=1e-9, atol=1e-9
    )
