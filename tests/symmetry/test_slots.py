"""Slots: which entries of a tensor a group element moves, against loops over all indices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, seeds, signed
from torch import Tensor

from metaopt.symmetry.groups import Slot

factor_lists = st.lists(
    st.tuples(st.sampled_from(["copy", "block", "unit", "pick:0", "pick:1"]), st.integers(2, 3)),
    min_size=1,
    max_size=4,
)


def by_loops(slot: Slot, tensor: Tensor, g: Tensor) -> Tensor:
    """g [blocks, size, size] on each fibre of the slot, entry by entry."""
    blocks, size, _ = g.shape
    factors = slot.factors or (("block", blocks), ("unit", size))
    places: dict[tuple[int, int, int], int] = {}
    for i, index in enumerate(itertools.product(*(range(n) for _, n in factors))):
        place = {"copy": 0, "block": 0, "unit": 0}
        is_picked = True
        for (role, n), digit in zip(factors, index, strict=True):
            if role in place:
                place[role] = place[role] * n + digit
            else:
                is_picked = is_picked and role == f"pick:{digit}"
        if is_picked:
            places[place["copy"], place["block"], place["unit"]] = slot.start + i
    result = tensor.clone()
    for index in itertools.product(*(range(n) for n in tensor.shape)):
        if slot.rows is not None and not 0 <= index[0] - slot.rows[0] < slot.rows[1]:
            continue
        for (copy, block, unit), at in places.items():
            if index[slot.axis] == at:
                fibre = [
                    tensor[(*index[: slot.axis], places[copy, block, j], *index[slot.axis + 1 :])]
                    for j in range(size)
                ]
                result[index] = g[block, unit] @ torch.stack(fibre)
    return result


@FEW
@given(
    factors=factor_lists,
    axis=st.integers(0, 2),
    start=st.integers(0, 2),
    after=st.integers(0, 2),
    some_rows=st.booleans(),
    seed=seeds,
)
def test_factors_are_read_row_major(
    factors: list[tuple[str, int]], axis: int, start: int, after: int, some_rows: bool, seed: int
) -> None:
    counts = {
        role: math.prod(n for r, n in factors if r == role) for role in ("copy", "block", "unit")
    }
    shape = [2, 3, 2]
    length = math.prod(n for _, n in factors)
    shape[axis] = start + length + after
    rows = (1, 1) if some_rows and axis > 0 else None
    slot = Slot("", "w", axis, start, tuple(factors), rows)
    tensor = signed(*shape, seed=seed)
    g = signed(counts["block"], counts["unit"], counts["unit"], seed=seed + 1)
    kept = tensor.clone()
    shapes = []

    def action(x: Tensor) -> Tensor:
        shapes.append(x.shape[:3])
        return g @ x

    found = slot.apply(tensor, counts["block"], counts["unit"], action)
    torch.testing.assert_close(found, by_loops(slot, tensor, g))
    assert torch.equal(tensor, kept)
    assert shapes == [tuple(counts.values())]
    assert slot.length(counts["block"], counts["unit"]) == length
    slot.change(tensor, counts["block"], counts["unit"], action)
    assert torch.equal(tensor, found)


def test_without_factors_block_follows_block() -> None:
    tensor, g = signed(2, 7, seed=0), signed(2, 3, 3, seed=1)
    slot = Slot("layer", "w", 1, start=1)
    wanted = tensor.clone()
    for b in range(2):
        for row in range(2):
            entries = slice(1 + 3 * b, 4 + 3 * b)
            wanted[row, entries] = g[b] @ tensor[row, entries]
    torch.testing.assert_close(slot.apply(tensor, 2, 3, lambda x: g @ x), wanted)
    assert slot.path == "layer.w"
    assert slot.length(2, 3) == 6


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_reads_all_channels(groups: int) -> None:
    # [O, I / groups, k]: the outputs of group j read the channels of group j.
    weight = signed(8, 8 // groups, 3, seed=0)
    scales = signed(8, seed=1)
    slot = Slot("", "w", 1, groups=groups)
    found = slot.apply(weight, 1, 8, lambda x: scales[:, None] * x)
    wide = torch.zeros(8, 8, 3, dtype=torch.float64)
    moved = torch.zeros(8, 8, 3, dtype=torch.float64)
    for o, i in itertools.product(range(8), range(8 // groups)):
        channel = o // (8 // groups) * (8 // groups) + i
        wide[o, channel], moved[o, channel] = weight[o, i], found[o, i]
    torch.testing.assert_close(moved, wide * scales[:, None])
