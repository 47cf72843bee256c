"""What a teleport does to a tensor: together as one after the other, and rounded once."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, seeds, signed
from torch import Tensor, nn

from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import move, move_for_a_trial, touches
from metaopt.symmetry.touch import Touch, gradients, squares, weights

MODULES = ("first", "second", "third")
SHAPE = (4, 6, 2)


def model(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    found = nn.Module()
    for i, name in enumerate(MODULES):
        module = nn.Module()
        module.register_parameter("w", nn.Parameter(signed(*SHAPE, seed=seed + i, dtype=dtype)))
        found.add_module(name, module)
    return found


@st.composite
def symmetries(draw: st.DrawFn) -> Symmetry:
    """Any group on slots of all three tensors, blocks of it or copies."""
    group = draw(st.sampled_from(list(Group)))
    blocks, size = draw(st.sampled_from([(1, 4), (2, 2), (2, 1), (1, 2), (3, 2)]))
    if group is Group.ROTARY:
        blocks, size = draw(st.sampled_from([(1, 2), (2, 2), (3, 2)]))
    slots: list[Slot] = []
    for module in MODULES:
        axis = draw(st.sampled_from([a for a in (0, 1) if SHAPE[a] >= blocks * size]))
        room = SHAPE[axis] - blocks * size
        factors = draw(st.permutations([("block", blocks), ("unit", size)]))
        if SHAPE[axis] >= 2 * blocks * size and draw(st.booleans()):
            factors, room = [("copy", 2), *factors], SHAPE[axis] - 2 * blocks * size
        rows = (1, 2) if axis and draw(st.integers(0, 5)) == 0 else None
        start = draw(st.integers(0, room))
        slots.append(Slot(module, "w", axis, start, tuple(factors), rows))
    outgoing = slots[2:] if group is not Group.TRANSLATION else []
    name = str(draw(seeds))
    return Symmetry(name, group, size, (*slots[:2],), (*outgoing,), blocks, frozenset({group}))


def one_by_one(tensor: Tensor, steps: list[Touch], by_inverse: bool) -> Tensor:
    tensor = tensor.detach().double()
    for step in steps:
        element, symmetry = step.element, step.symmetry
        by_g = step.is_incoming != by_inverse
        act = element.act if by_g else element.act_inversely_transposed
        tensor = step.slot.apply(tensor, symmetry.blocks, symmetry.size, act)
    return tensor


@FEW
@given(several=st.lists(symmetries(), min_size=1, max_size=5), seed=seeds)
def test_all_touches_together_are_the_touches_in_turn(several: list[Symmetry], seed: int) -> None:
    owner = model(seed)
    for path, steps in touches(owner, several, 0.5, seed).items():
        tensor = owner.get_parameter(path)
        torch.testing.assert_close(weights(tensor, steps), one_by_one(tensor, steps, False))
        torch.testing.assert_close(gradients(tensor, steps), one_by_one(tensor, steps, True))
        # Squares, where they are known, are those of a gradient that stands alone.
        moved = squares(tensor.square(), steps)
        mixing = {Group.LINEAR, Group.ORTHOGONAL, Group.ROTARY}
        assert (moved is None) == any(step.symmetry.group in mixing for step in steps)
        if moved is not None:
            torch.testing.assert_close(moved, gradients(tensor, steps).square())


@FEW
@given(several=st.lists(symmetries(), min_size=1, max_size=5), seed=seeds)
def test_the_negative_norm_undoes(several: list[Symmetry], seed: int) -> None:
    owner = model(seed)
    before = copy.deepcopy(owner)
    for parameter in owner.parameters():
        parameter.grad = signed(*SHAPE, seed=seed)
    move(owner, touches(owner, several, 0.5, seed))
    exact = all(s.group in (Group.SIGNS, Group.PERMUTATION) for s in several)
    move(owner, touches(owner, several, -0.5, seed))
    for w, v in zip(owner.parameters(), before.parameters(), strict=True):
        tolerance = 0.0 if exact else 1e-12
        torch.testing.assert_close(w, v, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(w.grad, signed(*SHAPE, seed=seed), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@FEW
@given(several=st.lists(symmetries(), min_size=1, max_size=5), seed=seeds)
def test_lower_precision_is_the_rounding_of_float64(
    dtype: torch.dtype, several: list[Symmetry], seed: int
) -> None:
    low = model(seed, dtype)
    high = copy.deepcopy(low).double()
    for owner in (low, high):
        for parameter in owner.parameters():
            parameter.grad = parameter.detach().clone()
        move(owner, touches(owner, several, 0.5, seed))
    for w, v in zip(low.parameters(), high.parameters(), strict=True):
        assert w.dtype == dtype
        assert torch.equal(w, v.to(dtype))
        assert w.grad is not None
        assert v.grad is not None
        assert torch.equal(w.grad, v.grad.to(dtype))


def test_chunks_of_rows_are_the_whole() -> None:
    # More entries than are moved at a time, and a number of rows that no chunk divides.
    rows, columns = 1009, 1031
    owner = nn.Linear(columns, rows, bias=False)
    kept = owner.weight.detach().double()
    slots = [Slot("", "weight", 0, 3), Slot("", "weight", 1, 2)]
    several = [
        Symmetry(name, group, 1000, (slot,), (), 1, frozenset({group}))
        for name, group, slot in (
            ("a", Group.PERMUTATION, slots[0]),
            ("b", Group.SCALING, slots[0]),
            ("c", Group.SIGNS, slots[1]),
            ("d", Group.PERMUTATION, slots[1]),
            ("e", Group.SCALING, slots[1]),
        )
    ]
    (steps,) = touches(owner, several, 0.5, 0).values()
    assert torch.equal(weights(owner.weight, steps), one_by_one(kept, steps, False).float())


def test_views_and_vectors_move_as_others() -> None:
    owner = nn.Linear(6, 4).double()
    owner.weight = nn.Parameter(signed(6, 4, seed=0).t())
    plain = copy.deepcopy(owner)
    plain.weight = nn.Parameter(owner.weight.detach().contiguous())
    for group in (Group.PERMUTATION, Group.LINEAR, Group.SCALING, Group.TRANSLATION):
        slots = (Slot("", "weight", 0), Slot("", "bias", 0))
        found = [Symmetry("a", group, 4, slots, (), 1, frozenset({group}))]
        for one in (owner, plain):
            move(one, touches(one, found, 0.5, 0))
        assert torch.equal(owner.weight, plain.weight)
        assert torch.equal(owner.bias, plain.bias)


def test_tensors_of_one_symmetry_may_lie_on_different_devices() -> None:
    # The device "meta" has shapes and no numbers, and refuses tensors of others as any device does.
    for group in Group:
        size, blocks = (2, 2) if group is Group.ROTARY else (4, 1)
        owner, alone = model(), model()
        owner.get_submodule("second").to("meta")
        slots = tuple(Slot(name, "w", 0) for name in MODULES)
        found = [Symmetry("a", group, size, slots, (), blocks, frozenset({group}))]
        for one in (owner, alone):
            move(one, touches(one, found, 0.5, 0))
        assert owner.get_parameter("second.w").is_meta
        for path in ("first.w", "third.w"):
            assert torch.equal(owner.get_parameter(path), alone.get_parameter(path))


def test_a_trial_is_unnoticed_by_graphs_that_wait() -> None:
    owner = nn.Linear(4, 4)
    loss = owner(torch.ones(1, 4, requires_grad=True)).square().sum()
    allows = frozenset({Group.SIGNS})
    found = [Symmetry("a", Group.SIGNS, 4, (Slot("", "weight", 0),), (), allows=allows)]
    move_for_a_trial(owner, touches(owner, found, 0.5, 0))
    loss.backward()
    move(owner, touches(owner, found, 0.5, 0))
    loss = owner(torch.ones(1, 4, requires_grad=True)).square().sum()
    move(owner, touches(owner, found, 0.5, 0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_moves_if_one_tensor_cannot() -> None:
    owner = model()
    before = copy.deepcopy(owner)
    slots = tuple(Slot(name, "w", 0) for name in MODULES)
    wrong: list[tuple[tuple[Slot, ...], str]] = [
        ((*slots, Slot("fourth", "w", 0)), r"'a -> b': the model has no tensor 'fourth.w'"),
        ((*slots, Slot("third", "w", 2)), r"needs 4 entries on axis 2 of 'third.w', found shape"),
        ((Slot("first", "w", 1, 3),), r"needs 7 entries on axis 1 of 'first.w'"),
        ((Slot("first", "w", 0, factors=(("unit", 2),)),), r"1 blocks of 4 units, found factors"),
    ]
    for incoming, message in wrong:
        found = [Symmetry("a -> b", Group.LINEAR, 4, incoming, ())]
        with pytest.raises(ValueError, match=message):
            move(owner, touches(owner, found, 0.5, 0))
    only = frozenset({Group.TRANSLATION})
    found = [Symmetry("a -> b", Group.TRANSLATION, 4, (), slots[:1], allows=only)]
    with pytest.raises(ValueError, match="a translation has no outgoing slots"):
        touches(owner, found, 0.5, 0)
    for w, v in zip(owner.parameters(), before.parameters(), strict=True):
        assert torch.equal(w, v)
    with pytest.raises(ValueError, match="norm must be finite"):
        touches(owner, [], math.nan, 0)


def test_a_symmetry_may_have_slots_on_one_side_or_none() -> None:
    owner = model()
    before = copy.deepcopy(owner)
    slot = Slot("first", "w", 0)
    for incoming, outgoing in (((slot,), ()), ((), (slot,)), ((), ())):
        found = [Symmetry("a", Group.SCALING, 4, incoming, outgoing)]
        found_touches = touches(owner, found, 0.5, 0)
        assert list(found_touches) == (["first.w"] if incoming or outgoing else [])
        move(owner, found_touches)
    # Once by g and once by g^-T.
    torch.testing.assert_close(owner.get_parameter("first.w"), before.get_parameter("first.w"))
