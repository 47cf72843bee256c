"""LearnedOptimizer stands where torch.optim.Adam stood."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from cases import learned_rule, train_config
from models import Problem
from torch import Tensor, nn
from torch.optim import lr_scheduler

import metaopt
from metaopt.optimizers import Adam, GradientDescent, MetaOptimizer
from metaopt.rules import Rule
from metaopt.tasks import Observation
from metaopt.torch_optim.states import as_matrix

PRETRAINED = Path(__file__).resolve().parent.parent / "checkpoints" / "pretrained"
UPDATES = "coordinate_directions_update"
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

every_model = pytest.mark.parametrize("make", models.REAL, ids=lambda make: make.__name__)


@pytest.fixture(autouse=True)
def _strict_about_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="updates only", category=UserWarning)
        yield


def hand_made(rule: Rule) -> metaopt.LearnedRule:
    """A rule whose updates are known."""
    return metaopt.LearnedRule(MetaOptimizer({"update": rule}, None), train_config(UPDATES))


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def take_steps(problem: Problem, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        problem.backward()
        optimizer.step()


def stepped(make: Callable[[], Problem], rule: Any = None, **options: Any) -> Problem:
    """After a step, in float64."""
    problem = make().to(torch.float64)
    rule = learned_rule(UPDATES) if rule is None else rule
    take_steps(problem, metaopt.LearnedOptimizer(problem.model, rule, **options), 1)
    return problem


def saved(state: Any) -> Any:
    """Through a file that runs no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# The step.


