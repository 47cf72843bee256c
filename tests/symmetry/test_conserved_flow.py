"""Along gradient flow, by an ODE solver, charges stay, and only they."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conserving import (
    Classes,
    GatedUnits,
    Heads,
    Normalised,
    Stream,
    Units,
    linear_layers,
    made,
)
from scipy.integrate import solve_ivp  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metaopt import symmetries
from metaopt.symmetry.conserved import charges
from metaopt.symmetry.groups import Group

SMOOTH = [
    ("ReLU units", partial(Units, functional.relu), {"a -> b"}),
    ("LeakyReLU units", partial(Units, nn.LeakyReLU(0.1)), {"a -> b"}),
    ("x^2 units", partial(Units, torch.square), {"a -> b"}),
    ("x^3 units", partial(Units, lambda h: h**3), {"a -> b"}),
    ("gated units", GatedUnits, {"up -> down"}),
    ("linear layers", linear_layers, {"0 -> 1"}),
    ("heads", Heads, {"q -> k", "v -> o", "k.bias"}),
    ("scale ahead of RMSNorm", partial(Normalised, False), {"a"}),
    ("scale and shift ahead of LayerNorm", partial(Normalised, True), {"a", "a.weight", "a.bias"}),
    ("shift ahead of softmax", Classes, {"a.weight", "a.bias"}),
]


def flow(model: nn.Module, x: Tensor, targets: Tensor, time: float = 1.0) -> None:
    """d w / dt = -grad L(w), in place."""
    shapes = {path: p.detach() for path, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(model, weights, (x,))
        return functional.cross_entropy(outputs.flatten(0, -2), targets)

    gradient = grad(loss)

    def downhill(_: float, flat: Any) -> Any:
        pieces = torch.from_numpy(flat.copy()).split([p.numel() for p in shapes.values()])
        weights = {k: z.view_as(p) for (k, p), z in zip(shapes.items(), pieces, strict=True)}
        slopes = gradient(weights)
        return -torch.cat([slopes[path].flatten() for path in shapes]).numpy()

    start = parameters_to_vector(model.parameters()).detach().numpy()
    solved = solve_ivp(downhill, (0.0, time), start, method="RK45", rtol=1e-10, atol=1e-12)
    assert solved.success
    end = torch.from_numpy(np.ascontiguousarray(solved.y[:, -1]))
    vector_to_parameters(end, model.parameters())


def trained(model: nn.Module, shape: tuple[int, ...] = (5, 3)) -> tuple[Tensor, float]:
    """Let a model flow; inputs, and how far the weights went."""
    x = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(2, (x[..., 0].numel(),))
    before = parameters_to_vector(model.parameters()).detach().clone()
    flow(model, x, targets)
    after = parameters_to_vector(model.parameters()).detach()
    return x, float((after - before).norm())


@pytest.mark.parametrize(("make", "names"), [row[1:] for row in SMOOTH], ids=[r[0] for r in SMOOTH])
def test_charges_stay(make: Callable[[], nn.Module], names: set[str]) -> None:
    model = made(make)
    shape = (2, 3, 3) if make is Heads else (5, 3)
    found = symmetries(model, torch.randn(shape, dtype=torch.float64))
    before = charges(model, found)
    assert before.keys() == names
    _, distance = trained(model, shape)
    assert distance > 0.1
    for name, charge in charges(model, found).items():
        torch.testing.assert_close(charge, before[name], rtol=0, atol=1e-8)


def norms(model: nn.Module) -> Tensor:
    """|w_in|^2 + b^2 - |w_out|^2 of units between a and b."""
    p = {path: one.detach() for path, one in model.named_parameters()}
    w = torch.cat([p["a.weight"], p["a.bias"][:, None]], 1)
    return w.square().sum(1) - p["b.weight"].square().sum(0)


@pytest.mark.parametrize("act", [functional.gelu, torch.tanh, torch.sigmoid])
def test_what_only_permutes_or_flips_keeps_nothing(act: Callable[[Tensor], Tensor]) -> None:
    model = made(partial(Units, act))
    assert charges(model) == {}
    before = norms(model)
    _, distance = trained(model)
    assert distance > 0.1
    assert (norms(model) - before).abs().min() > 1e-4


def test_powers_keep_no_other_difference() -> None:
    """It is |w_in|^2 - 3 |w_out|^2 of x^3, not |w_in|^2 - |w_out|^2."""
    model = made(partial(Units, lambda h: h**3))
    before = norms(model)
    trained(model)
    assert (norms(model) - before).abs().max() > 1e-3


def test_a_rotated_stream_has_a_group_and_no_charge() -> None:
    model = made(Stream)
    found = symmetries(model, torch.randn(5, 3).double())
    assert Group.ORTHOGONAL in {one.group for one in found}
    kept = charges(model, found)
    moved = {one.name for one in found if one.group is Group.ORTHOGONAL}
    assert not moved & kept.keys()
