"""Rules: the LSTM against torch's, symmetry of coordinate-wise rules, hand-made ones against torch.

Signed data in float64 throughout, unless a test is about rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, UPDATE_AND_TELEPORT, regression, relative_error, seeds, signed, tiny_config
from torch import Tensor, nn

from metaopt import build
from metaopt.config import load
from metaopt.network import Weights
from metaopt.optimizers import LBFGS, MetaOptimizer, Optimizer
from metaopt.rules import (
    LSTM,
    CoordinateGroupElementLSTM,
    CoordinateStepSizeGroupElementLSTM,
    CoordinateUpdateLSTM,
    FlattenedRule,
    GroupElementLSTM,
    LocalUpdateLSTM,
    Proposal,
    Rule,
    StepSizeGroupElementLSTM,
)
from metaopt.rules.base import ShapeMismatchError
from metaopt.rules.features import (
    GENERATOR_FEATURES,
    UPDATE_FEATURES,
    generator_features,
    log_and_sign,
    over_rms,
    raw,
    signed_log,
    update_features,
)
from metaopt.rules.lstm import _Cell
from metaopt.rules.step_size import Clamp, Sigmoid
from metaopt.schema import TrainConfig
from metaopt.tasks import Observation, TaskBatch
from metaopt.unroll import rollout

LOW, HIGH = 1e-7, 5e-3
COORDINATE = ("update", "group", "step")
SIZES = [5, 4, 3]
DEEP_SIZES = [4, 3, 5, 2]


def _speak_up(rule: Rule) -> Rule:
    """In float64, with outputs that are not small beside the weights."""
    rule.double()
    with torch.no_grad():
        for name, parameter in rule.named_parameters():
            if "head" in name:
                parameter.mul_(20)
    return rule


def coordinate_rule(kind: str) -> Rule:
    hidden, scale, seed = 4, 0.5, 0
    match kind:
        case "update":
            return _speak_up(CoordinateUpdateLSTM(hidden, scale, seed, kind))
        case "group":
            return _speak_up(CoordinateGroupElementLSTM(hidden, scale, seed, kind))
    bound = Sigmoid(LOW, HIGH)
    return _speak_up(CoordinateStepSizeGroupElementLSTM(hidden, scale, seed, kind, bound))


def flattened_rule(kind: str, sizes: Sequence[int]) -> FlattenedRule:
    shapes = [(out, fan_in) for fan_in, out in pairwise(sizes)]
    match kind:
        case "update":
            rule: FlattenedRule = LocalUpdateLSTM(shapes, 4, signed_log, 0.5, 0, kind)
        case "group":
            rule = GroupElementLSTM(shapes, 4, signed_log, 0.5, 0, kind)
        case _:
            bound = Sigmoid(LOW, HIGH)
            rule = StepSizeGroupElementLSTM(shapes, 4, raw, 0.5, 0, kind, bound)
    return rule.double()


def proposals(rule: Rule, tasks: TaskBatch, start: Weights, steps: int = 4) -> list[Proposal]:
    """What a rule proposes along the trajectory that its own updates make."""
    weights, made = start, []
    state = rule.initial_state(tasks.observe(weights))
    with torch.no_grad():
        for _ in range(steps):
            observation = tasks.observe(weights)
            proposal, state = rule.propose(observation, state)
            made.append(proposal)
            updates = proposal.updates or tuple(-0.01 * G for G in observation.grads)
            weights = tuple(W + f for W, f in zip(weights, updates, strict=True))
    return made


def tensors(proposal: Proposal) -> tuple[Tensor, ...]:
    return (*(proposal.updates or ()), *(proposal.generators or ()))


# The LSTM.


def test_lstm_is_torchs() -> None:
    inputs, hidden, rows, layers = 5, 4, 7, 3
    ours = LSTM(inputs, hidden, seed=0, name="test", layers=layers).double()
    theirs = [
        nn.LSTMCell(inputs if i == 0 else hidden, hidden, dtype=torch.float64)
        for i in range(layers)
    ]
    # torch's gates stand in the order i, f, u, o.
    order = torch.arange(4 * hidden).view(4, hidden)[[0, 1, 3, 2]].flatten()
    for i, cell in enumerate(theirs):
        with torch.no_grad():
            cell.weight_ih.copy_(ours.W_x[i][order])
            cell.weight_hh.copy_(ours.W_h[i][order])
            cell.bias_ih.copy_(ours.b[i][order])
            cell.bias_hh.zero_()
    state = ours.initial_state(rows)
    memory = [(torch.zeros(rows, hidden, dtype=torch.float64),) * 2 for _ in theirs]
    for step in range(5):
        x = 3 * signed(inputs, rows, seed=step)
        h, state = ours(x, state)
        wanted = x.T
        for i, cell in enumerate(theirs):
            memory[i] = cell(wanted, memory[i])
            wanted = memory[i][0]
            torch.testing.assert_close(state[f"c{i}"].T, memory[i][1], rtol=0, atol=1e-12)
        torch.testing.assert_close(h.T, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", ["", "x", "xhc", "Wb", "xWb"])
def test_gradcheck_of_the_cell(constant: str) -> None:
    x, h, c = signed(3, 5, seed=0), signed(2, 5, seed=1), signed(2, 5, seed=2)
    W_x, W_h, b = signed(8, 3, seed=3), signed(8, 2, seed=4), signed(8, seed=5)
    named = [("x", x), ("h", h), ("c", c), ("W", W_x), ("W", W_h), ("b", b)]
    inputs = tuple(tensor.requires_grad_(name not in constant) for name, tensor in named)
    assert torch.autograd.gradcheck(_Cell.apply, inputs)


def test_lstm_starts_from_its_seed_and_name() -> None:
    def flat(seed: int, name: str) -> Tensor:
        return torch.cat([p.detach().flatten() for p in LSTM(3, 4, seed, name).parameters()])

    assert torch.equal(flat(0, "a"), flat(0, "a"))
    assert not torch.isin(flat(0, "a"), torch.cat([flat(0, "b"), flat(1, "a")])).any()
    assert 0.4 < float(flat(0, "a").abs().max()) <= 1 / math.sqrt(4)


# Coordinate-wise rules.


def relabel(weights: Weights, orders: Sequence[Tensor]) -> Weights:
    """The network with the units of its hidden layers in another order."""
    moved = list(weights)
    for layer, order in enumerate(orders):
        moved[layer] = moved[layer][:, order]
        moved[layer + 1] = moved[layer + 1][:, :, order]
    return tuple(moved)


@pytest.mark.parametrize("kind", COORDINATE)
@FEW
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5),
    seed=seeds,
)
def test_relabelled_units_get_relabelled_proposals(kind: str, sizes: list[int], seed: int) -> None:
    tasks = regression(sizes, samples=4, seed=seed)
    rule = coordinate_rule(kind)
    orders = [signed(k, seed=seed + k).argsort() for k in sizes[1:-1]]
    plain = proposals(rule, tasks, tasks.initial)
    other = proposals(rule, tasks, relabel(tasks.initial, orders))
    for proposal, found in zip(plain, other, strict=True):
        wanted: list[Tensor] = []
        if proposal.updates is not None:
            wanted += relabel(proposal.updates, orders)
        if proposal.generators is not None:
            pairs = zip(proposal.generators, orders, strict=True)
            wanted += [T[:, order][:, :, order] for T, order in pairs]
        for mine, theirs in zip(tensors(found), wanted, strict=True):
            assert relative_error(mine, theirs) < 1e-9


@pytest.mark.parametrize("kind", COORDINATE)
def test_one_coordinate_wise_rule_fits_any_network(kind: str) -> None:
    rule = coordinate_rule(kind)
    for sizes in ([5, 3, 2], [2, 7, 4], DEEP_SIZES, [3, 2, 4, 3, 2]):
        tasks = regression(sizes, samples=4, seed=0)
        for proposal in proposals(rule, tasks, tasks.initial):
            if proposal.updates is not None:
                assert [f.shape for f in proposal.updates] == [W.shape for W in tasks.initial]
            if proposal.generators is not None:
                assert [tuple(T.shape) for T in proposal.generators] == [
                    (2, k, k) for k in sizes[1:-1]
                ]
            assert all(tensor.isfinite().all() for tensor in tensors(proposal))
            assert all(tensor.abs().sum() > 0 for tensor in tensors(proposal))


@pytest.mark.parametrize("sizes", [SIZES, DEEP_SIZES], ids=["2 layers", "3 layers"])
@pytest.mark.parametrize("make", [lambda kind, _: coordinate_rule(kind), flattened_rule])
@pytest.mark.parametrize("kind", COORDINATE)
def test_trajectories_side_by_side_do_not_meet(
    kind: str, make: Callable[[str, Sequence[int]], Rule], sizes: list[int]
) -> None:
    tasks = regression(sizes, samples=4, seed=0, batch=3)
    rule = make(kind, sizes)
    together = proposals(rule, tasks, tasks.initial)
    for b in range(3):
        alone = tasks.select(slice(b, b + 1))
        for one, all_ in zip(proposals(rule, alone, alone.initial), together, strict=True):
            for mine, theirs in zip(tensors(one), tensors(all_), strict=True):
                assert relative_error(mine, theirs[b : b + 1]) < 1e-11


@pytest.mark.parametrize("make", [lambda kind, _: coordinate_rule(kind), flattened_rule])
@pytest.mark.parametrize("kind", COORDINATE)
def test_rules_remember(kind: str, make: Callable[[str, Sequence[int]], Rule]) -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    rule = make(kind, SIZES)
    observation = tasks.observe(tasks.initial)
    fresh = rule.initial_state(observation)
    first, state = rule.propose(observation, fresh)
    again, _ = rule.propose(observation, fresh)
    second, _ = rule.propose(observation, state)
    assert state.keys() == fresh.keys()
    for one, same, next_ in zip(tensors(first), tensors(again), tensors(second), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, next_)


# Features.


def _known_observation(weights: Weights, grads: Weights, loss: Tensor | None) -> Observation:
    inputs = (grads[0].mT, weights[1].mT)
    return Observation(weights, grads, inputs, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("zero", ["gradient", "everything"])
@pytest.mark.parametrize("features", [update_features, generator_features])
def test_features_are_finite_at_zero(
    features: Callable[[Observation], Tensor], zero: str, dtype: torch.dtype
) -> None:
    size = 0.0 if zero == "everything" else 1.0
    weights = tuple((size * signed(2, 3, 3, seed=i, dtype=dtype)).requires_grad_() for i in (0, 1))
    grads = tuple(torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    loss = torch.zeros(2, dtype=dtype, requires_grad=True)
    found = features(_known_observation(weights, grads, loss))
    assert found.isfinite().all()
    found.backward(signed(*found.shape, seed=7, dtype=dtype))
    for tensor in (*weights, *grads, loss):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "feature", [over_rms, signed_log, lambda g: torch.stack(log_and_sign(g)), raw]
)
def test_gradient_features_have_finite_derivatives_at_zero(
    feature: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    g = torch.zeros(2, 3, 3, dtype=dtype, requires_grad=True)
    found = feature(g)
    assert found.isfinite().all()
    found.sum().backward()
    assert g.grad is not None
    assert g.grad.isfinite().all()


@pytest.mark.parametrize("magnitude", [1e8, 1.0, 1e-8, 1e-13, 1e-16])
def test_over_rms_knows_no_scale(magnitude: float) -> None:
    # Products of two gradients of 3e-7 are of the order 1e-13.
    g = (magnitude * signed(2, 3, 3, seed=0, dtype=torch.float32)).requires_grad_()
    found = over_rms(g)
    torch.testing.assert_close(found, over_rms(g.detach() / magnitude), rtol=1e-4, atol=0)
    (found * signed(2, 3, 3, seed=1, dtype=torch.float32)).sum().backward()
    assert g.grad is not None
    assert g.grad.isfinite().all()


def test_feature_formulas() -> None:
    g = torch.tensor([1.0, math.exp(-5), -math.exp(-5), math.exp(-11), 0.0], dtype=torch.float64)
    log, sign = log_and_sign(g)
    torch.testing.assert_close(log.tolist(), [0.0, -0.5, -0.5, -1.0, -1.0])
    torch.testing.assert_close(sign.tolist(), [1.0, 1.0, -1.0, math.exp(-1), 0.0])
    torch.testing.assert_close(signed_log(g).tolist(), [1.0, 0.5, -0.5, 0.0, 0.0])
    assert over_rms(torch.tensor([[[3.0, -3.0]], [[0.0, 0.0]]])).tolist() == [
        [[1.0, -1.0]],
        [[0.0, 0.0]],
    ]


@pytest.mark.parametrize("sizes", [SIZES, DEEP_SIZES], ids=["2 layers", "3 layers"])
def test_features_stand_in_the_stated_order(sizes: list[int]) -> None:
    tasks = regression(sizes, samples=4, seed=0)
    seen = tasks.observe(tasks.initial)
    assert seen.loss is not None
    W, G, H = seen.weights, seen.grads, seen.inputs
    for_update = update_features(seen)
    assert for_update.shape == (UPDATE_FEATURES, sum(w.numel() for w in W))
    torch.testing.assert_close(for_update[3], torch.cat([w.flatten(1) for w in W], 1).flatten())
    for_generator = generator_features(seen)
    assert for_generator.shape == (GENERATOR_FEATURES, 2 * sum(k * k for k in sizes[1:-1]))
    entries = for_generator.view(GENERATOR_FEATURES, 2, -1).split([k * k for k in sizes[1:-1]], 2)
    for i, columns in enumerate(entries):
        wanted = (
            H[i + 1] @ H[i + 1].mT,
            G[i + 1].mT @ G[i + 1],
            G[i] @ G[i].mT,
            W[i + 1].mT @ G[i + 1],
            G[i + 1].mT @ W[i + 1],
            W[i + 1].mT @ W[i + 1],
            W[i] @ W[i].mT,
            torch.eye(sizes[i + 1], dtype=torch.float64).expand(2, -1, -1),
        )
        for column, product in zip(columns, wanted, strict=False):
            direction = product / product.flatten(1).norm(dim=1)[:, None, None]
            found = column.view(product.shape)
            torch.testing.assert_close(
                found / found.flatten(1).norm(dim=1)[:, None, None], direction
            )
        torch.testing.assert_close(
            columns[8], (seen.loss.log() / 10)[:, None].expand_as(columns[8])
        )


def test_an_unknown_loss_counts_as_one() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    seen = tasks.observe(tasks.initial)
    unknown = Observation(seen.weights, seen.grads, seen.inputs, None)
    one = Observation(seen.weights, seen.grads, seen.inputs, torch.ones(2, dtype=torch.float64))
    assert torch.equal(update_features(unknown), update_features(one))
    assert torch.equal(generator_features(unknown), generator_features(one))


# Flattened rules.


@pytest.mark.parametrize(
    ("file", "rule", "hidden", "outputs"),
    [
        ("lstm_update_tele", "update", 300, 800),
        ("lstm_update_tele", "teleport", 300, 400),
        ("lstm_update", "update", 300, 800),
        ("lstm_lr_tele", "step_teleport", 20, 401),
    ],
)
def test_flattened_rules_have_the_papers_shapes(
    file: str, rule: str, hidden: int, outputs: int
) -> None:
    optimizer = build.meta_optimizer(load(TrainConfig, f"paper/{file}.yaml"))
    found = {name: list(p.shape) for name, p in optimizer.rules[rule].named_parameters()}
    assert found == {
        "lstm.W_x.0": [4 * hidden, 800],
        "lstm.W_x.1": [4 * hidden, hidden],
        "lstm.W_h.0": [4 * hidden, hidden],
        "lstm.W_h.1": [4 * hidden, hidden],
        "lstm.b.0": [4 * hidden],
        "lstm.b.1": [4 * hidden],
        "head.W": [outputs, hidden],
        "head.b": [outputs],
    }


@pytest.mark.parametrize("kind", COORDINATE)
def test_flattened_rules_refuse_other_shapes(kind: str) -> None:
    tasks = regression([5, 4, 2], samples=4, seed=0)
    with pytest.raises(ShapeMismatchError, match="coordinate-wise rules fit any"):
        flattened_rule(kind, SIZES).initial_state(tasks.observe(tasks.initial))


# Step sizes.


@FEW
@given(z=st.floats(-30, 30), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_sigmoid_bound_stays_inside_with_a_gradient(z: float, dtype: torch.dtype) -> None:
    leaf = torch.tensor([z], dtype=dtype, requires_grad=True)
    eta = Sigmoid(LOW, HIGH)(leaf)
    rounding = 8 * torch.finfo(dtype).eps
    assert LOW * (1 - rounding) <= float(eta.detach()) <= HIGH * (1 + rounding)
    eta.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    # In float32 the derivative of sigmoid itself rounds to 0 from z = 17 on.
    if dtype == torch.float64 or abs(z) < 15:
        assert float(leaf.grad) > 0


def test_sigmoid_bound_is_even_on_a_logarithmic_scale() -> None:
    z = torch.tensor([-1e3, 0.0, 1e3], dtype=torch.float64)
    wanted = torch.tensor([LOW, math.sqrt(LOW * HIGH), HIGH], dtype=torch.float64)
    torch.testing.assert_close(Sigmoid(LOW, HIGH)(z), wanted)


def test_clamp_bound() -> None:
    z = torch.tensor([-1.0, 0.0, 1e-3, 7.0], dtype=torch.float64, requires_grad=True)
    eta = Clamp(LOW, HIGH)(z)
    assert eta.tolist() == [LOW, LOW, 1e-3, HIGH]
    eta.sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("make", [lambda kind, _: coordinate_rule(kind), flattened_rule])
def test_step_size_rules_follow_the_gradient(
    make: Callable[[str, Sequence[int]], Rule],
) -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    rule = make("step", SIZES)
    observation = tasks.observe(tasks.initial)
    proposal, _ = rule.propose(observation, rule.initial_state(observation))
    assert proposal.updates is not None
    ratios = [f / G for f, G in zip(proposal.updates, observation.grads, strict=True)]
    eta = -torch.cat([ratio.flatten(1) for ratio in ratios], 1)
    torch.testing.assert_close(eta, eta[:, :1].expand_as(eta))
    assert (eta > LOW).all()
    assert (eta < HIGH).all()


# Hand-made rules, and how rules compose.


def _steps(optimizer: Optimizer, tasks: TaskBatch, steps: int) -> list[Weights]:
    weights = tasks.initial
    state = optimizer.initial_state(tasks, tasks.observe(weights))
    visited = []
    for _ in range(steps):
        taken = optimizer.step(weights, tasks.observe(weights), state, tasks)
        weights, state = taken.weights, taken.state
        visited.append(weights)
    return visited


TORCH: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "GD": lambda p: torch.optim.SGD(p, lr=0.01),
    "Momentum": lambda p: torch.optim.SGD(p, lr=0.003, momentum=0.8),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.7, 0.95)),
}
HAND_MADE = {
    "GD": {"lr": 0.01},
    "Momentum": {"lr": 0.003, "momentum": 0.8},
    "Adam": {"lr": 0.05, "beta1": 0.7, "beta2": 0.95},
}


@pytest.mark.parametrize("name", list(HAND_MADE))
def test_hand_made_rules_are_torchs(name: str) -> None:
    tasks = regression(DEEP_SIZES, samples=4, seed=0)
    optimizer = build.hand_made(name, HAND_MADE[name])
    parameters = [W.clone().requires_grad_() for W in tasks.initial]
    theirs = TORCH[name](parameters)
    for weights in _steps(optimizer, tasks, 20):
        theirs.zero_grad()
        tasks.loss(parameters).sum().backward()
        theirs.step()
        for mine, other in zip(weights, parameters, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-11, atol=1e-12)
    assert (tasks.loss(parameters) < 0.5 * tasks.loss(tasks.initial)).all()
    assert optimizer.gradients_per_step == 1


def test_update_first_teleport_after_it() -> None:
    config = tiny_config(UPDATE_AND_TELEPORT, {"max_norm": 0.5}, dtype="float64")
    optimizer = build.meta_optimizer(config)
    for rule in optimizer.rules.values():
        _speak_up(rule)
    assert optimizer.engine is not None
    tasks = regression([4, 3, 2], samples=3, seed=0)
    observation = tasks.observe(tasks.initial)
    state = optimizer.initial_state(tasks, observation)
    proposal, _ = optimizer.propose(observation, state)
    assert proposal.updates is not None
    assert proposal.generators is not None
    taken = optimizer.step(tasks.initial, observation, state, tasks)
    updated = tuple(W + f for W, f in zip(tasks.initial, proposal.updates, strict=True))
    wanted, _ = optimizer.engine.teleport(updated, proposal.generators, tasks)
    for mine, other, before in zip(taken.weights, wanted, updated, strict=True):
        assert torch.equal(mine, other)
        assert not torch.allclose(mine, before, rtol=0, atol=1e-6)
    torch.testing.assert_close(tasks.loss(taken.weights), tasks.loss(updated))


@pytest.mark.parametrize("update", ["gd", "momentum", "adam"])
def test_hand_made_updates_stand_beside_learned_teleports(update: str) -> None:
    rules = {"update": {"kind": update, "lr": 1e-3}, "teleport": UPDATE_AND_TELEPORT["teleport"]}
    optimizer = build.meta_optimizer(tiny_config(rules, {}, dtype="float64"))
    alone = MetaOptimizer({"update": optimizer.rules["update"]}, None)
    tasks = regression([4, 3, 2], samples=3, seed=0)
    with torch.no_grad():
        taken, plain = _steps(optimizer, tasks, 1)[0], _steps(alone, tasks, 1)[0]
    torch.testing.assert_close(tasks.loss(taken), tasks.loss(plain))
    assert not torch.allclose(taken[0], plain[0], rtol=0, atol=1e-6)


# L-BFGS.


class _EnoughError(Exception):
    pass


def _one_go(task: TaskBatch, history: int, evaluations: int) -> list[float]:
    """Losses of the first points that torch evaluates when it runs without a break."""
    parameters = [W.clone().requires_grad_() for W in task.initial]
    torchs = torch.optim.LBFGS(
        parameters,
        max_iter=10**6,
        max_eval=10**9,
        history_size=history,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    losses: list[float] = []

    def closure() -> Tensor:
        if len(losses) == evaluations:
            raise _EnoughError
        torchs.zero_grad()
        loss = task.loss(parameters).sum()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with pytest.raises(_EnoughError):
        torchs.step(closure)
    return losses


@pytest.mark.parametrize("history", [1, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_lbfgs_is_torchs_counted_by_gradients(seed: int, history: int) -> None:
    steps = 40
    tasks = regression(SIZES, samples=4, seed=seed)
    losses, _ = rollout(tasks, LBFGS(history), steps)
    for b in range(tasks.size):
        evaluated = _one_go(tasks.select(slice(b, b + 1)), history, steps + 1)
        wanted = torch.tensor(evaluated, dtype=torch.float64).cummin(0).values
        torch.testing.assert_close(losses[:, b], wanted, rtol=1e-9, atol=0)
        assert float(losses[-1, b]) < 0.1 * float(losses[0, b])


def test_lbfgs_evaluates_no_point_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = regression(SIZES, samples=4, seed=0, batch=1)
    solver = LBFGS(20)
    observation = tasks.observe(tasks.initial)
    points: list[tuple[float, ...]] = []
    observe = TaskBatch.observe

    def counting(self: TaskBatch, weights: Weights) -> Observation:
        points.append(tuple(torch.cat([W.flatten() for W in weights]).tolist()))
        return observe(self, weights)

    monkeypatch.setattr(TaskBatch, "observe", counting)
    state = solver.initial_state(tasks, observation)
    weights = tasks.initial
    for _ in range(30):
        weights = solver.step(weights, observation, state, tasks).weights
    assert len(points) >= 31
    assert len(set(points)) == len(points)
    assert solver.gradients_per_step == 1


def test_lbfgs_rests_at_a_minimum() -> None:
    tasks = regression(SIZES, samples=4, seed=0)
    solved = TaskBatch(tasks.X, tasks.outputs(tasks.initial), tasks.initial, tasks.s)
    for weights in _steps(LBFGS(5), solved, 3):
        for mine, start in zip(weights, tasks.initial, strict=True):
            assert torch.equal(mine, start)