@every_model
def test_models_of_any_kind_train_without_special_casing(make: Callable[[], Problem]) -> None:
    problem = make()
    path = PRETRAINED / "coordinate_update.safetensors"
    optimizer = metaopt.LearnedOptimizer(problem.model, path, lr=1e-3)
    first, before = problem.backward(), problem.weights()
    take_steps(problem, optimizer, 10)
    assert problem.loss() < first
    assert all(bool(W.isfinite().all()) for W in problem.weights())
    moved = zip(before, problem.weights(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


@every_model
def test_a_step_is_the_meta_optimizers(make: Callable[[], Problem]) -> None:
    rule = learned_rule(UPDATES)
    problem = make().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, rule)
    weights = tuple(as_matrix(W) for W in problem.weights())
    state = None
    for _ in range(3):
        problem.backward()
        grads = tuple(as_matrix(p.grad) for p in problem.model.parameters() if p.grad is not None)
        seen = Observation(weights, grads, (), None)
        state = rule.optimizer.initial_rule_states(seen) if state is None else state
        with torch.no_grad():
            taken = rule.optimizer.step(weights, seen, state, data=None)  # type: ignore[arg-type]
        weights, state = taken.weights, taken.state
        optimizer.step()
        for W, found in zip(weights, problem.weights(), strict=True):
            torch.testing.assert_close(as_matrix(found), W, rtol=1e-12, atol=0)


@every_model
@pytest.mark.parametrize("rate", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_lr_multiplies_updates(make: Callable[[], Problem], rate: Any) -> None:
    start, whole, part = make().to(torch.float64), stepped(make), stepped(make, lr=rate)
    for w, one, other in zip(start.weights(), whole.weights(), part.weights(), strict=True):
        torch.testing.assert_close(other - w, rate * (one - w), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", ["coordinate_lstm", "coordinate_directions", "lstm_step"])
def test_without_lr_nothing_moves(kind: str) -> None:
    start = models.chain().to(torch.float64)
    assert equal(stepped(models.chain, learned_rule(kind), lr=0.0).weights(), start.weights())
    assert not equal(stepped(models.chain, learned_rule(kind)).weights(), start.weights())


def test_lr_multiplies_generators() -> None:
    """W2 -> W2 exp(-T) takes W2 exp(-lr T), with updates of 0 and within the norm limit."""
    rule = learned_rule("coordinate_lstm")
    engine = rule.optimizer.engine
    assert engine is not None
    engine.limit.max_norm = 1e6
    with torch.no_grad():
        for parameter in rule.optimizer.rules["update"].parameters():
            parameter.zero_()
    problem = models.chain().to(torch.float64)
    problem.backward()
    W1, W2 = (p.detach()[None] for p in problem.model.parameters())
    grads = tuple(p.grad[None] for p in problem.model.parameters() if p.grad is not None)
    X = problem.x.T[None]
    inputs = (X, nn.functional.leaky_relu(W1 @ X, 0.1))
    seen = Observation((W1, W2), grads, inputs, None)
    proposal, _ = rule.optimizer.propose(seen, rule.optimizer.initial_rule_states(seen))
    assert proposal.generators is not None
    (T,) = (generator.detach() for generator in proposal.generators)
    assert float(T.norm()) > 1e-2
    for lr in (1.0, 0.3):
        found = stepped(models.chain, rule, lr=lr).weights()[1]
        expected = (W2 @ torch.linalg.matrix_exp(-lr * T))[0]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@every_model
def test_weight_decay_is_decoupled(make: Callable[[], Problem]) -> None:
    """w' = (1 - lr decay) w + lr f."""
    start, plain = make().to(torch.float64), stepped(make)
    decayed = stepped(make, lr=0.5, weight_decay=0.1)
    for w, one, found in zip(start.weights(), plain.weights(), decayed.weights(), strict=True):
        expected = (1 - 0.5 * 0.1) * w + 0.5 * (one - w)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@every_model
def test_with_the_rule_of_adam_it_is_adamw(make: Callable[[], Problem]) -> None:
    ours, theirs = make().to(torch.float64), make().to(torch.float64)
    rule = hand_made(Adam(0.01, 0.9, 0.99))
    take_steps(ours, metaopt.LearnedOptimizer(ours.model, rule, lr=0.5, weight_decay=0.2), 5)
    adamw = torch.optim.AdamW(
        theirs.model.parameters(), lr=0.005, betas=(0.9, 0.99), weight_decay=20
    )
    take_steps(theirs, adamw, 5)
    for a, b in zip(ours.weights(), theirs.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_clipped_gradients_are_what_rules_see() -> None:
    problem = models.convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, hand_made(GradientDescent(1.0)))
    before = problem.weights()
    problem.backward()
    nn.utils.clip_grad_norm_(problem.model.parameters(), 1e-3)
    optimizer.step()
    moves = [(a - b).square().sum() for a, b in zip(before, problem.weights(), strict=True)]
    assert float(torch.stack(moves).sum().sqrt()) == pytest.approx(1e-3, rel=1e-2)


def test_a_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    plain, problem = stepped(models.perceptron), models.perceptron().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    expected = problem.loss().detach()
    assert torch.equal(optimizer.step(problem.backward), expected)
    assert equal(plain.weights(), problem.weights())


# Groups, and parameters that take no part.


@every_model
@pytest.mark.parametrize("kind", [UPDATES, "adam_alone"])
def test_groups_do_not_change_what_rules_see(make: Callable[[], Problem], kind: str) -> None:
    def rule() -> metaopt.LearnedRule:
        return hand_made(Adam(0.01, 0.9, 0.99)) if kind == "adam_alone" else learned_rule(kind)

    one, split, reverse = (make().to(torch.float64) for _ in range(3))
    take_steps(one, metaopt.LearnedOptimizer(one.model, rule()), 3)
    parameters = [*split.model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() < 2]},
        {"params": [p for p in parameters if p.dim() >= 2]},
    ]
    take_steps(split, metaopt.LearnedOptimizer(split.model, rule(), params=groups), 3)
    backwards = reversed([*reverse.model.parameters()])
    take_steps(reverse, metaopt.LearnedOptimizer(reverse.model, rule(), params=backwards), 3)
    assert equal(one.weights(), split.weights())
    assert equal(one.weights(), reverse.weights())


def test_each_group_has_its_own_options() -> None:
    whole = stepped(models.perceptron)
    start, problem = (models.perceptron().to(torch.float64) for _ in range(2))
    parameters = [*problem.model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": parameters[:2], "lr": 0.5},
        {"params": parameters[2:3], "weight_decay": 0.1},
        {"params": parameters[3:], "lr": 0.0, "weight_decay": 0.1},
    ]
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES), params=groups)
    take_steps(problem, optimizer, 1)
    factors, decays = (0.5, 0.5, 1.0, 0.0), (0.0, 0.0, 0.1, 0.0)
    found = zip(start.weights(), whole.weights(), problem.weights(), factors, decays, strict=True)
    for w, one, here, factor, decay in found:
        expected = w - decay * w + factor * (one - w)
        torch.testing.assert_close(here, expected, rtol=1e-10, atol=1e-14)


