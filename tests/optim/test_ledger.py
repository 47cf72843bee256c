"""The ledger: charges foretold by a recursion alone, against the charges that training leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import learned_rule
from ledgers import MODELS, RATES, backward, clip, inputs, model_of, train, worst
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from metaopt import LearnedOptimizer, symmetries, teleport
from metaopt.optim.ledger import Ledger
from metaopt.symmetry.conserved import charges

GROUPS = {
    "mlp": {"positive scaling", "general linear"},
    "cnn": {"positive scaling", "general linear"},
    "transformer": {"positive scaling", "general linear", "translation"},
}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("kind", MODELS)
def test_two_hundred_steps_are_foretold_to_rounding(kind: str) -> None:
    model = model_of(kind)
    optimizer = SGD(model.parameters(), **RATES)
    found = symmetries(model, inputs(kind))
    with Ledger(model, optimizer, found) as ledger:
        before = charges(model, found)
        train(model, optimizer, 200, kind, clip)
    assert worst(ledger) < 1e-12
    assert {row["group"] for row in ledger.rows()} == GROUPS[kind]
    foretold, now = ledger.predictions(), charges(model, found)
    assert foretold is not None
    assert foretold.keys() == now.keys()
    for row in ledger.rows():
        name = row["name"]
        torch.testing.assert_close(foretold[name].reshape(now[name].shape), now[name])
        if row["group"] != "translation":
            assert (now[name] - before[name]).abs().max() > 1e-3
        parts = row["first_order"] + row["second_order"]
        assert parts == pytest.approx(row["predicted"], abs=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0},
        {"momentum": 0, "weight_decay": 0},
        {"nesterov": True},
        {"dampening": 0.3},
        {"maximize": True, "lr": 0.005},
        {"foreach": True},
        {"fused": True},
        {"lr": torch.tensor(0.05)},
    ],
    ids=str,
)
def test_every_kind_of_sgd_is_foretold(settings: dict[str, Any]) -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), **{**RATES, **settings})
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    with Ledger(model, optimizer) as ledger:
        for _ in range(50):
            train(model, optimizer, 1)
            schedule.step()
    assert worst(ledger) < 1e-12


def test_without_decay_or_momentum_only_the_second_order_is_left() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 20)
    for row in ledger.rows():
        assert abs(row["first_order"]) < 1e-15
        assert abs(row["second_order"]) > 1e-6


@pytest.mark.parametrize("kind", MODELS)
def test_settings_may_differ_within_a_symmetry(kind: str) -> None:
    model = model_of(kind)
    flat = [p for p in model.parameters() if p.dim() < 2]
    deep = [p for p in model.parameters() if p.dim() >= 2]
    slow: dict[str, Any] = {
        "params": flat,
        "weight_decay": 0.0,
        "lr": 0.03,
        "momentum": 0.8,
        "nesterov": True,
    }
    fast: list[dict[str, Any]] = [{"params": deep[::2]}, {"params": deep[1::2], "lr": 0.01}]
    optimizer = SGD([*fast, slow], **RATES)
    with Ledger(model, optimizer, example=inputs(kind)) as ledger:
        train(model, optimizer, 100, kind, clip)
    assert worst(ledger) < 1e-12


def test_a_single_precision_model_is_foretold_to_its_rounding() -> None:
    model = model_of().float()
    optimizer = SGD(model.parameters(), **RATES)
    with Ledger(model, optimizer) as ledger:
        for _ in range(200):
            optimizer.zero_grad()
            functional.cross_entropy(model(torch.randn(16, 5)), torch.arange(16) % 3).backward()
            optimizer.step()
    assert 1e-12 < worst(ledger) < 1e-5


@pytest.mark.parametrize("make", [Adam, AdamW, torch.optim.RMSprop, torch.optim.LBFGS])
def test_of_other_optimizers_the_change_is_taken_apart(make: Callable[..., Optimizer]) -> None:
    model = model_of()
    optimizer = make(model.parameters(), lr=0.01)
    ledger = Ledger(model, optimizer)
    begun = charges(model)
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(torch.ones(9, 5).double()), torch.arange(9) % 3)
        loss.backward()
        return loss

    optimizer.step(closure)
    ends = charges(model)
    row = ledger.rows()[0]
    w_in, bias, w_out, *_ = before
    d_in, d_bias, d_out, *_ = (
        p.detach() - q for p, q in zip(model.parameters(), before, strict=True)
    )
    # The parameters of a Sequential come as weight, bias, weight.
    first = 2 * ((w_in * d_in).sum(1) + bias * d_bias - (w_out * d_out).sum(0))
    second = d_in.square().sum(1) + d_bias**2 - d_out.square().sum(0)
    assert row["predicted"] is None
    assert row["error"] is None
    assert row["first_order"] == pytest.approx(float(first.mean()), rel=1e-9)
    assert row["second_order"] == pytest.approx(float(second.mean()), rel=1e-9)
    assert row["measured"] == pytest.approx(float((ends["0 -> 2"] - begun["0 -> 2"]).mean()))
    assert row["measured"] == pytest.approx(row["first_order"] + row["second_order"])


def test_a_closure_is_called_once_and_its_gradients_are_read() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), **RATES)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        calls.append(1)
        return backward(model, "mlp")

    with Ledger(model, optimizer) as ledger:
        losses = [optimizer.step(closure) for _ in range(10)]
        losses += [optimizer.step(closure=closure) for _ in range(10)]
    assert len(calls) == len(losses) == 20
    assert all(isinstance(loss, Tensor) for loss in losses)
    assert worst(ledger) < 1e-13


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_sampled_steps_are_foretold_one_by_one(make: Callable[..., Optimizer]) -> None:
    model, changes = model_of(), []
    found = symmetries(model)
    optimizer = make(model.parameters(), lr=0.01, weight_decay=0.01)
    with Ledger(model, optimizer, found, every=5) as ledger:
        for step in range(20):
            before = charges(model, found)["0 -> 2"]
            train(model, optimizer, 1)
            if step % 5 == 0:
                changes.append(charges(model, found)["0 -> 2"] - before)
            teleport(model, 0.1, step, found)
    row = ledger.rows()[0]
    assert row["measured"] == pytest.approx(float(torch.stack(changes).sum(0).mean()))
    if make is SGD:
        assert worst(ledger) < 1e-14
        assert row["predicted"] == pytest.approx(row["measured"])


@pytest.mark.filterwarnings("ignore:updates only:UserWarning")
def test_of_a_learned_optimizer_the_change_is_taken_apart() -> None:
    model = model_of()
    optimizer = LearnedOptimizer(model, learned_rule("coordinate_lstm_update"), lr=1e-3)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 5)
    assert not ledger.predicts
    for row in ledger.rows():
        assert abs(row["first_order"]) > 1e-9
        assert row["measured"] == pytest.approx(row["first_order"] + row["second_order"], rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [SGD, Adam])
def test_between_two_looks_nothing_waits_for_the_device(make: Callable[..., Optimizer]) -> None:
    model = model_of("transformer").cuda()
    optimizer = make(model.parameters(), lr=0.01)
    ledger = Ledger(model, optimizer, example=inputs("transformer").cuda())
    for step in range(20):
        optimizer.zero_grad()
        outputs = model(inputs("transformer").cuda())
        outputs.square().mean().backward()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if ledger.predicts:
        assert worst(ledger) < 1e-12
