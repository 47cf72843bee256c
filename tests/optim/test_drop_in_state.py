"""Resumed training goes on bit for bit, schedulers drive lr, teleports end for good."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from cases import learned_rule
from models import UPDATES, Problem, equal, saved, take_steps
from torch import nn
from torch.optim import lr_scheduler

import metaopt

pytestmark = pytest.mark.filterwarnings("error:updates only:UserWarning")

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def scheduled(
    make: Callable[[], Problem], rule: metaopt.LearnedRule, dtype: torch.dtype
) -> tuple[Problem, metaopt.LearnedOptimizer, lr_scheduler.LRScheduler]:
    problem = make().to(dtype)
    parameters = [*problem.model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": parameters[1:], "weight_decay": 0.01},
        {"params": parameters[:1], "lr": 0.01},
    ]
    optimizer = metaopt.LearnedOptimizer(
        problem.model, rule, lr=0.02, params=groups, full_batch=True
    )
    return problem, optimizer, lr_scheduler.ExponentialLR(optimizer, 0.7)


@pytest.mark.parametrize(
    ("make", "kind", "dtype"),
    [
        *((models.convolutional, UPDATES, dtype) for dtype in DTYPES),
        *((models.transformer, UPDATES, dtype) for dtype in DTYPES),
        *((models.chain, "coordinate_lstm", dtype) for dtype in DTYPES[:2]),
        (models.chain, "lstm_directions", torch.float32),
        (models.chain, "adam", torch.float32),
        *((models.convolutional, "layer", dtype) for dtype in DTYPES),
        *((models.transformer, "layer_units", dtype) for dtype in DTYPES[:2]),
    ],
)
def test_resumed_training_goes_on_bit_for_bit(
    make: Callable[[], Problem], kind: str, dtype: torch.dtype
) -> None:
    rule = learned_rule(kind)

    def train(parts: Any, steps: int) -> None:
        problem, optimizer, scheduler = parts
        for _ in range(steps):
            take_steps(problem, optimizer, 1)
            scheduler.step()

    parts = scheduled(make, rule, dtype)
    train(parts, 3)
    file = saved([parts[0].model.state_dict(), parts[1].state_dict(), parts[2].state_dict()])
    others = scheduled(make, rule, dtype)
    for part, state in zip((others[0].model, *others[1:]), file, strict=True):
        part.load_state_dict(state)  # type: ignore[attr-defined]
    twin = copy.deepcopy(parts)
    pickled = pickle.loads(pickle.dumps(parts))
    rates = [group["lr"] for group in parts[1].param_groups]
    assert [group["lr"] for group in others[1].param_groups] == rates
    for each in (parts, others, twin, pickled):
        train(each, 3)
        assert equal(each[0].weights(), parts[0].weights())
    before = scheduled(make, rule, dtype)
    assert not equal(before[0].weights(), parts[0].weights())


def test_a_state_that_was_cleared_starts_afresh() -> None:
    problem = models.perceptron().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    take_steps(problem, optimizer, 3)
    optimizer.state.clear()
    start = copy.deepcopy(problem)
    optimizer.state_dict()
    take_steps(problem, optimizer, 1)
    take_steps(start, metaopt.LearnedOptimizer(start.model, learned_rule(UPDATES)), 1)
    assert equal(problem.weights(), start.weights())


def test_schedulers_drive_lr() -> None:
    problem = models.perceptron()

    def rates(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
        optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES), lr=0.2)
        scheduler = make(optimizer)
        found = []
        for _ in range(4):
            found.append(optimizer.param_groups[0]["lr"])
            take_steps(problem, optimizer, 1)
            scheduler.step()
        return found

    assert rates(lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5**t)) == pytest.approx(
        [0.2, 0.1, 0.05, 0.025]
    )
    cosine = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=3))
    assert cosine == pytest.approx([0.2, 0.15, 0.05, 0.0])
    cycle = rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=0.2, total_steps=5, pct_start=0.4, cycle_momentum=False
        )
    )
    assert cycle[1] == pytest.approx(0.2)
    assert cycle[0] == pytest.approx(0.2 / 25)


# Teleports end, with a warning, where they cannot be exact; mistakes are errors.


def test_data_that_changes_turns_teleports_off_for_good() -> None:
    problem = models.chain().to(torch.float64)
    rule = learned_rule("coordinate_lstm")
    optimizer = metaopt.LearnedOptimizer(problem.model, rule, full_batch=True)
    take_steps(problem, optimizer, 2)
    problem.x = problem.x.flip(0) + 1
    problem.backward()
    with pytest.warns(UserWarning, match="the data changes from step to step"):
        optimizer.step()
    resumed = metaopt.LearnedOptimizer(problem.model, rule, full_batch=True)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    outputs = []
    for each in (optimizer, resumed):
        start = copy.deepcopy(problem.model.state_dict())
        problem.backward()
        each.step()
        outputs.append(problem.weights())
        problem.model.load_state_dict(start)
    assert equal(*outputs)


def test_the_first_step_on_other_data_is_the_update_alone() -> None:
    """It is Adam's there: its state knows the gradients that were seen, whatever moved weights."""
    problem = models.chain().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule("adam"), full_batch=True)
    copies = [p.detach().clone().requires_grad_() for p in problem.model.parameters()]
    adam = torch.optim.Adam(copies, lr=0.05)

    def differences_to_adam() -> list[float]:
        """Of one step, for each weight."""
        before, own = problem.weights(), [p.detach().clone() for p in copies]
        problem.backward()
        for theirs, p in zip(copies, problem.model.parameters(), strict=True):
            assert p.grad is not None
            theirs.grad = p.grad.clone()
        adam.step()
        optimizer.step()
        steps = [new - old for new, old in zip(problem.weights(), before, strict=True)]
        wanted = [new.detach() - old for new, old in zip(copies, own, strict=True)]
        return [float((a - b).norm() / b.norm()) for a, b in zip(steps, wanted, strict=True)]

    for _ in range(2):
        assert min(differences_to_adam()) > 1e-3
    problem.x = problem.x.flip(0) + 1
    with pytest.warns(UserWarning, match="the data changes from step to step"):
        there = differences_to_adam()
    assert max(there) < 1e-6


