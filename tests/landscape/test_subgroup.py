"""One-parameter subgroups: exp((s + t) T) = exp(s T) exp(t T), and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import signed
from torch import Tensor, nn

from metaopt.landscape.subgroup import Subgroup, found_symmetry
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group, Slot, Symmetry

SHAPES = {
    Group.LINEAR: (2, 2, 2),
    Group.ORTHOGONAL: (2, 2, 2),
    Group.ROTARY: (2, 2),
    Group.SCALING: (2, 2),
}


def symmetry(group: Group, blocks: int = 2, size: int = 2) -> Symmetry:
    slots = (Slot("0", "weight", 0),)
    return Symmetry("0 -> 1", group, size, slots, (), blocks, frozenset({group}))


@pytest.mark.parametrize("group", [*SHAPES, Group.TRANSLATION])
def test_elements_are_a_subgroup(group: Group) -> None:
    one = symmetry(group)
    subgroup = Subgroup.of(one, "random", seed=3)
    x = signed(3, 2, 2, 5, seed=0)

    def at(t: float, y: Tensor) -> Tensor:
        return subgroup.at(t).at(one.incoming[0]).act(y)

    torch.testing.assert_close(at(0.3, at(0.9, x)), at(1.2, x))
    torch.testing.assert_close(at(-0.7, at(0.7, x)), x)
    assert not torch.allclose(at(0.7, x), x)
    again = Subgroup.of(one, "random", seed=3)
    assert torch.equal(subgroup.T, again.T)
    assert torch.equal(again.at(0.5).at(one.incoming[0]).act(x), at(0.5, x))


@pytest.mark.parametrize("group", SHAPES)
def test_random_generators_have_norm_one(group: Group) -> None:
    T = Subgroup.of(symmetry(group), "random", seed=0).T
    assert T.shape == SHAPES[group]
    # The matrix of a scale t and an angle u has norm sqrt(2) |(t, u)|.
    norm = 2**-0.5 if group is Group.ROTARY else 1.0
    torch.testing.assert_close(T.flatten(1).norm(dim=1), torch.full((2,), norm).double())
    assert not torch.equal(T, Subgroup.of(symmetry(group), "random", seed=1).T)


@pytest.mark.parametrize("group", [Group.LINEAR, Group.ROTARY, Group.SCALING])
def test_the_identity_scales_all_units_alike(group: Group) -> None:
    x = signed(1, 2, 2, 3, seed=0)
    for generator in (None, "identity"):
        element = Subgroup.of(symmetry(group), generator, seed=0).at(0.4)
        torch.testing.assert_close(element.act(x), torch.tensor(0.4).double().exp() * x)


def refused(group: Group, generator: Tensor | str, match: str, blocks: int = 2) -> None:
    with pytest.raises(ValueError, match=match):
        Subgroup.of(symmetry(group, blocks), generator, seed=0)


def test_wrong_generators_are_refused() -> None:
    for group, shape in SHAPES.items():
        refused(group, signed(*shape, 3, seed=0), "needs a generator of shape")
    refused(Group.LINEAR, signed(2, 2, seed=0), r"shape \[2, 2, 2\], found \[2, 2\]")
    refused(Group.ORTHOGONAL, signed(2, 2, 2, seed=0), "must be skew")
    refused(Group.ORTHOGONAL, "identity", "the identity is no generator of the orthogonal group")
    refused(Group.TRANSLATION, "identity", "the identity is no generator of the translation group")
    refused(Group.TRANSLATION, signed(2, seed=0), "whose generator comes from the seed")
    refused(Group.SCALING, "fast", "must be a tensor, 'identity' or 'random', found 'fast'")
    refused(Group.SCALING, torch.full((2, 2), torch.inf), "must be finite")
    with pytest.raises(ValueError, match="seed must not be negative"):
        Subgroup.of(symmetry(Group.SCALING), None, seed=-1)


def test_the_axis_of_one_block_may_be_missing() -> None:
    T = signed(2, seed=0)
    assert torch.equal(Subgroup.of(symmetry(Group.SCALING, blocks=1), T, seed=0).T, T[None])


def test_names_of_symmetries() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    listed = {one.name: one for one in symmetries(model)}
    assert found_symmetry(model, "0 -> 2") == listed["0 -> 2"]
    assert found_symmetry(model, "0 -> 2 (positive scaling)") == listed["0 -> 2"]
    assert found_symmetry(model, listed["0 -> 2"]) is listed["0 -> 2"]
    for discrete in ("2 -> 4", listed["2 -> 4"]):
        with pytest.raises(ValueError, match=r"'2 -> 4' is discrete \(sign flips\), an"):
            found_symmetry(model, discrete)
    either = frozenset({Group.PERMUTATION, Group.SCALING})
    permuted = replace(listed["0 -> 2"], group=Group.PERMUTATION, allows=either)
    with pytest.raises(ValueError, match=r"'0 -> 2' is discrete \(permutation\)"):
        found_symmetry(model, permuted)
    with pytest.raises(ValueError, match="no symmetry 'x', it has '0 -> 2'"):
        found_symmetry(model, "x")
    with pytest.raises(ValueError, match=r"the model has no tensor '7\.weight'"):
        found_symmetry(model, replace(listed["0 -> 2"], incoming=(Slot("7", "weight", 0),)))
