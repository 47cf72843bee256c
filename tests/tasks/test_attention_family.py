"""Small transformers as a task family: heads, examples, and what leaves the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from moved_tasks import losses_after, same_draws
from torch import nn

from metaopt.base.errors import UserError
from metaopt.symmetry.groups import Group
from metaopt.tasks.attention import KEYS, PAIRS, VALUES, Attention, recalled
from metaopt.tasks.attention_networks import SelfAttention
from metaopt.tasks.own_batch import LossFamily

OPTIONS: list[dict[str, Any]] = [
    {"width": 8},
    {"width": 12, "heads": 3, "layers": 2, "problem": "recall", "bias": False},
]
kinds = pytest.mark.parametrize("options", OPTIONS, ids=["digits", "recall"])


@kinds
def test_every_head_has_two_general_linear_groups(options: dict[str, Any]) -> None:
    family = Attention(**options)
    heads, layers = options.get("heads", 2), options.get("layers", 1)
    assert len(family.symmetries) == 2 * layers
    names = {"weight"} | ({"bias"} if options.get("bias", True) else set())
    for one in family.symmetries:
        assert one.group is Group.LINEAR
        assert (one.blocks, one.size) == (heads, options["width"] // heads)
        assert not one.assumes
        assert {slot.name for slot in one.incoming} == names
    weights = family.sample(np.random.default_rng(0)).weights
    assert {slot.path for one in family.symmetries for slot in one.slots} <= weights.keys()


@kinds
def test_changes_of_basis_in_heads_leave_the_loss(options: dict[str, Any]) -> None:
    assert losses_after(Attention(**options), Attention(**options).symmetries) < 1e-10


@kinds
def test_checks_pass_and_generators_decide(options: dict[str, Any]) -> None:
    family = Attention(**options)
    LossFamily(family, "Attention").check()
    assert same_draws(family)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own = SelfAttention(12, 3)
    x = torch.randn(2, 5, 12)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([own.q.weight, own.k.weight, own.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([own.q.bias, own.k.bias, own.v.bias]))
    theirs.out_proj = own.o  # type: ignore[assignment]
    torch.testing.assert_close(own(x), theirs(x, x, x, need_weights=False)[0])


def test_an_example_of_recall_has_one_answer() -> None:
    tokens, y = recalled(np.random.default_rng(0), 200)
    assert tokens.shape == (200, PAIRS + 1, KEYS + VALUES)
    keys, values = tokens.split([KEYS, VALUES], dim=2)
    assert (keys.sum(2) == 1).all()
    assert (values[:, :-1].sum(2) == 1).all()
    assert (values[:, -1] == 0).all()
    assert (keys[:, :-1].sum(1) <= 1).all()
    matches = (keys[:, :-1] * keys[:, -1:]).sum(2)
    assert (matches.sum(1) == 1).all()
    asked = (matches[..., None] * values[:, :-1]).sum(1)
    assert torch.equal(asked.argmax(1), y)
    assert len(set(y.tolist())) == VALUES


def test_unseen_images_judge() -> None:
    shown = Attention(8).sample(np.random.default_rng(0))
    unseen = Attention(8, unseen=True, judged=50).sample(np.random.default_rng(0))
    (judged,) = unseen.test
    assert len(judged) == 50
    met = {int(row) for rows in (*shown.data, *shown.test, *unseen.data) for row in rows}
    assert not met & set(judged.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "copy"}, "problem: found 'copy', expected one of digits, recall"),
        ({"heads": 3}, "width: found 8, expected a multiple of 3 heads"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Attention(**{"width": 8} | options)