def test_a_weight_without_gradient_turns_teleports_off() -> None:
    problem = models.chain().to(torch.float64)
    rule = learned_rule("coordinate_lstm")
    optimizer = metaopt.LearnedOptimizer(problem.model, rule, full_batch=True)
    problem.backward()
    first, last = problem.model.parameters()
    last.grad = None
    before = problem.weights()
    with pytest.warns(UserWarning, match="have no gradient"):
        optimizer.step()
    assert not torch.equal(first, before[0])
    assert torch.equal(last, before[1])


def test_half_precision_allows_no_teleports() -> None:
    problem = models.chain().to(torch.bfloat16)
    rule = learned_rule("coordinate_lstm")
    with pytest.warns(UserWarning, match="too coarse"):
        optimizer = metaopt.LearnedOptimizer(problem.model, rule, lr=0.01)
    take_steps(problem, optimizer, 1)
    assert all(bool(W.isfinite().all()) for W in problem.weights())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1.0}, "lr: found -1.0"), ({"weight_decay": -1.0}, "weight_decay: found -1.0")],
)
def test_negative_options_are_errors(options: dict[str, float], message: str) -> None:
    model = models.perceptron().model
    with pytest.raises(ValueError, match=message):
        metaopt.LearnedOptimizer(model, learned_rule(UPDATES), **options)  # type: ignore[arg-type]


def test_what_cannot_be_stepped_is_an_error() -> None:
    rule = learned_rule(UPDATES)
    sparse = nn.Embedding(4, 3, sparse=True)
    optimizer = metaopt.LearnedOptimizer(sparse, rule)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    problem = models.perceptron()
    optimizer = metaopt.LearnedOptimizer(problem.model, rule)
    moved = problem.to(torch.float64)
    moved.backward()
    with pytest.raises(RuntimeError, match=r"make it after model\.to"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"found torch\.complex64"):
        metaopt.LearnedOptimizer([nn.Parameter(torch.ones(2, dtype=torch.complex64))], rule)
    with pytest.raises(ValueError, match="one device, found cpu, meta"):
        metaopt.LearnedOptimizer(
            [nn.Parameter(torch.ones(2, device=d)) for d in ("cpu", "meta")], rule
        )
    with torch.device("meta"), pytest.raises(ValueError, match="device meta, which has shapes"):
        metaopt.LearnedOptimizer(nn.Linear(2, 2), rule)


@pytest.mark.parametrize("kind", ["coordinate_lstm_step", "lstm_directions_step"])
def test_rules_of_step_sizes_go_on_without_teleports_on_a_chain(kind: str) -> None:
    problem = models.chain().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(kind), full_batch=True)
    take_steps(problem, optimizer, 1)
    problem.x = problem.x + 1
    problem.backward()
    before, grads = problem.weights(), [p.grad for p in problem.model.parameters()]
    with pytest.warns(UserWarning, match="the data changes from step to step"):
        optimizer.step()
    moves = [a - b for a, b in zip(before, problem.weights(), strict=True)]
    # Gradient descent: one number for all weights.
    rates = [m.flatten() / g.flatten() for m, g in zip(moves, grads, strict=True) if g is not None]
    rate = torch.cat(rates)
    torch.testing.assert_close(rate, rate[:1].expand_as(rate), rtol=1e-6, atol=0)
    assert float(rate[0]) > 0
