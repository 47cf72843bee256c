"""Elements of every group: exact inverses, inverse transposes, squares, and what is drawn."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, seeds, signed
from torch import Tensor

from metaopt.symmetry.drawing import random_elements
from metaopt.symmetry.elements import Element, Identity, Signs
from metaopt.symmetry.groups import Group, Slot, Symmetry

SLOT = Slot("", "w", 0)
every_group = pytest.mark.parametrize("group", Group)
every_linear_group = pytest.mark.parametrize(
    "group", [group for group in Group if group is not Group.TRANSLATION]
)
norms = st.sampled_from([0.01, 0.5, 2.0])
CPU = torch.device("cpu")


def symmetry(group: Group, size: int, blocks: int, name: str = "a -> b") -> Symmetry:
    return Symmetry(name, group, size, (SLOT,), (), blocks, frozenset({group}))


def drawn(
    group: Group, size: int, blocks: int, norm: float, seed: int = 0, name: str = "a -> b"
) -> Element:
    (element,) = random_elements([symmetry(group, size, blocks, name)], norm, seed, [CPU])
    return element.at(SLOT)


def matrix(element: Element, size: int, blocks: int) -> Tensor:
    """g [blocks, size, size], read off the identity."""
    return element.act(torch.eye(size, dtype=torch.float64).expand(1, blocks, -1, -1))[0]


def width(group: Group, size: int) -> int:
    return 2 if group is Group.ROTARY else size


@every_linear_group
@FEW
@given(size=st.integers(1, 5), blocks=st.integers(1, 3), norm=norms, seed=seeds)
def test_inverses_and_inverse_transposes_are_exact(
    group: Group, size: int, blocks: int, norm: float, seed: int
) -> None:
    size = width(group, size)
    x, y = (signed(2, blocks, size, 3, seed=seed + i) for i in (0, 1))
    element, inverse = (drawn(group, size, blocks, sign * norm, seed) for sign in (1, -1))
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12 * math.exp(2 * norm))
    close(inverse.act(element.act(x)), x)
    # <g x, g^-T y> = <x, y>.
    kept = (element.act(x) * element.act_inversely_transposed(y)).sum(2)
    close(kept, (x * y).sum(2))
    g, back = matrix(element, size, blocks), matrix(inverse, size, blocks)
    close(g @ back, torch.eye(size).double().expand_as(g))
    torch.testing.assert_close(element.act(x), g @ x)


@every_linear_group
@FEW
@given(size=st.integers(1, 5), blocks=st.integers(1, 3), norm=norms, seed=seeds)
def test_squares_where_they_exist_are_squares(
    group: Group, size: int, blocks: int, norm: float, seed: int
) -> None:
    size = width(group, size)
    x = signed(2, blocks, size, 3, seed=seed)
    element = drawn(group, size, blocks, norm, seed)
    squared = element.squared
    assert (squared is None) == (group in (Group.LINEAR, Group.ORTHOGONAL, Group.ROTARY))
    if squared is not None:
        torch.testing.assert_close(squared.act(x.square()), element.act(x).square())
        torch.testing.assert_close(
            squared.act_inversely_transposed(x.square()),
            element.act_inversely_transposed(x).square(),
        )


def test_elements_are_what_they_are_called() -> None:
    size, blocks, norm = 4, 3, 0.7
    identity = torch.eye(size, dtype=torch.float64).expand(blocks, -1, -1)
    g = matrix(drawn(Group.ORTHOGONAL, size, blocks, norm), size, blocks)
    torch.testing.assert_close(g.mT @ g, identity)
    assert (torch.linalg.det(g) > 0).all()
    assert not torch.equal(g[0], g[1])
    g = matrix(drawn(Group.SCALING, size, blocks, norm), size, blocks)
    t = g.diagonal(dim1=1, dim2=2).log()
    torch.testing.assert_close(g, t.exp().diag_embed())
    torch.testing.assert_close(t.norm(dim=1), torch.full((blocks,), norm).double())
    g = matrix(drawn(Group.SIGNS, size, blocks, norm), size, blocks)
    assert torch.equal(g.abs(), identity)
    for b in range(blocks):
        assert not torch.equal(g[b], identity[b])
    g = matrix(drawn(Group.PERMUTATION, size, blocks, norm), size, blocks)
    assert torch.equal(g.sum(1), torch.ones(blocks, size).double())
    assert torch.equal(g.sum(2), g.square().sum(2))
    g = matrix(drawn(Group.LINEAR, size, blocks, norm), size, blocks)
    assert (torch.linalg.det(g) > 0).all()


def test_scale_and_rotation_is_the_exponential() -> None:
    blocks, norm = 5, 0.7
    g = matrix(drawn(Group.ROTARY, 2, blocks, norm), 2, blocks)
    t = torch.linalg.det(g).log() / 2
    u = torch.atan2(g[:, 1, 0], g[:, 0, 0])
    J = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    T = t[:, None, None] * torch.eye(2).double() + u[:, None, None] * J
    torch.testing.assert_close(torch.linalg.matrix_exp(T), g)
    torch.testing.assert_close(torch.linalg.matrix_norm(T), torch.full((blocks,), norm).double())
    # It commutes with all rotations, as those of a rotary embedding.
    R = torch.linalg.matrix_exp(0.3 * J)
    torch.testing.assert_close(R @ g, g @ R)


@FEW
@given(size=st.integers(1, 4), blocks=st.integers(1, 3), norm=norms, seed=seeds)
def test_translations_add_the_same_to_all_units_of_a_block(
    size: int, blocks: int, norm: float, seed: int
) -> None:
    x = signed(2, blocks, size, 3, seed=seed)
    element = drawn(Group.TRANSLATION, size, blocks, norm, seed)
    moved = element.act(x) - x
    v = moved[:1, :, :1]
    torch.testing.assert_close(moved, v.expand_as(moved))
    torch.testing.assert_close(v.norm(dim=(2, 3))[0], torch.full((blocks,), norm).double())
    assert torch.equal(element.act_inversely_transposed(x), x)
    assert isinstance(element.squared, Identity)
    back = drawn(Group.TRANSLATION, size, blocks, -norm, seed)
    torch.testing.assert_close(back.act(element.act(x)), x)
    others = [
        drawn(Group.TRANSLATION, size, blocks, norm, seed + 1),
        drawn(Group.TRANSLATION, size, blocks, norm, seed, "c"),
        element.at(Slot("", "b", 0)),
    ]
    for other in others:
        assert not torch.equal(other.act(x), element.act(x))


@every_group
def test_elements_depend_on_the_seed_and_on_their_own_name(group: Group) -> None:
    size = width(group, 4)
    x = signed(1, 6, size, 2, seed=0)
    several = [symmetry(group, size, 6, name) for name in ("a", "b", "c")]
    all_three = random_elements(several, 0.5, 3, [CPU] * 3)
    (alone,) = random_elements(several[1:2], 0.5, 3, [CPU])
    (reseeded,) = random_elements(several[1:2], 0.5, 4, [CPU])
    moved = [element.at(SLOT).act(x) for element in (*all_three, alone, reseeded)]
    torch.testing.assert_close(moved[1], moved[3], rtol=1e-14, atol=1e-14)
    for other in (moved[0], moved[2], moved[4]):
        assert not torch.allclose(moved[1], other)


@pytest.mark.parametrize("group", [Group.SIGNS, Group.PERMUTATION])
def test_nothing_that_is_drawn_does_nothing(group: Group) -> None:
    for seed in range(20):
        x = torch.arange(2.0).double().reshape(1, 1, 2, 1) + 1
        assert not torch.equal(drawn(group, 2, 1, 0.5, seed).act(x), x)


def test_powers_of_scales_and_signs() -> None:
    x = signed(2, 3, 4, 5, seed=0)
    squared = Slot("", "variance", 0, power=2)
    scales = drawn(Group.SCALING, 4, 3, 0.5)
    twice = scales.at(squared)
    torch.testing.assert_close(twice.act(x), scales.act(scales.act(x)))
    back = twice.act_inversely_transposed(twice.act(x))
    torch.testing.assert_close(back, x)
    signs = drawn(Group.SIGNS, 4, 3, 0.5)
    assert isinstance(signs.at(squared), Identity)
    assert isinstance(signs.at(Slot("", "w", 0, power=3)), Signs)
    for group in (Group.LINEAR, Group.PERMUTATION, Group.TRANSLATION):
        with pytest.raises(ValueError, match="'variance' moves by the power 2"):
            drawn(group, 4, 3, 0.5).at(squared)
