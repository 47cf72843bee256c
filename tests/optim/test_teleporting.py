"""``metaopt.Teleporting``: as the optimizer that it is around, resumed bit for bit."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import metaopt
from metaopt import Teleporting

loss_of: Callable[[Any, Tensor], Tensor] = functional.mse_loss

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: Adam(p, lr=0.01),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "Adagrad": lambda p: Adagrad(p, lr=0.05),
    "RMSprop": lambda p: RMSprop(p, lr=0.005, centered=True),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Linear(3, 2))


def batch(step: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(step)
    return torch.randn(16, 4, generator=numbers), torch.randn(16, 2, generator=numbers)


def around(model: nn.Module, name: str, **more: Any) -> Teleporting:
    arguments: dict[str, Any] = {"every": 2, "loss": loss_of, "data": batch, "steps": 3} | more
    return Teleporting(OPTIMIZERS[name](model.parameters()), model, **arguments)


def trained(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range,
    schedule: LRScheduler | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if schedule is not None:
            schedule.step()


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_resumed_bit_for_bit(name: str) -> None:
    def made(model: nn.Module) -> tuple[Teleporting, LRScheduler, torch.amp.GradScaler]:
        optimizer = around(model, name)
        schedule = CosineAnnealingLR(optimizer, 20)
        return optimizer, schedule, torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)

    whole = network()
    optimizer, schedule, scaler = made(whole)
    trained(whole, optimizer, range(5), schedule, scaler)
    saved = through_a_file(
        [whole.state_dict(), optimizer.state_dict(), schedule.state_dict(), scaler.state_dict()]
    )
    trained(whole, optimizer, range(5, 11), schedule, scaler)
    assert [number for number, _ in optimizer.reports] == [2, 4, 6, 8, 10]
    assert all(r.objective_after > r.objective_before for _, r in optimizer.reports)
    assert optimizer.param_groups[0]["lr"] < optimizer.defaults["lr"]

    resumed = network()
    again, schedule, scaler = made(resumed)
    parts: list[Any] = [resumed, again, schedule, scaler]
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    assert again.taken == 5
    trained(resumed, again, range(5, 11), schedule, scaler)
    assert same(whole, resumed)
    assert [number for number, _ in again.reports] == [6, 8, 10]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_between_teleports_it_is_the_optimizer_that_it_is_around(name: str) -> None:
    model, other = network(), network()
    optimizer = around(model, name, every=None, at=[5])
    plain = OPTIMIZERS[name](other.parameters())
    trained(model, optimizer, range(4))
    trained(other, plain, range(4))
    assert same(model, other)
    trained(model, optimizer, range(4, 5))
    trained(other, plain, range(4, 5))
    assert not same(model, other)


def test_a_step_of_sgd_is_that_of_a_run_begun_at_the_teleported_weights() -> None:
    model, other = network().double(), network().double()
    x, y = (one.double() for one in batch(7))
    optimizer = Teleporting(SGD(model.parameters(), lr=0.1), model, at=[1], steps=5)
    loss_of(model(x), y).backward()
    optimizer.step()
    ((_, report),) = optimizer.reports
    # The gradients of the step itself were enough.
    assert report.gradients == 0
    loss_of(other(x), y).backward()
    metaopt.teleport(other, objective="gradient_norm", steps=5)
    begun = SGD(other.parameters(), lr=0.1)
    begun.zero_grad()
    loss_of(other(x), y).backward()
    begun.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("with_data", [False, True])
def test_closures(with_data: bool) -> None:
    model, other = network(), network()
    more: dict[str, Any] = {} if with_data else {"loss": None, "data": None}
    optimizer = around(model, "momentum", **more)
    reference = around(other, "momentum", **more)
    for step in range(6):
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            return loss

        found = optimizer.step(closure)
        reference.zero_grad()
        loss = loss_of(other(x), y)
        loss.backward()
        reference.step()
        torch.testing.assert_close(found, loss, rtol=1e-4, atol=0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    assert len(optimizer.reports) == len(reference.reports) == 3


def test_a_model_without_symmetries_trains_as_without_it_after_one_warning() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    other = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="nothing is teleported") as caught:
        optimizer = around(model, "Adam", every=1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(model, optimizer, range(6))
    trained(other, OPTIMIZERS["Adam"](other.parameters()), range(6))
    assert same(model, other)
    assert optimizer.reports == []
    with pytest.warns(UserWarning, match="no symmetry to search along"):
        around(network(), "Adam", symmetries=[])


def test_a_lost_run_goes_on_as_with_the_optimizer_alone() -> None:
    model = network()
    optimizer = Teleporting(SGD(model.parameters(), lr=1e30), model, every=1)
    with pytest.warns(UserWarning, match="not teleported at step 2: weights") as caught:
        trained(model, optimizer, range(8))
    assert len([w for w in caught if "not teleported" in str(w.message)]) == 1
    assert optimizer.taken == 8


def test_lbfgs_begins_anew_after_a_teleport() -> None:
    model, (x, y) = network(), batch(0)
    inner = torch.optim.LBFGS(model.parameters(), max_iter=4)
    optimizer = Teleporting(inner, model, every=2, state="reset", loss=loss_of, data=batch)
    seen = []

    def closure() -> Tensor:
        seen.append(len(optimizer.state))
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    assert float(optimizer.step(closure).detach()) < first
    assert "reset" in optimizer.reports[0][1].state


def test_level_sets_serve_models_without_symmetries() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = around(model, "SGD", objective="level_set", every=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(model, optimizer, range(7))
    assert [number for number, _ in optimizer.reports] == [3, 6]
    for _, report in optimizer.reports:
        assert report.objective_after > report.objective_before
        assert report.loss_change <= 1e-5


def test_moves_through_data_come_after_the_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2))
    x, y = batch(0)
    optimizer = around(
        model,
        "momentum",
        symmetries=metaopt.through_data(model, (x, y)),
        data=(x, y),
        fresh=lambda step: batch(step + 100),
        at=[2],
        every=None,
        tolerance=math.inf,
    )
    trained(model, optimizer, range(2))
    ((number, report),) = optimizer.reports
    assert number == 2
    assert report.fresh_drift > 0
    assert "reset" in report.state
    assert model[0].weight.grad is None
    trained(model, optimizer, range(2, 4))


def test_it_passes_on_what_it_does_not_know() -> None:
    model = network()
    optimizer = around(model, "Adam")
    more = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [more], "lr": 0.5})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 2
    assert optimizer.defaults is optimizer.optimizer.defaults
    seen: list[str] = []
    optimizer.register_step_post_hook(lambda *_: seen.append("stepped"))
    trained(model, optimizer, range(2))
    assert seen == ["stepped", "stepped"]
    assert optimizer.state is optimizer.optimizer.state
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert "Teleporting('gradient_norm', Adam" in repr(optimizer)
    # A state of the optimizer alone may be loaded as well.
    optimizer.load_state_dict(optimizer.optimizer.state_dict())
    assert optimizer.taken == 0
    with pytest.raises(AttributeError, match="nonsense"):
        _ = optimizer.nonsense


def test_it_can_be_copied() -> None:
    model = network()
    optimizer = Teleporting(OPTIMIZERS["Adam"](model.parameters()), model, every=2, steps=2)
    trained(model, optimizer, range(3))
    other_model, other = copy.deepcopy((model, optimizer))
    third_model, third = pickle.loads(pickle.dumps((model, optimizer)))
    for m, o in ((model, optimizer), (other_model, other), (third_model, third)):
        trained(m, o, range(3, 7))
    assert same(model, other_model)
    assert same(model, third_model)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"at": [1]}, "exactly one of every and at"),
        ({"every": None}, "exactly one of every and at"),
        ({"every": 0}, "every must be at least 1"),
        ({"every": None, "at": [0, 3]}, "numbers of steps from 1"),
        ({"state": "kept"}, "state must be one of"),
        ({"max_norm": None}, "has no end"),
    ],
)
def test_mistakes_are_named_at_once(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        around(network(), "Adam", **more)


def test_optimizers_whose_state_is_not_known_are_to_be_reset() -> None:
    model = network()
    parameters = list(model.parameters())
    for unknown in (torch.optim.NAdam(parameters), RMSprop(parameters, momentum=0.9)):
        with pytest.raises(ValueError, match="use state='reset'"):
            Teleporting(unknown, model, every=1)
        optimizer = Teleporting(unknown, model, every=1, state="reset")
        trained(model, optimizer, range(2))
        assert "reset" in optimizer.reports[-1][1].state


def test_the_state_of_rmsprop_is_that_of_a_run_begun_there() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    other = copy.deepcopy(model)
    optimizer = RMSprop(model.parameters(), lr=0.0, centered=True, eps=0.0)
    begun = RMSprop(other.parameters(), lr=0.0, centered=True, eps=0.0)

    def stepped(model: nn.Module, optimizer: Optimizer) -> None:
        for step in range(3):
            x, y = (one.double() for one in batch(step))
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()

    stepped(model, optimizer)
    metaopt.teleport(model, seed=3, optimizer=optimizer)
    other.load_state_dict(model.state_dict())
    stepped(other, begun)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name in ("square_avg", "grad_avg"):
            torch.testing.assert_close(optimizer.state[p][name], begun.state[q][name])
