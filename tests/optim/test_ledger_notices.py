"""What a ledger notices: other gradients, other weights, what is not trained, skipped steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ledgers import RATES, Transformer, backward, clip, inputs, mlp, model_of, train, worst
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW

from metaopt import symmetries, teleport
from metaopt.optim.ledger import Ledger


def by_value(model: nn.Module) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


def by_layer(model: nn.Module) -> None:
    for p in model.parameters():
        nn.utils.clip_grad_norm_([p], 0.01)


def noisy(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad += 0.01 * torch.randn_like(p.grad)


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("change", [by_value, by_layer, noisy])
@pytest.mark.parametrize("every", [1, 3])
def test_gradients_that_are_changed_entry_by_entry_are_noticed_once(
    change: Callable[[nn.Module], None], every: int
) -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), **RATES)
    ledger = Ledger(model, optimizer, log_every=5, every=every)
    with pytest.warns(UserWarning, match=r"break <w, grad> = 0 along .*clip_grad_norm_") as said:
        train(model, optimizer, 20, change=change)
    ledger.close()
    assert len(said) == 1
    assert worst(ledger) > 1e-5


def test_a_change_between_two_looks_is_noticed_in_the_charges() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), **RATES)
    ledger = Ledger(model, optimizer)
    train(model, optimizer, 3)
    train(model, optimizer, 3, change=by_value)
    with pytest.warns(UserWarning, match=r"after step 6 .* along .* differ by .*clipped by value"):
        ledger.close()


def test_a_teleport_between_steps_starts_it_anew() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), **RATES)
    ledger = Ledger(model, optimizer)
    train(model, optimizer, 5)
    teleport(model, 0.3, optimizer=optimizer)
    with pytest.warns(UserWarning, match=r"changed between steps 5 and 6 .*: it starts anew"):
        train(model, optimizer, 5)
    teleport(model, 0.3, seed=1)
    # The first time is said, the others are counted: warnings are errors here.
    train(model, optimizer, 50)
    assert ledger.restarts == 2
    assert "started anew 2 times" in str(ledger)
    assert worst(ledger) < 1e-13


def test_loading_weights_or_momenta_starts_it_anew() -> None:
    warnings.filterwarnings("ignore", "ledger: weights or momenta changed")
    model, other = model_of(), model_of()
    optimizer = SGD(model.parameters(), **RATES)
    ledger = Ledger(model, optimizer)
    train(model, optimizer, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 5)
    model.load_state_dict(other.state_dict())
    train(model, optimizer, 5)
    optimizer.load_state_dict(saved)
    train(model, optimizer, 5)
    assert ledger.restarts == 2
    assert worst(ledger) < 1e-13


def test_a_ledger_may_begin_with_momenta() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), **RATES)
    train(model, optimizer, 5)
    with Ledger(model, optimizer) as ledger:
        train(model, optimizer, 50)
    assert ledger.restarts == 0
    assert worst(ledger) < 1e-13


def test_a_symmetry_with_a_frozen_parameter_is_left_alone() -> None:
    model = model_of()
    found = symmetries(model)
    model.get_submodule("4").weight.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], **RATES)
    with Ledger(model, optimizer, found) as ledger:
        train(model, optimizer, 50)
    assert [row["name"] for row in ledger.rows()] == ["0 -> 2"]
    assert [str(one) for one in ledger.skipped] == [
        "2: 2 -> 4: 4.weight is frozen",
        "4: 4 -> 5: 4.weight is frozen",
    ]
    assert "left alone: 2: 2 -> 4: 4.weight is frozen" in str(ledger)
    assert worst(ledger) < 1e-13


def test_what_is_assumed_is_followed_if_it_was_tried_on_an_example() -> None:
    model = model_of("transformer")
    optimizer = SGD(model.parameters(), **RATES)
    groups = [
        {row["group"] for row in Ledger(model, optimizer, example=example).rows()}
        for example in (None, inputs("transformer"))
    ]
    assert "general linear" not in groups[0]
    assert "general linear" in groups[1]


def test_a_symmetry_that_is_trained_in_part_is_left_alone() -> None:
    model = model_of()
    ledger = Ledger(model, SGD(list(model.parameters())[:6], **RATES))
    assert [row["name"] for row in ledger.rows()] == ["0 -> 2", "2 -> 4"]
    reasons = [str(one) for one in ledger.skipped]
    assert reasons == ["4: 4 -> 5: 5.weight is no parameter of the optimizer"]


def test_nothing_to_follow_is_refused() -> None:
    model: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no charges to follow: .*pass GELU"):
        Ledger(model, SGD(model.parameters(), lr=0.1))
    model = mlp()
    for p in model.parameters():
        p.requires_grad_(False)
    extra = nn.Parameter(torch.ones(1))
    model.register_parameter("extra", extra)
    with pytest.raises(ValueError, match=r"no charges to follow: .*'0.weight' is frozen"):
        Ledger(model, SGD([extra], lr=0.1))


@pytest.mark.parametrize("settings", [{"every": 0}, {"log_every": 0}], ids=str)
def test_counts_are_at_least_one(settings: dict[str, Any]) -> None:
    model = mlp()
    with pytest.raises(ValueError, match="must be at least 1, found 0"):
        Ledger(model, SGD(model.parameters(), lr=0.1), **settings)


def test_the_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="none of its 8 parameters is one of this model's"):
        Ledger(mlp(), SGD(mlp().parameters(), lr=0.1))


class TwoBranches(nn.Module):
    """One of two branches at each step; what the other has keeps no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.left, self.right = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.one = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
        self.which = 0

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.inp(x))
        return self.left(h) + self.right(h) + self.one(x)

    def step(self, x: Tensor) -> Tensor:
        """As ``forward``, but one branch, or two of three layers, alone."""
        if self.which == 0:
            return self.one(x)
        return self.left(functional.relu(self.inp(x)))


