"""Motions move weights and gradients as autograd finds them, for found symmetries and for own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

import metaopt
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.modules import move, touches_of
from metaopt.symmetry.motion import (
    GroupMotion,
    OwnSymmetry,
    motions_of,
    moved_gradients,
    moved_weights,
)


class Attention(nn.Module):
    """One packed projection for queries, keys and values of two heads, and a gated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.down(functional.relu(self.up(x)))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5),
        nn.ReLU(),
        nn.Linear(5, 6),
        nn.Linear(6, 5),
        nn.LeakyReLU(),
        nn.Linear(5, 2),
    )


def grouped() -> nn.Module:
    convolutions = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(36, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (7, 4)),
    "grouped convolution": (grouped, (3, 1, 6, 6)),
    "attention": (Attention, (2, 3, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_gradients_move_as_autograd_says(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    motions, left = motions_of(metaopt.symmetries(model, example=x))
    assert motions
    assert set(left.values()) <= {"translation has no generators to search"}
    weights = {path: p.detach() for path, p in model.named_parameters()}

    def loss(at: dict[str, Tensor]) -> Tensor:
        return functional_call(model, at, (x,)).square().mean()

    T = [0.2 * torch.randn_like(motion.zero(weights)) for motion in motions]
    moved = moved_weights(motions, weights, T)
    assert any(not torch.equal(moved[path], value) for path, value in weights.items())
    torch.testing.assert_close(loss(moved), loss(weights), rtol=1e-12, atol=0)
    found = moved_gradients(motions, {}, grad(loss)(weights), T)
    for path, G in grad(loss)(moved).items():
        torch.testing.assert_close(found[path], G, rtol=1e-9, atol=1e-12)
    # The same numbers as the moves in place of ``teleport`` give.
    other = copy.deepcopy(model)
    groups = [(m.symmetry, m.element(t)) for m, t in zip(motions, T, strict=True)
              if isinstance(m, GroupMotion)]  # fmt: skip
    move(other, touches_of(groups))
    for path, p in other.named_parameters():
        torch.testing.assert_close(p.detach(), moved[path], rtol=1e-12, atol=1e-14)


def test_motions_run_side_by_side() -> None:
    torch.manual_seed(0)
    model = grouped().double()
    weights = {path: p.detach() for path, p in model.named_parameters()}
    motions, _ = motions_of(metaopt.symmetries(model))
    T = [0.2 * torch.randn(3, *motion.zero(weights).shape).double() for motion in motions]
    together = vmap(lambda *T: moved_weights(motions, weights, T))(*T)
    for i in range(3):
        alone = moved_weights(motions, weights, [t[i] for t in T])
        for path, value in alone.items():
            torch.testing.assert_close(together[path][i], value)


def spin(weights: dict[str, Tensor], angle: Tensor) -> dict[str, Tensor]:
    """Rotates the residuals a - c^2 and b of |.|^2; reads c, which stays."""
    u, v = weights["a"] - weights["c"] ** 2, weights["b"]
    cos, sin = torch.cos(angle), torch.sin(angle)
    return {"a": cos * u - sin * v + weights["c"] ** 2, "b": sin * u + cos * v}


def test_gradients_under_a_symmetry_of_ones_own_are_those_at_the_moved_weights() -> None:
    def loss(at: dict[str, Tensor]) -> Tensor:
        return 3 * (at["a"] - at["c"] ** 2) ** 2 + 3 * at["b"] ** 2 + 0 * at["c"]

    weights = {"a": torch.tensor(2.0), "b": torch.tensor(-1.0), "c": torch.tensor(0.7)}
    weights = {path: value.double() for path, value in weights.items()}
    own = OwnSymmetry("spin", spin, is_compact=True)
    T = [torch.tensor([0.6], dtype=torch.float64)]
    moved = moved_weights([own], weights, T)
    assert float(loss(moved) - loss(weights)) == pytest.approx(0, abs=1e-14)
    found = moved_gradients([own], weights, grad(loss)(weights), T)
    for path, G in grad(loss)(moved).items():
        torch.testing.assert_close(found[path], G)


def test_what_has_no_generator_is_left_out_with_a_reason() -> None:
    symmetry = Symmetry("0 -> 2", Group.PERMUTATION, 4, (), ())
    motions, left = motions_of([symmetry])
    assert motions == []
    assert "no generators" in left[symmetry.short_name]
    with pytest.raises(ValueError, match="a search needs one of"):
        GroupMotion(symmetry).element(torch.zeros(1, 4, 4))


def test_a_rotary_generator_has_the_norm_of_its_matrix() -> None:
    symmetry = Symmetry("pairs", Group.ROTARY, 2, (), (), allows=frozenset({Group.ROTARY}))
    T = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    x = torch.eye(2, dtype=torch.float64)[None, None]
    g = GroupMotion(symmetry).element(T).act(x)[0, 0]
    t, u = T[0] / 2**0.5
    matrix = torch.stack([torch.stack([t, -u]), torch.stack([u, t])])
    assert float(matrix.norm()) == pytest.approx(5)
    torch.testing.assert_close(g, torch.linalg.matrix_exp(matrix))
