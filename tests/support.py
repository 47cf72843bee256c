"""What several tests share: signed random tensors, strategies, tasks and tiny configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from metaopt.base import config
from metaopt.base.network import LeakyReLU
from metaopt.meta.config import TrainConfig
from metaopt.rules.base import Rule
from metaopt.rules.learned.directions import BasisConfig
from metaopt.rules.rule_config import RuleConfig
from metaopt.symmetry.actions import Action, Linear, Orthogonal, Permutation, Scaling, ThroughData
from metaopt.tasks.regression import TaskBatch

CONTINUOUS: list[Action] = [ThroughData(), Linear(), Scaling(), Orthogonal()]
ACTIONS: list[Action] = [*CONTINUOUS, Permutation()]
MAX_NORM = 1.0

every_action = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action).__name__)
every_continuous_action = pytest.mark.parametrize(
    "action", CONTINUOUS, ids=lambda action: type(action).__name__
)

FEW = settings(max_examples=20, deadline=None, derandomize=True, database=None)

widths = st.integers(1, 6)
batches = st.integers(1, 3)
seeds = st.integers(0, 2**31 - 1)
slopes = st.sampled_from([0.05, 0.1, 0.5, 1.0])
SIZES = [5, 4, 3]
DEEP_SIZES = [4, 3, 5, 2]
layer_sizes = st.lists(st.integers(1, 5), min_size=3, max_size=5)
both_sizes = pytest.mark.parametrize("sizes", [SIZES, DEEP_SIZES], ids=["2 layers", "3 layers"])


def signed(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal draws: of both signs, unlike the default family's."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def full_rank(*shape: int, seed: int) -> Tensor:
    """Signed matrices [B, n, N] of full rank, their singular values between 1/2 and 2."""
    U, _, Vh = torch.linalg.svd(signed(*shape, seed=seed), full_matrices=False)
    return U * torch.linspace(0.5, 2, U.shape[-1], dtype=U.dtype) @ Vh


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / (1 + ||wanted||), the largest over the batch."""
    distance = torch.linalg.matrix_norm(found - wanted)
    return float((distance / (1 + torch.linalg.matrix_norm(wanted))).max())


def regression(
    sizes: Sequence[int], samples: int, seed: int, batch: int = 2, slope: float = 0.1
) -> TaskBatch:
    """Signed tasks on well-conditioned data, for layers sizes[0] -> .. -> sizes[-1], in float64."""
    weights = tuple(
        signed(batch, out, fan_in, seed=seed + layer)
        for layer, (fan_in, out) in enumerate(pairwise(sizes))
    )
    X = full_rank(batch, sizes[0], samples, seed=seed + 100)
    Y = signed(batch, sizes[-1], samples, seed=seed + 101)
    return TaskBatch(X, Y, weights, LeakyReLU(slope))


UPDATE: dict[str, Any] = {"kind": "coordinate_lstm", "hidden": 3, "scale": 0.1, "outer_lr": 1e-3}
UPDATE_AND_TELEPORT: dict[str, Any] = {"update": UPDATE, "teleport": UPDATE}


PLAIN_META: dict[str, Any] = {
    "horizon": {"kind": "fixed"},
    "order": 1,
    "epsilon": 1e-9,
    "average": None,
}
PLAIN_TELEPORTER: dict[str, Any] = {"max_norm": 1.0, "guard": "refuse"}
WITH_BASIS = ("lstm", "coordinate_lstm")


def plain(name: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's section with what is plainest where it says nothing, not the shipped recipe."""
    plainest: dict[str, Any] = {"basis": "entries"} if rule["kind"] in WITH_BASIS else {}
    if rule["kind"] in (*WITH_BASIS, "informed_lstm"):
        plainest["free"] = 1.0
    if rule["kind"] == "lstm":
        plainest |= {"gradient": "raw", "hidden": 20}
    if name == "step_teleport":
        plainest["step_bound"] = "sigmoid"
    return plainest | dict(rule)


def tiny_config(
    rules: Mapping[str, Any] | None = None,
    teleporter: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    **meta: Any,
) -> TrainConfig:
    """A run of seconds: coordinate-wise updates on 3 by 4 tasks, unless told otherwise.

    Args:
        rules: the section ``rules``.
        teleporter: the section ``teleporter``; ``{}`` for its defaults, None for none.
        task: fields of ``task`` to set.
        dtype: of optimizees and rules.
        meta: fields of ``meta`` to set.
    """
    if teleporter is not None and teleporter.get("action") != "units":
        teleporter = PLAIN_TELEPORTER | dict(teleporter)
    small_task = {"width": 3, "inputs": 4, "outputs": 2, "samples": 3}
    small_meta = PLAIN_META | {"batch": 2, "outer_steps": 4, "steps": 4, "unroll": 2}
    content = {
        "name": "tiny",
        "label": "tiny",
        "dtype": dtype,
        "task": small_task | dict(task or {}),
        "rules": {name: plain(name, rule) for name, rule in (rules or {"update": UPDATE}).items()},
        "teleporter": None if teleporter is None else dict(teleporter),
        "meta": small_meta | meta,
        "validation": {"every": 2, "tasks": 3},
    }
    return config.check(TrainConfig, content, "tiny")


def amplify_head(rule: Rule, factor: float) -> None:
    """Make a learned rule's outputs larger."""
    with torch.no_grad():
        for name, parameter in rule.named_parameters():
            if "head" in name:
                parameter.mul_(factor)


def speak_up(rule: Rule) -> Rule:
    """In float64, with outputs that are not small beside the weights."""
    rule.double()
    amplify_head(rule, 20)
    return rule


def gradcheck(function: Callable[..., Any], inputs: list[Tensor]) -> bool:
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    return torch.autograd.gradcheck(function, leaves)


def basis_of(rule: RuleConfig | None) -> BasisConfig:
    """A rule's section, as one of an LSTM with a basis."""
    assert isinstance(rule, BasisConfig)
    return rule
