"""studies/lora: exact moves, parity with torch, directions in every frame, the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from running import figures_in_small
from torch import Tensor, nn
from tqdm import tqdm

from studies.lora import __main__ as command
from studies.lora import directions, moves, result, why
from studies.lora.contenders import Contender, Point, grid, hand_made, learned, off
from studies.lora.hand_made import Adam, Pair, ScaledGD, scaled
from studies.lora.kept import Runs
from studies.lora.result import Best, best, of_best
from studies.lora.runs import Tasks, alone, together, train
from studies.lora.stack import Stack
from studies.lora.task import SHIFTS, Setting, losses, pairs_of, task

SETTING = Setting(width=7, rank=3, batch=8, steps=3)


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks.of(SETTING, 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factors(outputs: int = 9, k: int = 4, inputs: int = 6) -> Pair:
    return normal(2, k, inputs), normal(2, outputs, k, seed=1)


def eye(k: int) -> Tensor:
    return torch.eye(k, dtype=torch.float64).expand(2, k, k)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("outputs", [9, 2])
def test_elements_of_frames_are_exact(power: float, outputs: int) -> None:
    """Also where BA has a lower rank than the factors have rows and columns."""
    A, B = factors(outputs)
    g, inverse = moves.frame(A, B, power)
    torch.testing.assert_close(g @ inverse, eye(4))
    torch.testing.assert_close((B @ inverse) @ (g @ A), B @ A)


def test_frames_are_what_their_names_say() -> None:
    A, B = factors()
    for move, step in ((moves.orthonormal, 1), (moves.in_turn, 1)):
        g, _ = move(A, B, step)
        torch.testing.assert_close((g @ A) @ (g @ A).mT, eye(4))
    _, inverse = moves.in_turn(A, B, 2)
    torch.testing.assert_close((B @ inverse).mT @ (B @ inverse), eye(4))
    g, inverse = moves.balanced(A, B, 1)
    gram_A, gram_B = (g @ A) @ (g @ A).mT, (B @ inverse).mT @ (B @ inverse)
    torch.testing.assert_close(gram_A, gram_B)
    singular = torch.linalg.svdvals(B @ A)[:, :4]
    torch.testing.assert_close(gram_A, torch.diag_embed(singular))


def test_of_a_zero_product_any_frame_is_one() -> None:
    A, B = factors()
    for power in (0.0, 0.5, 1.0):
        g, inverse = moves.frame(A, torch.zeros_like(B), power)
        torch.testing.assert_close(g @ inverse, eye(4))
        torch.testing.assert_close((g @ A) @ (g @ A).mT, eye(4))


def test_a_member_that_has_diverged_stops_no_other() -> None:
    A, B = factors()
    alone_ = moves.balanced(A, B, 1)[0][1]
    A[0, 0, 0], B[0, 0, 0] = torch.nan, torch.inf
    torch.testing.assert_close(moves.balanced(A, B, 1)[0][1], alone_)


def test_random_elements_have_their_norm() -> None:
    A, B = factors()
    norm = torch.tensor([0.1, 0.4], dtype=torch.float64)[:, None, None]
    g, inverse = moves.RandomElements(norm)(A, B, 1)
    torch.testing.assert_close(g @ inverse, eye(4))
    distance = torch.linalg.matrix_norm(g - eye(4))
    assert (distance / norm.flatten() - 1).abs().max() < 0.3


MOVES: list[moves.Move] = [
    moves.balanced, moves.orthonormal, moves.in_turn, moves.RandomElements(0.3),
]  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_moves_keep_outputs_and_first_moments_are_gradients_there(
    move: moves.Move, tasks: Tasks
) -> None:
    stack = trained(tasks)
    x, y = tasks.images.X[:5].double().expand(2, 5, 64), tasks.images.y[:5].expand(2, 5)
    before = stack(x).detach()
    optimizer = moves.MovedAdam(stack.pairs, 0.0, move)
    losses(stack, x, y).sum().backward()
    optimizer.step()
    torch.testing.assert_close(stack(x).detach(), before)
    optimizer.zero_grad()
    losses(stack, x, y).sum().backward()
    for p in stack.parameters():
        assert p.grad is not None
        torch.testing.assert_close(optimizer.state[p]["m"], 0.1 * p.grad)


def trained(tasks: Tasks) -> Stack:
    """A stack in float64 with products that are not zero."""
    stack = Stack(tasks.tasks, 1, torch.float64)
    with torch.no_grad():
        for i, (_, B) in enumerate(stack.pairs):
            B.copy_(0.1 * normal(*B.shape, seed=i))
    return stack


def test_squares_move_second_moments_exactly_along_permutations_and_scalings() -> None:
    C = torch.diag(torch.tensor([2.0, -0.5, 3.0]))[[2, 0, 1]]
    grads = normal(5, 3, 4).float()
    v = moves.by_squares(grads.square().mean(0), C)
    torch.testing.assert_close(v, (C @ grads).square().mean(0))
    assert moves.kept(v, C) is v


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay: float, tasks: Tasks) -> None:
    ours, torchs = tasks.tasks[0].model(), tasks.tasks[0].model()
    own = Adam(pairs_of(ours), 0.01, decay)
    given = torch.optim.AdamW(torchs.parameters(), 0.01, weight_decay=decay)
    rows = tasks.rows(0, 6)
    for model, optimizer in ((ours, own), (torchs, given)):
        train(model, optimizer, tasks.images, rows, [6], told=True)
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["Adam", "AdamW, cosine", "ScaledGD", "Adam, state reset"])
def test_side_by_side_is_one_by_one(name: str, tasks: Tasks) -> None:
    contender = next(one for one in hand_made() if one.name == name)
    points = contender.grid[:2]
    found = together(tasks, contender, points, [0, 1], 4, [0, 2, 4])
    for i, point in enumerate(points):
        for seed in (0, 1):
            one = alone(tasks, contender, point, seed, 4, [0, 2, 4])
            assert found[:, i, seed].tolist() == pytest.approx(one, rel=2e-4)


def test_a_reset_at_each_step_is_descent_along_signs(tasks: Tasks) -> None:
    stack = trained(tasks)
    optimizer = moves.ResetAdam(stack.pairs, 0.1, 1)
    x, y = tasks.images.X[:5].double().expand(2, 5, 64), tasks.images.y[:5].expand(2, 5)
    for _ in range(3):
        optimizer.zero_grad()
        losses(stack, x, y).sum().backward()
        before = [p.detach().clone() for p in stack.parameters()]
        optimizer.step()
        for p, old in zip(stack.parameters(), before, strict=True):
            assert p.grad is not None
            expected = old - 0.1 * p.grad / (p.grad.abs() + 1e-8)
            torch.testing.assert_close(p.detach(), expected)


def test_scaled_gd_is_its_formula_and_the_same_in_every_frame() -> None:
    A, B = factors()
    G = normal(2, 9, 6, seed=2)
    D_A, D_B = scaled(A, B, B.mT @ G, G @ A.mT, 0.0)
    P_B = B @ torch.linalg.pinv(B)
    P_A = torch.linalg.pinv(A) @ A
    torch.testing.assert_close(B @ D_A + D_B @ A, P_B @ G + G @ P_A)
    g = normal(4, 4, seed=3)
    a, b = g @ A, B @ torch.linalg.inv(g)
    d_a, d_b = scaled(a, b, b.mT @ G, G @ a.mT, 0.0)
    torch.testing.assert_close((a - d_a), g @ (A - D_A))
    torch.testing.assert_close((b - d_b) @ (a - d_a), (B - D_B) @ (A - D_A))


def test_a_step_of_scaled_gd() -> None:
    A, B = (nn.Parameter(factor[0]) for factor in factors())
    A.grad, B.grad = normal(4, 6, seed=4), normal(9, 4, seed=5)
    D_A, D_B = scaled(A.detach(), B.detach(), A.grad, B.grad, 0.1)
    expected = A.detach() - 0.3 * D_A, B.detach() - 0.3 * D_B
    ScaledGD([(A, B)], 0.3, 0.1).step()
    torch.testing.assert_close((A.detach(), B.detach()), expected)


def test_gauss_newton_solves_its_system(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tasks.tasks[0].model().double()
    X, y = tasks.images.X[:4].double(), tasks.images.y[:4]
    with torch.no_grad():
        for A, B in pairs_of(model):
            B.copy_(0.1 * normal(*B.shape, seed=len(A)))
    pairs, grads = pairs_of(model), directions.gradients(model, X, y)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    weights = {name: model.get_parameter(name).detach() for name in names}
    outputs = partial(torch.func.functional_call, model)
    jacobians = torch.func.jacrev(lambda w: outputs(w, (X,)))(weights)
    J = torch.cat([jacobians[name].flatten(2) for name in names], 2)
    p = model(X).softmax(-1).detach()
    H = torch.diag_embed(p) - p[..., None] * p[:, None]
    matrix = (J.mT @ H @ J).mean(0)
    g = torch.cat([grad.flatten() for pair in grads for grad in pair])
    size = directions.DAMPED_AT * (g @ matrix @ g) / (g @ g)
    d = torch.linalg.solve(matrix + size * torch.eye(len(matrix)).double(), -g)
    parts = iter(d.split([weights[name].numel() for name in names]))
    steps = [(next(parts).view_as(A), next(parts).view_as(B)) for A, B in pairs]
    monkeypatch.setattr(directions, "RESIDUAL", 1e-9)
    found = directions.gauss_newton(model, grads, X)
    torch.testing.assert_close(found, directions.products(pairs, steps), rtol=1e-5, atol=1e-7)


def test_conditions_and_cosines() -> None:
    assert directions.condition(torch.diag(torch.tensor([2.0, 8.0]))) == pytest.approx(4)
    assert directions.condition(torch.zeros(2, 3)) is None
    x = torch.tensor([1.0, 0.0])
    assert directions.cosine_between(x, torch.tensor([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert directions.cosine_between(x, 0 * x) == 0


def test_the_task_is_what_the_page_says() -> None:
    assert Setting().sizes == [64, 96, 96, 10]
    one = task(SETTING, 1)
    model = one.model()
    assert sum(p.requires_grad for p in model.parameters()) == 6
    assert all((B == 0).all() for _, B in one.factors)
    corner = torch.zeros(1, 8, 8)
    corner[0, 0, 7] = 1
    assert SHIFTS["turned_inverted"](corner)[0, 0, 0] == 0
    assert SHIFTS["turned_inverted"](corner).sum() == 63


def at(losses_: list[float], step: int) -> Best:
    return Best(step, torch.tensor(losses_).double().numpy(), {"lr": 1.0}, False)


def test_steps_needed_are_read_off_a_power_law() -> None:
    adamw = {step: at([10.0 / step, 10.0 / step], step) for step in (10, 100, 1000)}
    assert of_best(10 / 300, adamw) == pytest.approx(300)
    assert of_best(2.0, adamw) == 10
    assert of_best(1e-4, adamw) is None


def test_each_column_has_its_best_point() -> None:
    def make(model: nn.Module, at: Point) -> Adam:
        raise AssertionError

    of = Contender("of three", make, grid(lr=[1.0, 2.0, 4.0]))  # type: ignore[arg-type]
    found = torch.tensor([[1.0, torch.nan], [4.0, 1.0], [2.0, 4.5]]).double().numpy()
    chosen = best(found, of, 5)
    assert chosen.point == {"lr": 2.0}
    assert not chosen.at_edge
    assert best(found[::-1], of, 5).told()["loss_geomean"] == pytest.approx(2)


def test_bars_are_on_upper_ends() -> None:
    ratios = [{"b": "LoRA-RITE", "step": 20, "ratio": 0.7, "ci95": [0.6, 0.95]}]
    (bar,) = result.bars("ours", ratios)
    assert not bar["met"]


@pytest.mark.filterwarnings("ignore:updates only")
def test_teleports_that_stop_at_once_are_the_updates_alone(tasks: Tasks) -> None:
    whole, updates = learned(["digits_update_tele"])
    assert updates.name == off(whole.name)
    size = why.WhySize((1,), (0,), (2, 4), 4)
    stopped = why.stopped(tasks, whole, 0, 0, size)
    assert stopped == pytest.approx(alone(tasks, updates, {"lr": 1.0}, 0, 4, [2, 4]))


def test_what_is_there_is_not_run_again(
    tasks: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = replace(hand_made()[0], grid=grid(lr=[0.01]))
    bar = tqdm(disable=True)
    first = Runs(tmp_path, tasks, [0, 2]).losses(adam, 2, bar)

    def forbidden(*given: object) -> Callable[[], None]:
        raise AssertionError("it ran again")

    monkeypatch.setattr("studies.lora.kept.together", forbidden)
    assert (Runs(tmp_path, tasks, [0, 2]).losses(adam, 2, bar) == first).all()


@pytest.mark.parametrize("part", [[], ["--why"]])
def test_the_command_in_small(
    part: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = figures_in_small(
        monkeypatch, tmp_path, command.main, "--rules", "digits_update_tele", *part
    )
    names = found["along"] if part else found["contenders"]
    assert {"digits_update_tele", "Adam"} <= set(names)