def test_parameters_alone_do_as_well_as_a_model() -> None:
    problem = models.convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model.parameters(), learned_rule(UPDATES))
    take_steps(problem, optimizer, 1)
    assert equal(problem.weights(), stepped(models.convolutional).weights())


@pytest.mark.parametrize("rule", [learned_rule(UPDATES), hand_made(Adam(0.01, 0.9, 0.99))])
def test_parameters_without_gradient_keep_weights_and_state(rule: metaopt.LearnedRule) -> None:
    problem = models.convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, rule, weight_decay=0.1)
    take_steps(problem, optimizer, 2)
    unused = [*problem.model.parameters()][2:4]
    before, states = problem.weights(), copy.deepcopy([optimizer.state[p] for p in unused])
    problem.backward()
    for p in unused:
        p.grad = None
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, problem.weights(), strict=True)]
    assert moved == [index not in {2, 3} for index in range(len(moved))]
    for p, state in zip(unused, states, strict=True):
        assert state
        assert all(torch.equal(optimizer.state[p][key], state[key]) for key in state)
    optimizer.zero_grad()
    before, states = problem.weights(), copy.deepcopy([*optimizer.state.values()])
    optimizer.step()
    assert equal(problem.weights(), before)
    for one, state in zip(optimizer.state.values(), states, strict=True):
        assert all(torch.equal(one[key], state[key]) for key in state)


def test_frozen_parameters_stay_until_they_are_added() -> None:
    problem = models.convolutional().to(torch.float64)
    first = [*problem.model.parameters()][:2]
    for p in first:
        p.requires_grad_(False)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    before = problem.weights()
    take_steps(problem, optimizer, 2)
    assert equal(problem.weights()[:2], before[:2])
    assert not torch.equal(problem.weights()[2], before[2])
    for p in first:
        p.requires_grad_(True)
    others = [p for p in problem.model.parameters() if p not in optimizer.state]
    assert [id(p) for p in others] == [id(p) for p in first]
    states = {p: dict(state) for p, state in optimizer.state.items()}
    optimizer.add_param_group({"params": first, "lr": 0.5})
    for parameter, state in states.items():
        found = optimizer.state[parameter]
        assert all(torch.equal(found[key], state[key]) for key in state)
    take_steps(problem, optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(problem.weights(), before, strict=True))


# State.


def scheduled(
    make: Callable[[], Problem], rule: metaopt.LearnedRule, dtype: torch.dtype
) -> tuple[Problem, metaopt.LearnedOptimizer, lr_scheduler.LRScheduler]:
    problem = make().to(dtype)
    parameters = [*problem.model.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": parameters[1:], "weight_decay": 0.01},
        {"params": parameters[:1], "lr": 0.01},
    ]
    optimizer = metaopt.LearnedOptimizer(problem.model, rule, lr=0.02, params=groups)
    return problem, optimizer, lr_scheduler.ExponentialLR(optimizer, 0.7)


