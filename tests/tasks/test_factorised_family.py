"""Factors from the start, networks and sensing: what leaves the loss, and where it is zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from moved_tasks import losses_after, same_draws

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream
from metaopt.symmetry.groups import Group
from metaopt.tasks.build import task_family
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.factorised import Factorised, Sensing, orthonormal
from metaopt.tasks.own_batch import LossFamily

NETWORKS: list[dict[str, Any]] = [
    {"width": 12, "rank": 3},
    {"width": 8, "rank": 2, "network": "convolutions", "layers": 2, "activation": "relu"},
    {"width": 8, "rank": 2, "network": "transformer", "layers": 1},
]
SENSING: list[dict[str, Any]] = [
    {"size": 8, "rank": 3},
    {"size": 8, "rank": 2, "measured": "vectors", "noise": 0.1},
]
networks = pytest.mark.parametrize("options", NETWORKS, ids=lambda o: o.get("network", "mlp"))
sensing = pytest.mark.parametrize("options", SENSING, ids=lambda o: o.get("measured", "matrices"))


@networks
def test_symmetries_of_networks_leave_the_loss(options: dict[str, Any]) -> None:
    family = Factorised(**options)
    LossFamily(family, "Factorised").check()
    assert same_draws(family)
    pairs = [one for one in family.symmetries if one.group is Group.LINEAR]
    factors = [name for name, _ in family.net.named_parameters() if name.endswith("0.weight")]
    low_rank = [name for name in factors if name.removesuffix("0.weight") + "1.weight" in factors]
    assert not low_rank
    layers = {"mlp": 3, "convolutions": 3, "transformer": 4}[options.get("network", "mlp")]
    assert [one.size for one in pairs] == [options["rank"]] * layers
    assert losses_after(family, family.symmetries) < 1e-10


@sensing
def test_symmetries_of_sensing_leave_the_loss(options: dict[str, Any]) -> None:
    family = Sensing(**options)
    LossFamily(family, "Sensing").check()
    assert same_draws(family)
    (pair,) = family.symmetries
    assert pair.group is Group.LINEAR
    assert losses_after(family, family.symmetries) < 1e-10


def svd(family: Sensing, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    """W of a task, solved from its judged and shown measurements without noise, as U, S, V^T."""
    task = family.sample(np.random.default_rng(seed))
    x, y = (torch.cat([a, b]).double() for a, b in zip(task.data, task.test, strict=True))
    if family.by_matrices:
        rows = family.shared[0][x.long()].double()
        W = torch.linalg.lstsq(rows, y[:, None]).solution.reshape(family.size, family.size)
    else:
        W = torch.linalg.lstsq(x, y).solution.T
    return *torch.linalg.svd(W), task


@pytest.mark.parametrize("measured", ["matrices", "vectors"])
def test_the_optimum_is_the_matrix_that_was_measured(measured: str) -> None:
    condition = 50.0
    family = Sensing(6, 3, condition, condition, measured)
    U, S, Vh, task = svd(family, 3)
    assert float(S[0] / S[2]) == pytest.approx(condition, rel=1e-3)
    assert float(S[1] ** 2 / (S[0] * S[2])) == pytest.approx(1, rel=1e-3)
    assert float(S.square().sum()) == pytest.approx(1, rel=1e-4)
    assert float(S[3]) < 1e-5
    found = {"0.weight": S[:3, None].sqrt() * Vh[:3], "1.weight": U[:, :3] * S[:3].sqrt()}
    found = {name: factor.float() for name, factor in found.items()}
    for data in (task.data, task.test):
        assert float(family.loss(found, data, *family.shared)) < 1e-11
        zero = {name: 0 * factor for name, factor in found.items()}
        assert 0.3 < float(family.loss(zero, data, *family.shared)) < 3


def test_factors_start_balanced_and_small() -> None:
    for seed in range(3):
        weights = Sensing(7, 3, start=0.2).sample(np.random.default_rng(seed)).weights
        A, B = weights["0.weight"], weights["1.weight"]
        torch.testing.assert_close(B.T @ B, A @ A.T)
        assert float((B @ A).norm()) == pytest.approx(0.2, rel=1e-4)


def test_condition_numbers_are_uniform_in_their_logarithm() -> None:
    family = Sensing(4, 2, 1000.0, 1.0, "vectors")
    logs = []
    for seed in range(60):
        _, S, *_ = svd(family, seed)
        logs.append(float((S[0] / S[1]).log10()))
    assert -1e-4 <= min(logs) < 0.3
    assert 2.7 < max(logs) <= 3.01
    assert abs(np.mean(logs) - 1.5) < 0.35


def test_noise_is_of_the_training_data_alone() -> None:
    clean, noisy = (
        LossFamily(Sensing(6, 2, measured="vectors", noise=noise), "Sensing").drawn(
            Stream.TRAIN, 0, 0, 1
        )
        for noise in (0.0, 0.5)
    )
    (x, y), (same, moved) = clean.data, noisy.data
    assert torch.equal(x, same)
    assert float((moved - y).square().sum(-1).mean()) == pytest.approx(0.25, rel=0.4)
    assert torch.equal(clean.test[1], noisy.test[1])


def test_by_configuration_and_full_batch() -> None:
    options: dict[str, bool | int | float | str | None]
    options = {"size": 6, "rank": 2, "batch": None, "from_condition": 1000}
    family = task_family(TaskConfig(family="metaopt.tasks.factorised:Sensing", options=options))
    assert isinstance(family, LossFamily)
    tasks = family.drawn(Stream.TRAIN, 0, 0, 2)
    seen = tasks.at(0).observe(tasks.initial)
    torch.testing.assert_close(seen.loss, tasks.seen_loss(tasks.initial))
    assert tasks.at(1).seen == ()


def test_columns_are_orthonormal() -> None:
    Q = orthonormal(np.random.default_rng(0), 7, 3)
    np.testing.assert_allclose(Q.T @ Q, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 9}, "rank: found 9, expected from 1 to 8, the size"),
        ({"measured": "rows"}, "measured: found 'rows', expected one of matrices, vectors"),
        ({"condition": 2.0, "from_condition": 3.0}, "condition: found 2, expected at least"),
    ],
)
def test_mistakes_in_sensing_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sensing(**{"size": 8, "rank": 2} | options)


def test_a_rank_of_a_network_is_at_least_one() -> None:
    with pytest.raises(UserError, match="rank: found 0, expected at least 1"):
        Factorised(8, 0)
