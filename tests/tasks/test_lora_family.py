"""Adapters as a task family: what is adapted, to what, and what leaves the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream
from metaopt.symmetry.groups import Group
from metaopt.tasks import lora_shifts
from metaopt.tasks.images import digits_apart
from metaopt.tasks.lora import LoRA
from metaopt.tasks.lora_bases import as_shaped, bases
from metaopt.tasks.lora_layers import LowRank
from metaopt.tasks.lora_networks import Network
from metaopt.tasks.own_batch import LossFamily

SMALL: dict[str, Any] = {"width": 16, "pool": 2, "pretraining": 3}
NETWORKS: list[dict[str, Any]] = [
    {"rank": 3},
    {"rank": 2, "layers": 2, "activation": "tanh"},
    {"rank": 2, "network": "convolutions", "layers": 2, "activation": "relu"},
    {"rank": 2, "network": "transformer", "layers": 1},
]
networks = pytest.mark.parametrize("options", NETWORKS, ids=lambda o: o.get("network", "mlp"))


@networks
def test_each_adapter_has_one_general_linear_symmetry(options: dict[str, Any]) -> None:
    family = LoRA(**SMALL | options)
    adapters = [path for path, part in family.net.named_modules() if isinstance(part, LowRank)]
    weights = family.sample(np.random.default_rng(0)).weights
    assert len(adapters) == {"mlp": options.get("layers", 3), "convolutions": 3}.get(
        options.get("network", "mlp"), 4
    )
    moved = []
    for symmetry in family.symmetries:
        assert symmetry.group is Group.LINEAR
        assert symmetry.size == options["rank"]
        (into,), (out,) = symmetry.incoming, symmetry.outgoing
        assert into.path.removesuffix(".A.weight") == out.path.removesuffix(".B.weight")
        moved += [into.path, out.path]
    assert moved == list(weights) == [f"{a}.{f}.weight" for a in adapters for f in "AB"]


@networks
def test_any_change_of_basis_leaves_the_loss(options: dict[str, Any]) -> None:
    tasks = LossFamily(LoRA(**SMALL | options), "LoRA").drawn(Stream.TRAIN, 0, 0, 2)
    tasks = tasks.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = tuple(W + 0.1 * normal(*W.shape) for W in tasks.initial)
    r = options["rank"]
    moved = []
    for A, B in zip(weights[::2], weights[1::2], strict=True):
        g = torch.linalg.matrix_exp(0.5 * normal(2, r, r))
        moved += [g @ A, B @ torch.linalg.inv(g)]
    for step in range(3):
        seen = tasks.at(step)
        before, after = seen.seen_loss(weights), seen.seen_loss(tuple(moved))
        torch.testing.assert_close(after, before, rtol=1e-10, atol=0)
        assert not torch.equal(seen.seen_loss(tasks.initial), before)


@networks
def test_checks_pass_and_generators_decide(options: dict[str, Any]) -> None:
    family = LoRA(**SMALL | options)
    LossFamily(family, "LoRA").check()
    first, second = (family.sample(np.random.default_rng(5)) for _ in range(2))
    for one, other in zip(
        (*first.weights.values(), *first.data, *first.test),
        (*second.weights.values(), *second.data, *second.test),
        strict=True,
    ):
        assert torch.equal(one, other)


def accuracy(family: LoRA, row: Tensor, X: Tensor, y: Tensor) -> float:
    """That of a base network with its adapters at B = 0."""
    weights = dict(family.sample(np.random.default_rng(0)).weights)
    frozen = dict(zip(family.frozen, as_shaped(row, family.shapes), strict=True))
    with torch.no_grad():
        logits = functional_call(family.net, weights | frozen, (X,))
    return float((logits.argmax(1) == y).float().mean())


@pytest.mark.parametrize(
    ("network", "width", "layers", "unseen"),
    [("mlp", 32, 3, True), ("convolutions", 16, 2, False), ("transformer", 16, 1, False)],
)
def test_bases_know_upright_digits_and_not_shifted_ones(
    network: str, width: int, layers: int, unseen: bool
) -> None:
    options: dict[str, Any] = {"network": network, "width": width, "layers": layers, "pool": 2}
    family = LoRA(rank=2, unseen=unseen, **options)
    _, apart = digits_apart()
    row = family.shared[0][1]
    assert accuracy(family, row, apart.X, apart.y) > 0.85
    shifts = [family.sample(np.random.default_rng(i)) for i in range(8)]
    found = [accuracy(family, row, *task.test[:2]) for task in shifts]
    assert np.mean(found) < 0.5
    (X, y, _) = (
        LoRA(rank=2, shifts="test", unseen=unseen, **options).sample(np.random.default_rng(0)).test
    )
    assert accuracy(family, row, X, y) < 0.5


def test_no_base_and_no_image_of_tests_is_met_in_training() -> None:
    training, tests = LoRA(rank=2, **SMALL), LoRA(rank=2, unseen=True, **SMALL)
    assert not (training.shared[0][:, None] == tests.shared[0][None]).all(2).any()
    kind = Network("mlp", 16, 3, "leaky_relu")
    first = bases(kind, 0, 3, 3)
    # Bases are numbered, so that a larger pool begins with the smaller one.
    torch.testing.assert_close(first[:2], training.shared[0])
    assert not torch.equal(first[:1], tests.shared[0][:1])
    shown, _ = digits_apart()
    task = LoRA(rank=2, unseen=True, shifts="test", **SMALL).sample(np.random.default_rng(0))
    assert len(task.data[0]) == len(shown.y)
    turned = 1 - shown.X.reshape(-1, 8, 8).rot90(1, (1, 2)).flatten(1)
    torch.testing.assert_close(task.data[0], turned)


def test_no_shift_of_meta_training_is_a_quarter_turn() -> None:
    upright = torch.arange(64).reshape(8, 8)
    quarters = {
        tuple(upright.rot90(k).roll((i, j), (0, 1)).flatten().tolist())
        for k in (1, 3)
        for i in range(8)
        for j in range(8)
    }
    generator = np.random.default_rng(0)
    shifts = [lora_shifts.of_training(generator, 8, 10) for _ in range(600)]
    drawn = {tuple(shift.pixels.tolist()) for shift in shifts}
    assert not drawn & quarters
    assert tuple(range(64)) not in drawn
    assert len(drawn) > 200
    test = lora_shifts.of_tests(generator, 8, 10)
    assert tuple(test.pixels.tolist()) in quarters
    assert {shift.slope < 0 for shift in shifts} == {True, False}
    assert all(sorted(shift.pixels.tolist()) == list(range(64)) for shift in shifts)


def test_the_loss_is_that_of_the_network_written_out() -> None:
    family = LoRA(rank=2, layers=2, scale=3.0, activation="tanh", **SMALL)
    generator = np.random.default_rng(1)
    task = family.sample(generator)
    weights = {
        name: torch.from_numpy(generator.standard_normal(W.shape, dtype=np.float32))
        for name, W in task.weights.items()
    }
    X, y, base = (tensor[:9] for tensor in task.data)
    W1, b1, W2, b2 = as_shaped(family.shared[0][int(base[0])], family.shapes)
    A1, B1, A2, B2 = weights.values()
    hidden = torch.tanh(X @ (W1 + 3 * B1 @ A1).T + b1)
    logits = hidden @ (W2 + 3 * B2 @ A2).T + b2
    wanted = torch.nn.functional.cross_entropy(logits, y)
    torch.testing.assert_close(family.loss(weights, (X, y, base), *family.shared), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "cnn"}, "network: found 'cnn', expected one of mlp, convolutions"),
        ({"activation": "gelu"}, "activation: found 'gelu', expected one of leaky_relu"),
        ({"shifts": "all"}, "shifts: found 'all', expected one of training, test"),
        ({"rank": 0}, "rank: found 0, expected at least 1"),
        ({"pool": 0}, "pool: found 0, expected from 1 to 1000"),
        ({"layers": 0}, "layers: found 0, expected at least 1"),
        ({"network": "transformer", "width": 9}, "width: found 9, expected a multiple of 2"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRA(**{"rank": 2} | SMALL | options)


def test_adapters_of_rank_1_are_pairs_too() -> None:
    family = LoRA(width=8, rank=1, pool=2, pretraining=5)
    tasks = LossFamily(family, "family").drawn(Stream.TRAIN, 0, 0, 1)
    assert tasks.pairs is not None
    assert tasks.pairs.count == 3