@pytest.mark.parametrize(
    ("make", "kind", "dtype"),
    [
        *((models.convolutional, UPDATES, dtype) for dtype in DTYPES),
        *((models.transformer, UPDATES, dtype) for dtype in DTYPES),
        *((models.chain, "coordinate_lstm", dtype) for dtype in DTYPES[:2]),
        (models.chain, "lstm_directions", torch.float32),
        (models.chain, "adam", torch.float32),
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


# Precision, compilation and devices.


def test_half_precision_is_single_precision_rounded() -> None:
    """Steps of 1e-4 of a weight add up, though bfloat16 has none between 1 and 1 + 2^-8."""
    single = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    half = [nn.Parameter(p.detach().bfloat16()) for p in single]
    for parameters in (single, half):
        optimizer = metaopt.LearnedOptimizer(parameters, hand_made(GradientDescent(1e-4)))
        for _ in range(100):
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
    for one, other in zip(single, half, strict=True):
        assert torch.equal(one.bfloat16(), other)
        assert float(other.detach().float().max()) < 0.995
    # A change from outside counts.
    with torch.no_grad():
        half[1].fill_(2.0)
    optimizer.step()
    assert torch.equal(half[1], torch.full((5,), 2.0).bfloat16())
    assert torch.equal(optimizer.state[half[1]]["unrounded"], torch.full((5,), 2.0) - 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_model
def test_half_precision_trains(make: Callable[[], Problem], dtype: torch.dtype) -> None:
    problem = make().to(dtype)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES), lr=1e-3)
    first = problem.backward()
    take_steps(problem, optimizer, 5)
    assert problem.loss() < first
    assert {W.dtype for W in problem.weights()} == {dtype}


def test_autocast_does_not_reach_the_rule() -> None:
    results = []
    for inside in (True, False):
        problem = models.perceptron()
        optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
        with torch.autocast("cpu", torch.bfloat16):
            loss = problem.loss()
        loss.backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            optimizer.step()
        results.append(problem.weights())
    assert equal(*results)


def test_teleports_go_on_under_autocast() -> None:
    problem = models.chain()
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule("coordinate_lstm"), lr=0.1)
    for _ in range(2):
        problem.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = problem.loss()
        loss.backward()
        optimizer.step()
    assert optimizer.state_dict()["teleports_off"] is None
    assert all(bool(W.isfinite().all()) for W in problem.weights())


def test_grad_scaler_skips_steps_of_infinite_gradients() -> None:
    problem = models.perceptron()
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain = models.perceptron()
    take_steps(plain, metaopt.LearnedOptimizer(plain.model, learned_rule(UPDATES)), 1)
    for poison in (True, False):
        before, states = problem.weights(), copy.deepcopy([*optimizer.state.values()])
        problem.model.zero_grad()
        scaler.scale(problem.loss()).backward()
        if poison:
            next(problem.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        assert equal(problem.weights(), before) == poison
        for one, state in zip(optimizer.state.values(), states, strict=True):
            assert all(torch.equal(one[key], state[key]) for key in state) == poison
    assert scaler.get_scale() == 4.0
    for a, b in zip(problem.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "kind"), [(models.perceptron, UPDATES), (models.chain, "coordinate_directions")]
)
def test_compiled_models_take_the_same_step(make: Callable[[], Problem], kind: str) -> None:
    results = []
    for compiled in (False, True):
        problem = make().to(torch.float64)
        if compiled:
            problem.model = torch.compile(problem.model, backend="eager")  # type: ignore[assignment]
        optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(kind))
        take_steps(problem, optimizer, 2)
        assert optimizer.state_dict()["teleports_off"] is None
        results.append(problem.weights())
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_model
def test_steps_on_cuda_are_those_on_the_cpu(make: Callable[[], Problem]) -> None:
    here = stepped(make).weights()
    problem = make().to(torch.float64, "cuda")
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule(UPDATES))
    scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
    problem.model.zero_grad()
    scaler.scale(problem.loss()).backward()
    scaler.step(optimizer)
    for a, b in zip(here, problem.weights(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-9)


# Teleports end, with a warning, where they cannot be exact; mistakes are errors.


def test_data_that_changes_turns_teleports_off_for_good() -> None:
    problem = models.chain().to(torch.float64)
    rule = learned_rule("coordinate_lstm")
    optimizer = metaopt.LearnedOptimizer(problem.model, rule)
    take_steps(problem, optimizer, 2)
    problem.x = problem.x.flip(0) + 1
    problem.backward()
    with pytest.warns(UserWarning, match="the data changes from step to step"):
        optimizer.step()
    resumed = metaopt.LearnedOptimizer(problem.model, rule)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    outputs = []
    for each in (optimizer, resumed):
        start = copy.deepcopy(problem.model.state_dict())
        problem.backward()
        each.step()
        outputs.append(problem.weights())
        problem.model.load_state_dict(start)
    assert equal(*outputs)


def test_a_weight_without_gradient_turns_teleports_off() -> None:
    problem = models.chain().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule("coordinate_lstm"))
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
    with pytest.warns(UserWarning, match="too coarse"):
        optimizer = metaopt.LearnedOptimizer(problem.model, learned_rule("coordinate_lstm"))
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
