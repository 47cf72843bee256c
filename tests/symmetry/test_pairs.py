"""Linear pairs: outputs stay, gradients and products of them move as the mathematics says."""

from __future__ import annotations

import pytest
import torch
from paired import NETWORKS, adapters, observed, pairs_in, random_move, write

from metaopt.symmetry.pairs import MAKES, READS

EXACT = 1e-12


def data(width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_gradients_move_by_the_inverse_transpose(name: str) -> None:
    make, width = NETWORKS[name]
    net = make()
    pairs = pairs_in(net, width)
    x, seen = data(width), observed(net, pairs, data(width))
    outputs = net(x).detach()
    move = random_move(pairs)
    write(net, move.weights(seen.weights))
    change = (net(x) - outputs).abs().max() / outputs.abs().max()
    assert change < EXACT
    moved = observed(net, pairs, x)
    assert any((a - b).abs().max() > 0.01 for a, b in zip(moved.weights, seen.weights, strict=True))
    for expected, found in zip(move.gradients(seen.grads), moved.grads, strict=True):
        assert (expected - found).abs().max() < EXACT * (1 + found.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_products_of_gradients_move_with_them(name: str) -> None:
    make, width = NETWORKS[name]
    net = make()
    pairs = pairs_in(net, width)
    seen = observed(net, pairs, data(width))
    move = random_move(pairs)
    moved = move.gradients(seen.grads)
    for i, own in enumerate(pairs.widths):
        expected = own.products(moved)
        assert torch.allclose(move.products(i, own.products(seen.grads)), expected, atol=EXACT)


def test_products_of_adapters_are_those_of_their_factors() -> None:
    net = adapters()
    pairs = pairs_in(net, 5)
    seen = observed(net, pairs, data(5))
    (width,) = pairs.widths
    found = width.products(seen.weights)[0]
    names = [n for n, p in net.named_parameters() if p.requires_grad]
    for i, (A, B) in enumerate(zip(names[::2], names[1::2], strict=True)):
        assert A.endswith("A.weight")
        assert B.endswith("B.weight")
        a, b = net.get_parameter(A), net.get_parameter(B)
        assert torch.allclose(found[MAKES, i], a @ a.T)
        assert torch.allclose(found[READS, i], b.T @ b)
    heights = torch.zeros(2, 3)
    for face in width.faces:
        heights[face.side, face.pairs] += face.rows(seen.weights, width.size).shape[2]
    assert heights.tolist() == [[5, 7, 7], [7, 7, 4]]
    assert pairs.sides.tolist() == [1, -1] * 3


def test_the_balance_of_a_pair_holds_for_gradients_on_any_data() -> None:
    """A G_A^T = G_B^T B: what makes the action exact, and the gradient blind to it."""
    net = adapters()
    pairs = pairs_in(net, 5)
    for seed in (1, 2):
        seen = observed(net, pairs, data(5, seed))
        (width,) = pairs.widths
        both = width.products(seen.weights, seen.grads)[0]
        assert torch.allclose(both[MAKES], both[READS].mT, atol=EXACT)


def test_of_pairs_that_share_entries_one_is_taken() -> None:
    make, width = NETWORKS["chain"]
    pairs = pairs_in(make(), width)
    assert pairs.count == 1
    assert pairs.tensors == {0, 1, 2}


def test_heads_are_pairs_of_their_own() -> None:
    make, width = NETWORKS["heads"]
    pairs = pairs_in(make(), width)
    assert [(w.size, w.count) for w in pairs.widths] == [(3, 4)]