@pytest.mark.parametrize("kept", [True, False])
def test_parameters_without_gradient_stay_and_the_rest_is_foretold(kept: bool) -> None:
    torch.manual_seed(0)
    model = TwoBranches().double()
    optimizer = SGD(model.parameters(), **RATES)
    ledger = Ledger(model, optimizer, symmetries(model))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(30):
            model.which = step // 3 % 2
            optimizer.zero_grad(set_to_none=not kept)
            outputs = model.step(torch.randn(7, 5).double())
            functional.cross_entropy(outputs, torch.randint(3, (7,))).backward()
            optimizer.step()
    assert worst(ledger) < 1e-13
    # The weights that read one hidden space are parted once: those that never had a gradient.
    assert [("part at step 4" in str(one.message)) for one in said] == [True]
    assert ledger.restarts == 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_change_nothing(fused: bool) -> None:
    model = model_of().float()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
    with Ledger(model, optimizer) as ledger:
        for step in range(40):
            optimizer.zero_grad()
            x = torch.randn(16, 5)
            loss = functional.cross_entropy(model(x), torch.arange(16) % 3)
            scaler.scale(loss * (torch.inf if step % 7 == 3 else 1)).backward()
            if step % 2:
                scaler.unscale_(optimizer)
                clip(model)
            scaler.step(optimizer)
            scaler.update()
    assert ledger.steps == (40 if fused else 34)
    assert worst(ledger) < 1e-6


def test_an_embedding_with_sparse_gradients_is_followed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5, sparse=True), nn.Linear(5, 6), nn.Linear(6, 3))
    model.double()
    optimizer = SGD(model.parameters(), lr=0.1)
    with Ledger(model, optimizer) as ledger:
        for _ in range(20):
            optimizer.zero_grad()
            tokens = torch.randint(7, (9,))
            functional.cross_entropy(model(tokens), tokens % 3).backward()
            optimizer.step()
    assert {row["group"] for row in ledger.rows()} == {"general linear"}
    assert worst(ledger) < 1e-13


def test_it_logs_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = model_of("transformer")
    optimizer = SGD(model.parameters(), **RATES)
    with SummaryWriter(str(tmp_path)) as writer:
        ledger = Ledger(model, optimizer, writer=writer, log_every=10)
        train(model, optimizer, 31, "transformer")
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["scalars"]
    assert len(tags) == 2 * len(ledger.rows()) + 1
    errors = events.Scalars("ledger/error")
    assert [event.step for event in errors] == [1, 11, 21, 31]
    assert all(event.value < 1e-12 for event in errors)


def test_the_optimizer_is_left_as_it_was() -> None:
    model, plain = model_of(), model_of()
    optimizers = [SGD(one.parameters(), **RATES) for one in (model, plain)]
    with Ledger(model, optimizers[0]) as ledger:
        for one, optimizer in zip((model, plain), optimizers, strict=True):
            torch.manual_seed(1)
            train(one, optimizer, 20)
    table = str(ledger)
    assert not optimizers[0]._optimizer_step_pre_hooks
    assert not optimizers[0]._optimizer_step_post_hooks
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    train(model, optimizers[0], 1)
    ledger.close()
    assert str(ledger) == table
    assert table.startswith("20 steps\n| symmetry")


def test_decoupled_decay_shows_in_the_first_order() -> None:
    model = Transformer().double()
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.5)
    with Ledger(model, optimizer) as ledger:
        optimizer.zero_grad()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for row in ledger.rows():
        if row["group"] == "translation":
            continue
        before = row["charge"] - row["measured"]
        assert row["first_order"] == pytest.approx(-2 * 5e-4 * before, rel=1e-6)
        assert row["second_order"] == pytest.approx(25e-8 * before, rel=1e-6)
        assert row["charge"] == pytest.approx((1 - 5e-4) ** 2 * before, rel=1e-9)


def test_backward_is_left_to_the_loop() -> None:
    """A step without any gradient changes nothing, and is foretold."""
    model = model_of()
    optimizer = SGD(model.parameters(), **RATES)
    with Ledger(model, optimizer) as ledger:
        optimizer.step()
        backward(model, "mlp")
        optimizer.step()
    assert ledger.restarts == 0
    assert worst(ledger) < 1e-14


def test_half_precision_is_noticed_and_measured() -> None:
    model = model_of().float()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    ledger = Ledger(model, optimizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = functional.cross_entropy(model(torch.randn(16, 5)), torch.arange(16) % 3)
    loss.backward()
    with pytest.warns(UserWarning, match=r"break <w, grad> = 0 along .* half precision"):
        optimizer.step()
    ledger.close()
    assert worst(ledger) < 1e-2


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_weights_that_diverge_are_said_once(kind: Callable[..., torch.optim.Optimizer]) -> None:
    model = model_of()
    optimizer = kind(model.parameters(), lr=1e-3)
    ledger = Ledger(model, optimizer, log_every=2)

    def diverge() -> None:
        for _ in range(6):
            for p in model.parameters():
                p.grad = torch.full_like(p, torch.nan)
            optimizer.step()
        ledger.close()

    with pytest.warns(UserWarning, match="weights are not finite after") as said:
        diverge()
    assert len(said) == 1
