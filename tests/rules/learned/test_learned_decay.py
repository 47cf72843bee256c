"""The weight decay that a layer-wise rule has learned: where it acts, and how it is turned off."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import learned_rule
from torch import Tensor, nn
from torch.nn import functional

import metaopt
from metaopt import LearnedOptimizer
from metaopt.base import checkpoint
from metaopt.optim.show import report
from metaopt.rules.learned.layer import LayerUpdateLSTM


class Words(nn.Module):
    """Ten words, of which the data have five."""

    def __init__(self, sparse_rows: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(sparse_rows, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))


def trained(steps: int, change: float | None = None) -> tuple[Words, Tensor]:
    """The model after some steps, and its first embedding."""
    model = Words().double()
    start = model.words.weight.detach().clone()
    with warnings.catch_warnings():
        # Embeddings and what reads them are a symmetry; this rule has updates alone.
        warnings.simplefilter("error")
        optimizer = LearnedOptimizer(model, learned_rule("layer"))
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        if change is not None and step == steps // 2:
            for group in optimizer.param_groups:
                group["learned_decay"] = change
        x = torch.randint(0, 5, (8,), generator=draw)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), x % 3).backward()
        optimizer.step()
    return model, start


def test_rows_that_are_never_looked_up_stay() -> None:
    model, start = trained(30)
    assert torch.equal(model.words.weight[5:], start[5:])
    assert not torch.equal(model.words.weight[:5], start[:5])


def test_a_row_that_is_not_looked_up_at_a_step_moves_by_its_means_alone() -> None:
    """Turned off, the decay makes no difference to it."""
    ends = []
    for factor in (0.0, 1.0):
        model = Words().double()
        optimizer = LearnedOptimizer(model, learned_rule("layer"), learned_decay=factor)
        functional.cross_entropy(model(torch.tensor([0, 1])), torch.tensor([0, 1])).backward()
        start = model.words.weight.detach().clone()
        optimizer.step()
        ends.append(model.words.weight.detach() - start)
    assert torch.equal(ends[0][2:], ends[1][2:])
    assert not torch.equal(ends[0][:2], ends[1][:2])


def test_turned_off_a_step_is_the_mixture_of_means() -> None:
    """Two steps from weights w and 2 w with equal gradients differ by the decay, or not at all."""
    rule = learned_rule("layer")
    update = rule.optimizer.rules["update"]
    with torch.no_grad():
        # Weights are features too: without them only the decay can tell w from 2 w.
        assert isinstance(update, LayerUpdateLSTM)
        for parameter in update.head.parameters():
            parameter.zero_()
    for factor in (0.0, 0.5, 1.0):
        moved = []
        for scale in (1.0, 2.0):
            model = nn.Linear(3, 2, bias=False).double()
            with torch.no_grad():
                model.weight.copy_(scale * torch.arange(1.0, 7.0).reshape(2, 3))
            optimizer = LearnedOptimizer(model, rule, learned_decay=factor)
            before = model.weight.detach().clone()
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
            moved.append(model.weight.detach() - before)
        wanted = -factor * 0.1 * torch.e / (64 + 3) * before / 2
        torch.testing.assert_close(moved[1] - moved[0], wanted, rtol=1e-9, atol=1e-15)


def test_it_is_an_option_of_groups_that_may_change_on_the_way() -> None:
    ends = [trained(10, change)[0].head.weight for change in (None, 1.0, 0.0)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    model = Words()
    groups: list[dict[str, Any]] = [
        {"params": model.words.parameters(), "learned_decay": 0.0},
        {"params": model.head.parameters()},
    ]
    optimizer = LearnedOptimizer(model, learned_rule("layer"), params=groups)
    assert [group["learned_decay"] for group in optimizer.param_groups] == [0.0, 1.0]


def test_it_is_no_negative_number() -> None:
    with pytest.raises(ValueError, match="learned_decay: found -1"):
        LearnedOptimizer(Words(), learned_rule("layer"), learned_decay=-1)


def test_a_state_of_before_the_option_is_as_meta_trained() -> None:
    model, _ = trained(3)
    optimizer = LearnedOptimizer(model, learned_rule("layer"), learned_decay=0.0)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["learned_decay"]
    optimizer.load_state_dict(state)
    ends = []
    for decay in (None, 1.0):
        one = Words().double()
        one.load_state_dict(model.state_dict())
        own = LearnedOptimizer(one, learned_rule("layer"))
        own.load_state_dict(state if decay is None else own.state_dict())
        functional.cross_entropy(one(torch.tensor([0, 1])), torch.tensor([0, 1])).backward()
        own.step()
        ends.append(one.head.weight)
    assert torch.equal(*ends)


def test_it_stands_in_what_a_checkpoint_tells(tmp_path: Path) -> None:
    rules = {
        "learned:": learned_rule("layer"),
        "goes with the step (0 matrices, 0.003 vectors):": metaopt.load("factorised_update"),
        "": learned_rule("coordinate_directions_update"),
    }
    for which, rule in rules.items():
        path = tmp_path / "rule.safetensors"
        rule.save(path)
        told = report(checkpoint.read(path), str(path))
        assert which in told
        assert ("learned_decay=0" in told) == bool(which)
